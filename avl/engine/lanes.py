"""What runs are made of: the request that they share, and of each its policy and what it continues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from avl.cache.cache import AdaptiveCache, make_cache
from avl.engine.generation import Settings
from avl.engine.request import GenerationRequest
from avl.engine.sampling import Chooser
from avl.policies import Policy

if TYPE_CHECKING:
    from avl.engine.runner import Runner


@dataclass(frozen=True)
class Job:
    """The model, inputs and generation settings that all runs of a request share."""

    model: Any
    processor: Any
    inputs: dict[str, Any]
    request: GenerationRequest
    settings: Settings

    def make_cache(self, policy: Policy) -> AdaptiveCache:
        """Return a new cache for this prompt under ``policy``."""
        return make_cache(self.model, self.inputs, policy, self.request.max_new_tokens)

    def make_chooser(self) -> Chooser:
        """Return a new chooser of this request's tokens, which begins with its seed."""
        request, generator = self.request, None
        if request.temperature > 0 and request.seed is not None:
            generator = torch.Generator().manual_seed(request.seed)
        return Chooser(self.settings, self.inputs, request.temperature, generator)


@dataclass(frozen=True)
class Later:
    """What a run continues instead of a prompt.

    Attributes:
        cache: extended by as many tokens as are new.
        new: those tokens.
        said: how many of them, counted from the first, belong to the answer before.
        image: those of them that are image tokens, from 0.
        pictures: what the processor made of the pictures that they show.
        again: makes the same cache again, not extended, and records attention from its first pass on.
    """

    cache: AdaptiveCache
    new: tuple[int, ...]
    said: int
    image: tuple[int, ...]
    pictures: dict[str, torch.Tensor]
    again: Callable[[threading.Event | None], AdaptiveCache]


@dataclass(frozen=True)
class Lane:
    """What one run is made of.

    Attributes:
        number: of its arm.
        policy: what to store and read.
        job: the model, and the inputs of its whole prompt, earlier turns included.
        later: what it continues, None for a prompt of its own.
        keeps: takes the run over when it closes, with its cache, which another turn will continue; None for a run that is the last.
    """

    number: int
    policy: Policy
    job: Job
    later: Later | None = None
    keeps: Callable[[Runner], None] | None = None
