"""The request for one generation or race, validated once: the page, the API, the command line and the library all build it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from avl.models.images import open_image
from avl.policies import Full, Policy, check_policy
from avl.policies.base import number, shown, whole

MODES = ("race", "isolated")
MAX_REPEATS = 100
MAX_BATCH = 4096
MAX_NEW_TOKENS = 1_000_000
MAX_SEED = 2**64 - 1
MAX_TEMPERATURE = 10
MAX_SCORES_BYTES = 10**12


@dataclass(frozen=True)
class GenerationRequest:
    """One question about one or several images, under one or several policies.

    Attributes:
        images: PIL images, upright and RGB; paths, bytes and arrays are opened, and a single image counts as a list of one.
        question: a plain question, or a whole prompt with image placeholders (``avl.Prompt`` says so, else a Warning tells it).
        policies: what to store and read, one run each.
        max_new_tokens: most tokens of each answer.
        mode: "race": the run with less accumulated compute time steps next, so that whichever leads would also lead if run alone;
            "isolated": one run after the other, each cache freed before the next run begins, so that memory readings belong to one run.
        batch: number of copies of the request that run at once, at most 4096; events describe row 0.
        temperature: of the sampling, 0 for greedy.
        top_p: probability mass of the nucleus to sample from, in (0, 1].
        seed: of the sampling, 0 to 2**64 - 1; None for a random one.
        repeats: number of times to run; the first is reported in full, later ones as one Repeat event per policy, to show timing variance.
        scores: replay the answers afterwards and record the attention of every pass (Scores events); timings are unaffected.
        scores_bytes: most bytes of JSON that they take, all policies together: scores then have 8 bits, and where that is not enough, a
            layer lists its highest alone (``avl.trace.listed_tokens``). None for no limit: every score, as float16.
        agreement: feed full attention's answer through every policy afterwards and compare the next token's distributions (one Agreement
            event per policy, see avl/engine/agreement.py); timings are unaffected. Without ``Full`` among the policies, full attention
            answers first, unreported.

    Raises:
        ValueError: a value is of the wrong type or out of range, or a policy or image is missing or invalid; in one sentence.

    Numbers may be numpy scalars; they become Python's.
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
    scores_bytes: int | None = None
    agreement: bool = False

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
        question: Any = self.question
        if not isinstance(question, str):
            raise ValueError(f"question={shown(question)} is not a text: ask something about the image")
        try:
            question.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("the question holds half of a character (a lone surrogate): type it again") from None
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ValueError(f"mode={shown(self.mode)} is unknown: use {' or '.join(MODES)}")
        set_field(self, "max_new_tokens", whole("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS))
        set_field(self, "batch", whole("batch", self.batch, 1, MAX_BATCH))
        set_field(self, "repeats", whole("repeats", self.repeats, 1, MAX_REPEATS))
        if self.seed is not None:
            set_field(self, "seed", whole("seed", self.seed, 0, MAX_SEED))
        temperature, top_p = number(self.temperature), number(self.top_p)
        if temperature is None or not 0 <= temperature <= MAX_TEMPERATURE:
            raise ValueError(f"temperature={shown(self.temperature)} is out of range: 0 (greedy) to {MAX_TEMPERATURE}")
        if top_p is None or not 0 < top_p <= 1:
            raise ValueError(f"top_p={shown(self.top_p)} is out of range: above 0 and at most 1")
        set_field(self, "temperature", temperature)
        set_field(self, "top_p", top_p)
        for name in ("scores", "agreement"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name}={shown(value)} is neither True nor False")
            set_field(self, name, bool(value))
        if self.scores_bytes is not None:
            set_field(self, "scores_bytes", whole("scores_bytes", self.scores_bytes, 1, MAX_SCORES_BYTES))

    @property
    def forced_passes(self) -> int:
        """Answers that :attr:`agreement` feeds through the model, one row each; without ``Full``, its answer and its replay count too."""
        if not self.agreement:
            return 0
        return len(self.policies) + (0 if any(isinstance(policy, Full) for policy in self.policies) else 2)


def check_stop(stop: Any) -> None:
    """Raise ValueError unless ``stop`` is None or can be asked whether it is set."""
    if stop is not None and not callable(getattr(stop, "is_set", None)):
        raise ValueError(f"stop={shown(stop)} cannot be asked whether it is set: pass a threading.Event, or None")
