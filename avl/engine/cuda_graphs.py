"""Decode steps as CUDA graphs: a step is captured once per kind (core step, update step) and replayed for every token.

A step of a 7B model launches about a thousand kernels, most of them shorter than their launch; a graph launches them all at once. This
requires that no kernel argument depends on a host-side number: see ``StaticSlotTable`` in avl/cache/slots.py. Graphs need one GPU;
everything else, and every CPU, decodes eagerly with the same tokens. The tests run the same steps uncaptured on a CPU.

Kernels are warmed up, and a captured step is checked against the eager one, once per model and shape. Capturing, which runs nothing on the
device, is repeated for every answer, because a captured step reads that answer's own buffers, which are freed with it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from avl.cache import joined
from avl.cache.cache import AdaptiveCache
from avl.engine.decoder import Decoder, put_back
from avl.engine.failures import out_of_memory
from avl.engine.timing import Clock
from avl.kernels.launch import on_device

WARMUPS = 2  # runs of each kind of step before its capture: libraries and Triton initialize themselves in a first call

_warm: weakref.WeakKeyDictionary[Any, set[tuple[Any, ...]]] = weakref.WeakKeyDictionary()
"""Model -> shapes of steps that were warmed up and checked."""

_streams: weakref.WeakKeyDictionary[Any, dict[torch.device, list[torch.cuda.Stream]]] = weakref.WeakKeyDictionary()
"""Model -> device -> streams for warm-ups and captures that no answer uses now.

