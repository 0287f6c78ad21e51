"""Decode steps as CUDA graphs: a step is captured once per kind (core step, update step) and replayed for every token.

A step of a 7B model launches about a thousand kernels, most of them shorter than their launch; a graph launches them all at once. This
requires that no kernel argument depends on a host-side number: see ``StaticSlotTable`` in avl/cache/slots.py. Graphs need one row layout
and one GPU; everything else, and every CPU, decodes eagerly with the same tokens. The tests run the same steps uncaptured on a CPU.

Kernels are warmed up, and a captured step is checked against the eager one, once per model and shape. Capturing, which runs nothing on the
device, is repeated for every answer, because a captured step reads that answer's own buffers, which are freed with it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from avl.cache.cache import AdaptiveCache
from avl.engine.decoder import Decoder
from avl.engine.timing import Clock
from avl.kernels.launch import on_device

WARMUPS = 2  # runs of each kind of step before its capture: libraries and Triton initialize themselves in a first call

_warm: weakref.WeakKeyDictionary[Any, set[tuple[Any, ...]]] = weakref.WeakKeyDictionary()
"""Model -> shapes of steps that were warmed up and checked."""

_streams: weakref.WeakKeyDictionary[Any, dict[torch.device, torch.cuda.Stream]] = weakref.WeakKeyDictionary()
"""Model -> device -> the stream of its warm-ups and captures: libraries keep a workspace per stream for ever, so one is enough."""


def can_capture(model: Any, cache: AdaptiveCache) -> str | None:
    """Return why the steps of this cache cannot be captured, or None if they can."""
    if len(cache.buckets) > 1:
        return "the rows of the batch are laid out differently"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}, not on a CUDA GPU"
    return None


def make_decoder(model: Any, cache: AdaptiveCache) -> Decoder:
    """Return a :class:`GraphDecoder` if its steps can be captured, else an eager decoder."""
    return Decoder(model, cache) if can_capture(model, cache) else GraphDecoder(model, cache)


class GraphDecoder(Decoder):
    """A Decoder that replays captured steps.

    Attributes:
        prepare_ms: milliseconds that :meth:`prepare` took.
        warmed: whether it had to warm up a new model or shape.
        problem: why steps run eagerly, None if they are replayed.

    Raises:
        ValueError: the rows differ in layout.
    """

    def __init__(self, model: Any, cache: AdaptiveCache) -> None:
        super().__init__(model, cache)
        if len(cache.buckets) > 1:
            raise ValueError(f"these steps have no fixed addresses, {can_capture(model, cache)}: use avl.engine.decoder.Decoder")
        self.problem = can_capture(model, cache)
        self.prepare_ms = 0.0
        self.warmed = False
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._tokens = torch.zeros(cache.batch_size, dtype=torch.long, device=model.device)
        self._logits: dict[bool, torch.Tensor] = {}
        cache.static = True

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run a step as :meth:`Decoder.step` does; the next step of the same kind overwrites the logits."""
        cache = self._cache
        assert self._positions is not None, "the prompt comes first"
        self.prepare()
        cache.begin_step()
        self._tokens.copy_(tokens)
        if self._graphs:
            self._graphs[cache.update_step].replay()
            logits = self._logits[cache.update_step]
        else:
            logits = self._forward()
        cache.end_step()
        return logits

    def prepare(self) -> None:
        """Capture one step of each kind that this answer needs; runs once, after the prompt.

        The first captured step of a shape is replayed once and compared with the eager one. If capturing fails or the two differ,
        ``problem`` gives the reason, and steps run eagerly.
        """
        if self._graphs or self.problem is not None:
            return
        device = self._tokens.device
        clock = Clock(device)
        clock.start()
        state = self._state()
        before = [tensor.clone() for tensor in state]
        # torch captures on a stream of the current device, wherever the model is
        with on_device(device):
            current = torch.cuda.current_stream(device)
            try:
                self._capture(state, before)
            except Exception as error:  # out of memory, a driver's refusal, Triton's compiler: each raises its own kind
                self._graphs, self._logits = {}, {}
                self.problem = _first_line(error)
            finally:
                torch.cuda.set_stream(current)  # a capture that cannot be ended leaves its own stream behind
                _put_back(state, before)
        self.prepare_ms = clock.stop()

    def _capture(self, state: list[torch.Tensor], before: list[torch.Tensor]) -> None:
        """Capture and check each kind of step.

        Args:
            state: the tensors that a step changes.
            before: copies of them, restored after every trial.

        Raises:
            RuntimeError: a replayed step differs from the eager one.
            Exception: capturing failed.
        """
        cache, device = self._cache, self._tokens.device
        pool = torch.cuda.graph_pool_handle()
        streams = _streams.setdefault(self._text, {})
        stream = streams[device] = streams.get(device) or torch.cuda.Stream(device)
        graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        for kind in sorted({cache.policy.is_update(t) for t in range(1, cache.max_new_tokens + 1)}):
            with cache.rehearsal(kind):
                eager = self._warm_up(kind, stream, state, before)
                graphs[kind] = torch.cuda.CUDAGraph()
                # other threads, such as the page's, may use the device meanwhile
                with torch.cuda.graph(graphs[kind], pool=pool, stream=stream, capture_error_mode="thread_local"):
                    self._logits[kind] = self._forward()
            if eager is not None:
                self._check(graphs[kind], kind, state, before, eager)
                _warm[self._text].add(self._shape(kind))
        self._graphs = graphs

    def _check(
        self, graph: torch.cuda.CUDAGraph, kind: bool, state: list[torch.Tensor], before: list[torch.Tensor], eager: list[torch.Tensor]
    ) -> None:
        """Compare a replayed step with the eager one, whose logits and state ``eager`` holds; restores the state.

        The logits are poisoned and the state is put back before the replay, so that a graph that holds nothing cannot pass.
        """
        logits = self._logits[kind]
        logits.fill_(torch.nan)
        _put_back(state, before)
        graph.replay()
        for name, found, wanted in zip(["logits", *["state"] * len(state)], [logits, *state], eager, strict=True):
            if not found.is_floating_point():
                if not torch.equal(found, wanted):
                    raise RuntimeError(f"a replayed step leaves another {name} than the eager one")
                continue
            off = (found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
            if not off <= torch.finfo(wanted.dtype).eps ** 0.5:
                raise RuntimeError(f"a replayed step's {name} differ from the eager one's by {float(off):.1e} of the largest value")
        _put_back(state, before)

    def _warm_up(
        self, kind: bool, stream: torch.cuda.Stream, state: list[torch.Tensor], before: list[torch.Tensor]
    ) -> list[torch.Tensor] | None:
        """Run steps on ``stream`` and return the logits and the state they leave; for a shape captured before, do nothing."""
        if self._shape(kind) in _warm.setdefault(self._text, set()):
            return None
        device, eager = self._tokens.device, None
        self.warmed = True
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                _put_back(state, before)
                eager = [tensor.clone() for tensor in (self._forward(), *state)]
            _put_back(state, before)
        torch.cuda.current_stream(device).wait_stream(stream)
        return eager

    def _shape(self, kind: bool) -> tuple[Any, ...]:
        """Return everything that determines which kernels a step runs: all but addresses and values."""
        kvs = [layer.kvs[0] for layer in self._cache.layers]
        stored = [(kv.keys.shape, kv.keys.dtype, kv.image) for kv in kvs]
        how = (kind, self._tokens.device, self.unfused, self._cache.policy)
        return (*how, *stored, *((tensor.shape, tensor.dtype) for tensor in self._state()))

    def _forward(self) -> torch.Tensor:
        """Run the device's part of a step, from ``_tokens`` to logits ``[B, V]``; advances the positions in place."""
        positions = self._positions
        assert positions is not None
        logits = self._run(self._tokens, positions)
        positions += 1
        return logits

    def _state(self) -> list[torch.Tensor]:
        """Return all tensors that a step changes. Keys and values need no restoring: the new token's go to a free slot."""
        assert self._positions is not None
        return [self._positions, *(tensor for table in self._cache.tables for tensor in table.state())]  # type: ignore[attr-defined]


def _put_back(state: list[torch.Tensor], before: list[torch.Tensor]) -> None:
    for tensor, old in zip(state, before, strict=True):
        tensor.copy_(old)


def _first_line(error: BaseException) -> str:
    """Return the first line of the error that began it: one that is raised while a capture ends hides the one that broke it."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0] or type(error).__name__
