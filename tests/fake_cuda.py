"""A stand-in for torch.cuda that captures steps on a CPU."""

from __future__ import annotations

import contextlib
import gc
import weakref

import torch

from avl.engine.cuda_graphs import GraphDecoder


class Cuda:
    """Stands for torch.cuda without a GPU, with the rules by which work finds its device and its stream.

    Two devices; the current one is 0, the model is on 1 (a CPU in truth). A capture records what is queued on the capturing stream and runs
    nothing of it; what is queued on another stream runs. A graph made without a stream captures on one of the current device, as torch's
    does, and a capture that cannot be ended leaves its stream behind, as torch's does.
    """

    MODEL = 1

    class Stream:
        def __init__(self, device=None):
            self.device = CUDA.number(device)

        def wait_stream(self, other):
            assert other.device == self.device

    class Graph:
        """torch.cuda.CUDAGraph: a replay runs a step of the captured kind at the same addresses."""

        def __init__(self):
            self.decoder = None

        def replay(self):
            if self.decoder is None:
                return  # nothing was captured: torch warns, and replays nothing
            cache = self.decoder._cache
            t, kind = cache.t, cache.update_step
            cache.t, cache.update_step = max(t, 1), self.kind  # the recorded step's own
            with contextlib.nullcontext() if cache.in_pass else cache.rehearsal(self.kind):
                self.decoder._logits[self.kind].copy_(self.decoder._forward())
            cache.t, cache.update_step = t, kind

    def __init__(self):
        self.left_open = []  # contexts; first, so that what a former test left open is left now
        self.at_end = None  # raised when a capture ends
        self.current = 0
        self.streams = {0: None, 1: None}  # device -> current stream; the default ones come below
        self.shared = None  # torch.cuda.graph's own stream, made at its first use
        self.captures = 0
        self.made: list[GraphDecoder] = []

    def forget(self):
        """Let go of the decoders, and of their graphs, which hold them."""
        self.made.clear()
        gc.collect()

    def number(self, device):
        if device is None:
            return self.current
        return self.MODEL if torch.device(device).type == "cpu" else torch.device(device).index

    def current_stream(self, device=None):
        return self.streams[self.number(device)]

    def set_stream(self, stream):
        self.streams[stream.device] = stream

    @contextlib.contextmanager
    def device(self, device):
        before, self.current = self.current, self.number(device)
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def stream(self, stream):
        before = self.streams[stream.device], self.current
        self.streams[stream.device], self.current = stream, stream.device
        try:
            yield
        finally:
            self.streams[stream.device], self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode=None):
        assert capture_error_mode == "thread_local"
        if stream is None:
            stream = self.shared = self.shared or Cuda.Stream()
        decoder = self.made[-1]
        before = [tensor.clone() for tensor in decoder._state()]
        inside = self.stream(stream)
        inside.__enter__()
        self.captures += 1
        try:
            yield
            recorded = self.streams[self.MODEL] is stream  # where the model's launches went
        except Exception:
            if self.at_end is not None:
                self.left_open.append(inside)  # were it collected, it would be left after all
                raise self.at_end  # noqa: B904  (as torch's __exit__, which then does not leave the stream)
            inside.__exit__(None, None, None)
            raise
        if recorded:
            graph.decoder, graph.kind = decoder, decoder._cache.update_step
            for tensor, old in zip(decoder._state(), before, strict=True):
                tensor.copy_(old)  # nothing has run
        inside.__exit__(None, None, None)


CUDA = Cuda()


def install(monkeypatch):
    """Put the stand-in in place of torch.cuda, and return it."""
    CUDA.__init__()
    CUDA.streams = {number: Cuda.Stream(f"cuda:{number}") for number in (0, 1)}
    monkeypatch.setattr(CUDA, "made", [])  # so that no cache outlives the test
    start = GraphDecoder.__init__

    def note(self, *args):
        start(self, *args)
        CUDA.made.append(self)

    monkeypatch.setattr(GraphDecoder, "__init__", note)
    monkeypatch.setattr("avl.engine.cuda_graphs.can_capture", lambda *_: None)
    monkeypatch.setattr("avl.engine.cuda_graphs.on_device", CUDA.device)
    for known in ("_warm", "_streams"):
        monkeypatch.setattr(f"avl.engine.cuda_graphs.{known}", weakref.WeakKeyDictionary())
    for name in ("graph", "current_stream", "set_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(CUDA, name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Cuda.Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Cuda.Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return CUDA