A library keeps a workspace per stream, and torch may free that of a capture with any graph captured there. So no two living answers share a
stream, and one after the other they do.
"""


def can_capture(model: Any, cache: AdaptiveCache) -> str | None:
    """Return why the steps of this cache cannot be captured, or None if they can."""
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    if len(cache.buckets) > 1 and not joined.joins(model.device):
        return "the rows of the batch are laid out differently"
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
        out_of_memory: whether that is because there was too little memory to capture them.

    Raises:
        ValueError: the rows differ in layout.
    """

    def __init__(self, model: Any, cache: AdaptiveCache) -> None:
        super().__init__(model, cache)
        if len(cache.buckets) > 1 and not joined.joins(model.device):
            raise ValueError(f"these steps have no fixed addresses, {can_capture(model, cache)}: use avl.engine.decoder.Decoder")
        self.problem = can_capture(model, cache)
        self.uncompiled = self.uncompiled or "they are replayed"
        self.out_of_memory = False
        self.prepare_ms = 0.0
        self.warmed = False
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._fixed = torch.zeros(cache.batch_size, dtype=torch.long, device=model.device)  # tokens, where a captured step reads them
        self._logits: dict[bool, torch.Tensor] = {}
        cache.static = True

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run a step as :meth:`Decoder.step` does; the next step of the same kind overwrites the logits."""
        cache = self._cache
        assert self._positions is not None, "the prompt comes first"
        self.prepare()
        cache.begin_step()
        self._take(tokens)
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
        device = self._fixed.device
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
                # not the error itself, whose frames hold this decoder and its memory
                self.out_of_memory = any(map(out_of_memory, _chain(error)))
            finally:
                torch.cuda.set_stream(current)  # a capture that cannot be ended leaves its own stream behind
                put_back(state, before)
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
        cache = self._cache
        pool = torch.cuda.graph_pool_handle()
        stream, fresh = self._take_stream()
        graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        for kind in sorted({cache.policy.is_update(t) for t in range(1, cache.max_new_tokens + 1)}):
            with cache.rehearsal(kind):
                self._take(self._fixed)  # makes the memory that a captured step begins with
                eager = self._warm_up(kind, stream, state, before, fresh)
                graphs[kind] = torch.cuda.CUDAGraph()
                # other threads, such as the page's, may use the device meanwhile
                with torch.cuda.graph(graphs[kind], pool=pool, stream=stream, capture_error_mode="thread_local"):
                    self._logits[kind] = self._forward()
            if eager is not None:
                self._check(graphs[kind], kind, state, before, eager)
                _warm[self._text].add(self._shape(kind))
        self._graphs = graphs

    def _take_stream(self) -> tuple[torch.cuda.Stream, bool]:
        """Return a stream that is this answer's until it is deleted, and whether it is new."""
        device = self._fixed.device
        idle = _streams.setdefault(self._text, {}).setdefault(device, [])
        fresh = not idle
        stream = torch.cuda.Stream(device) if fresh else idle.pop()
        weakref.finalize(self, idle.append, stream).atexit = False
        return stream, fresh

    def _check(
        self, graph: torch.cuda.CUDAGraph, kind: bool, state: list[torch.Tensor], before: list[torch.Tensor], eager: list[torch.Tensor]
    ) -> None:
        """Compare a replayed step with the eager one, whose logits and state ``eager`` holds; restores the state.

        The logits are poisoned and the state is put back before the replay, so that a graph that holds nothing cannot pass.
        """
        logits = self._logits[kind]
        logits.fill_(torch.nan)
        put_back(state, before)
        self._take(self._fixed)
        graph.replay()
        for name, found, wanted in zip(["logits", *["state"] * len(state)], [logits, *state], eager, strict=True):
            if not found.is_floating_point():
                if not torch.equal(found, wanted):
                    raise RuntimeError(f"a replayed step leaves another {name} than the eager one")
                continue
            off = (found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny)
            if not off <= torch.finfo(wanted.dtype).eps ** 0.5:
                raise RuntimeError(f"a replayed step's {name} differ from the eager one's by {float(off):.1e} of the largest value")
        put_back(state, before)

    def _warm_up(
        self, kind: bool, stream: torch.cuda.Stream, state: list[torch.Tensor], before: list[torch.Tensor], fresh: bool
    ) -> list[torch.Tensor] | None:
        """Run steps on ``stream`` and return the logits and the state they leave; for a shape captured before, do nothing.

        A ``fresh`` stream is warmed up in any case, or its workspace would be made while a graph is captured, and belong to that.
        """
        if self._shape(kind) in _warm.setdefault(self._text, set()) and not fresh:
            return None
        device, eager = self._fixed.device, None
        self.warmed = True
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                put_back(state, before)
                self._take(self._fixed)
                eager = [tensor.clone() for tensor in (self._forward(), *state)]
            put_back(state, before)
        torch.cuda.current_stream(device).wait_stream(stream)
        return eager

    def _shape(self, kind: bool) -> tuple[Any, ...]:
        """Return everything that determines which kernels a step runs: all but addresses and values."""
        kvs = [kv for layer in self._cache.layers for kv in layer.kvs]
        stored = [(kv.keys.shape, kv.keys.dtype, kv.image) for kv in kvs]
        looks_up = self._layers is not None and self._layers.looks_up
        how = (kind, self._fixed.device, self.unfused, looks_up, self._cache.policy)
        return (*how, *stored, *((tensor.shape, tensor.dtype) for tensor in self._state()))

    def _keep(self, tokens: torch.Tensor) -> None:
        self._tokens = self._fixed.copy_(tokens)

    def _state(self) -> list[torch.Tensor]:
        """Return all tensors that a step changes. Keys and values need no restoring: the new token's go to a free slot."""
        assert self._positions is not None
        held: list[Any] = [*self._cache.tables, *self._cache.joined]
        return [self._positions, *(tensor for one in held for tensor in one.state())]


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and those before it: one that is raised while a capture ends hides the one that broke it."""
    return [error] if error.__context__ is None else [error, *_chain(error.__context__)]


def _first_line(error: BaseException) -> str:
    """Return the first line of the error that began it."""
    error = _chain(error)[-1]
    return str(error).strip().partition("\n")[0] or type(error).__name__
