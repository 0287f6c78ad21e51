"""Decode steps as CUDA graphs: a step is captured once per kind (core step, update step) and replayed for every token.

A step of a 7B model launches some thousand kernels, most of them shorter than their launch. A graph launches all of them at once. What it
needs is that nothing depends on a number of the host: see ``FixedBank`` in avl/bank.py. One row layout and one GPU; everything else, and
every CPU, decodes eagerly with the same tokens. On a CPU the same steps run uncaptured, which is how they are tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch

from avl.cache import AdaptiveCache
from avl.decode import Decoder
from avl.telemetry import Clock

WARMUPS = 2  # of each kind of step before it is captured: libraries and Triton set themselves up in a first call


def can_capture(model: Any, cache: AdaptiveCache) -> str | None:
    """Why the steps of this cache cannot be captured, or None if they can."""
    if len(cache.groups) > 1:
        return "the rows of the batch are laid out differently"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}, not on a CUDA GPU"
    return None


class GraphDecoder(Decoder):
    """A Decoder whose steps are replayed; ``prepare_ms`` is what warming up and capturing took, once, before the first step.

    Raises:
        ValueError: the rows are laid out differently, or the model is spread over several devices.
    """

    def __init__(self, model: Any, cache: AdaptiveCache) -> None:
        super().__init__(model, cache)
        reason = can_capture(model, cache)
        if (reason is not None and model.device.type == "cuda") or len(cache.groups) > 1:
            raise ValueError(f"these decode steps cannot be captured, {reason}: use avl.decode.Decoder")
        self._capturable = reason is None
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._tokens = torch.zeros(cache.batch_size, dtype=torch.long, device=model.device)
        self._logits: dict[bool, torch.Tensor] = {}
        self.prepare_ms = 0.0
        cache.fixed = True

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """As :meth:`Decoder.step`; the logits are overwritten by the next step of the same kind."""
        cache = self._cache
        assert self._positions is not None, "the prompt comes first"
        cache.advance()
        self._tokens.copy_(tokens)
        if not self._capturable:
            logits = self._forward()
        else:
            self.prepare()
            self._graphs[cache.update_step].replay()
            logits = self._logits[cache.update_step]
        cache.settle()
        return logits

    def _forward(self) -> torch.Tensor:
        """The device's part of a step, from ``_tokens`` to logits ``[B, V]``; positions move on in place."""
        positions = self._positions
        assert positions is not None
        logits = self._run(self._tokens, positions)
        positions += 1
        return logits

    def _state(self) -> list[torch.Tensor]:
        """All that a step changes. The new token's keys and values go to a slot that is free, so they need not be put back."""
        assert self._positions is not None
        return [self._positions, *(tensor for bank in self._cache.banks for tensor in bank.state())]  # type: ignore[attr-defined]

    def prepare(self) -> None:
        """Capture a step of each kind that this generation takes; done once, after the prompt, and nothing where nothing is captured."""
        if self._graphs or not self._capturable:
            return
        cache, device = self._cache, self._tokens.device
        clock = Clock(device)
        clock.start()
        state = self._state()
        before = [tensor.clone() for tensor in state]

        def put_back() -> None:
            for tensor, old in zip(state, before, strict=True):
                tensor.copy_(old)

        now = cache.t, cache.update_step
        cache.t = max(cache.t, 1)  # layers tell a step from the prompt by it
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(device)
        for kind in sorted({cache.policy.is_update(t) for t in range(1, cache.max_new_tokens + 1)}):
            cache.update_step = kind
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARMUPS):
                    self._forward()
                    put_back()
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._logits[kind] = self._forward()
            self._graphs[kind] = graph
        cache.t, cache.update_step = now
        self.prepare_ms = clock.stop()
