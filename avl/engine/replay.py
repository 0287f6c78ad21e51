"""Build a cache again from the tokens that a conversation has fed, pass by pass: the same sets, counts and numbers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from avl.cache.cache import AdaptiveCache, make_cache
from avl.engine.cuda_graphs import make_decoder
from avl.engine.decoder import Decoder, Stopped
from avl.policies import Policy


@dataclass(frozen=True)
class Passed:
    """A turn as a cache has seen it.

    Attributes:
        new: tokens of its first pass; of the first turn, the prompt.
        said: how many of them, counted from the first, belong to the answer before.
        steps: tokens of its decode steps.
        limit: most tokens of its answer.
        image: those of its first pass that are image tokens, from 0.
        pictures: what the processor made of the pictures that it brought; of the first turn, those are in the prompt's inputs.
    """

    new: tuple[int, ...]
    said: int
    steps: tuple[int, ...]
    limit: int
    image: tuple[int, ...] = ()
    pictures: dict[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


def replay(
    model: Any,
    inputs: dict[str, Any],
    policy: Policy,
    passed: Sequence[Passed],
    stop: threading.Event | None = None,
    record: bool = False,
) -> AdaptiveCache:
    """Return a cache that has seen the given turns, ready to be extended.

    Args:
        model: an attached model.
        inputs: of the first turn's prompt.
        policy: what to store and read.
        passed: the turns, at least one.
        stop: ends it between two passes.
        record: whether to record attention, from the first pass on.

    Raises:
        Stopped: ``stop`` was set.
    """
    cache = make_cache(model, inputs, policy, passed[0].limit)
    if record:
        cache.record()
    for number, turn in enumerate(passed):
        if number:
            cache.extend([len(turn.new)], turn.limit, [turn.said], [turn.image])
        decoder = Decoder(model, cache) if record else make_decoder(model, cache)
        if number:
            decoder.extend([turn.new], stop, [turn.pictures])
        else:
            decoder.prefill(inputs, stop)
        for token in turn.steps:
            if stop is not None and stop.is_set():
                raise Stopped
            decoder.step(torch.tensor([token], device=model.device))
    return cache
