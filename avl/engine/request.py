"""The request for one generation or race, validated once: the page, the API, the command line and the library all build it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from avl.models.images import open_image
from avl.policies import Policy, check_policy
from avl.policies.base import check_whole

MODES = ("race", "isolated")
MAX_REPEATS = 100
MAX_TEMPERATURE = 10


@dataclass(frozen=True)
class GenerationRequest:
    """One question about one or several images, under one or several policies.

    Attributes:
        images: PIL images, upright and RGB; paths, bytes and arrays are opened, and a single image counts as a list of one.
        question: a plain question, or a whole prompt as ``avl.Prompt``.
        policies: what to store and read, one run each.
        max_new_tokens: most tokens of each answer.
        mode: "race": the run with less accumulated compute time steps next, so that whichever leads would also lead if run alone;
            "isolated": one run after the other, each cache freed before the next run begins, so that memory readings belong to one run.
        batch: number of copies of the request that run at once; events describe row 0.
        temperature: of the sampling, 0 for greedy.
        top_p: probability mass of the nucleus to sample from, in (0, 1].
        seed: of the sampling, None for a random one.
        repeats: number of times to run; the first is reported in full, later ones as one Repeat event per policy, to show timing variance.
        scores: replay the answers afterwards and record the attention of every pass (Scores events); timings are unaffected.

    Raises:
        ValueError: a value is out of range, or a policy or image is missing or invalid; in one sentence.
    """

    images: tuple[Image.Image, ...]
    question: str
    policies: tuple[Policy, ...]
    max_new_tokens: int = 64
    mode: str = "race"
    batch: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    repeats: int = 1
    scores: bool = False

    def __post_init__(self) -> None:
        set_field: Any = object.__setattr__
        images: Any = self.images
        set_field(self, "images", tuple(open_image(image) for image in (images if isinstance(images, list | tuple) else [images])))
        policies: Any = self.policies
        set_field(self, "policies", tuple(policies) if isinstance(policies, Iterable) else (policies,))
        if not self.policies:
            raise ValueError("there is nothing to compare: pass at least one policy")
        for policy in self.policies:
            check_policy(policy)
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown: use {' or '.join(MODES)}")
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        check_whole("batch", self.batch, 1)
        check_whole("repeats", self.repeats, 1, MAX_REPEATS)
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature={self.temperature!r} is out of range: 0 (greedy) to {MAX_TEMPERATURE}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p!r} is out of range: above 0 and at most 1")
