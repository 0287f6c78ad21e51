"""Steps at fixed addresses give what eager steps give: on a CPU uncaptured, on a GPU (where there is one) as CUDA graphs."""

from __future__ import annotations

import contextlib
import weakref

import policy_cases
import pytest
import torch
from random_models import ARCHITECTURES, build_model, encode, picture, request, shared_model, shared_processor

import avl
from avl.engine.cuda_graphs import WARMUPS, GraphDecoder, can_capture, make_decoder
from avl.engine.decoder import Decoder
from avl.trace import End, Warning

STEPS = 9
POLICIES = (
    *policy_cases.POLICIES,
    avl.AVL(S=45, C=30, K=3),
    avl.AVL(S=45, C=30, K=2, P=70, T=50),
    avl.AVL(S=60, C=30, K=1, T=100),
    avl.AVL(S=50, T=10),
)


def both(model, inputs, policy, steps=STEPS, new=STEPS):
    """The same tokens through an eager and a fixed decoder: pairs of logits, and the two caches."""
    caches = [avl.make_cache(model, inputs, policy, max_new_tokens=new) for _ in range(2)]
    eager, fixed = Decoder(model, caches[0]), GraphDecoder(model, caches[1])
    pairs = [(eager.prefill(inputs), fixed.prefill(inputs).clone())]
    for _ in range(steps):
        tokens = pairs[-1][0].argmax(dim=-1)
        pairs.append((eager.step(tokens), fixed.step(tokens).clone()))
        one, two = caches
        assert two.stored_tokens == one.stored_tokens
        assert two.read_tokens == one.read_tokens
        assert two.allocated_bytes == one.allocated_bytes
        for row in range(one.batch_size):
            assert two.image_sets(row) == one.image_sets(row)
            for layer in range(len(one.layers)):
                assert two.text_positions(layer, row) == one.text_positions(layer, row)
    return pairs, caches


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@torch.inference_mode()
def test_fixed_addresses_change_nothing(architecture, policy, model, processor):
    inputs = dict(encode(processor, [request(1, before=5, after=7)]))
    pairs, _ = both(model, inputs, policy)
    for one, two in pairs:
        torch.testing.assert_close(two, one, rtol=2e-5, atol=2e-5)


@torch.inference_mode()
def test_rows_laid_out_alike_run_together():
    model = avl.attach(shared_model("llava"))
    processor = shared_processor("llava")
    inputs = dict(encode(processor, [request(1), request(2), request(3)]))
    pairs, caches = both(model, inputs, avl.AVL(S=45, C=30, K=3, T=60))
    assert len(caches[0].buckets) == 1
    for one, two in pairs:
        torch.testing.assert_close(two, one, rtol=2e-5, atol=2e-5)


@torch.inference_mode()
def test_nothing_is_read_behind_the_length():
    """Free slots hold NaN: were one read, the logits would be NaN."""
    model, processor = avl.attach(shared_model("llava")), shared_processor("llava")
    inputs = dict(encode(processor, [request(1), request(2)]))
    cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=2), max_new_tokens=20)
    decoder = GraphDecoder(model, cache)
    tokens = decoder.prefill(inputs).argmax(dim=-1)
    for layer in cache.layers:
        for kv in layer.kvs:
            stored = kv.image + kv.count
            kv.keys[:, stored:] = torch.nan
            kv.values[:, stored:] = torch.nan
    for _ in range(5):
        logits = decoder.step(tokens)
        assert logits.isfinite().all()
        tokens = logits.argmax(dim=-1)


@torch.inference_mode()
def test_a_step_keeps_every_address():
    """What a graph needs: no tensor of the state is replaced."""
    model, processor = avl.attach(shared_model("llava")), shared_processor("llava")
    inputs = dict(encode(processor, [request(1)]))
    cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=2, T=30), max_new_tokens=12)
    decoder = GraphDecoder(model, cache)
    tokens = decoder.prefill(inputs).argmax(dim=-1)

    def addresses():
        return [tensor.data_ptr() for tensor in decoder._state()] + [flat.data_ptr() for layer in cache.layers for flat in layer.flat]

    before = addresses()
    for _ in range(12):
        tokens = decoder.step(tokens).argmax(dim=-1)
    assert addresses() == before
    with pytest.raises(ValueError, match="room for 12 new tokens"):
        decoder.step(tokens)


@torch.inference_mode()
def test_rows_laid_out_differently_are_refused():
    model, processor = avl.attach(shared_model("llava")), shared_processor("llava")
    inputs = dict(encode(processor, [request(1), request(2, before=6, after=9)]))
    cache = avl.make_cache(model, inputs, avl.AVL(S=45), max_new_tokens=4)
    with pytest.raises(ValueError, match="laid out differently"):
        GraphDecoder(model, cache)
    assert can_capture(model, avl.make_cache(model, dict(encode(processor, [request(1)])), avl.Full(), 4)) == (
        "the model is on cpu, not on a CUDA GPU"
    )


def test_where_nothing_can_be_captured_steps_are_eager():
    model, processor = avl.attach(shared_model("llava")), shared_processor("llava")
    inputs = dict(encode(processor, [request(1)]))
    assert type(make_decoder(model, avl.make_cache(model, inputs, avl.Full(), 4))) is Decoder


@torch.inference_mode()
def test_a_failed_capture_is_told_and_changes_nothing(monkeypatch):
    """As on a GPU whose driver refuses: the answer goes on eagerly, from the state before."""
    model, processor = avl.attach(shared_model("llava")), shared_processor("llava")
    inputs = dict(encode(processor, [request(1)]))

    def fail(self, state, before):
        self._cache.update_step = True
        self._forward()
        raise RuntimeError("operation not permitted\nmore of it")

    monkeypatch.setattr(GraphDecoder, "_capture", fail)
    monkeypatch.setattr("avl.engine.cuda_graphs.can_capture", lambda *_: None)
    monkeypatch.setattr("avl.engine.runner.make_decoder", GraphDecoder)
    one, two = avl.make_cache(model, inputs, POLICIES[2], STEPS), avl.make_cache(model, inputs, POLICIES[2], STEPS)
    eager, fixed = Decoder(model, one), GraphDecoder(model, two)
    tokens = eager.prefill(inputs).argmax(dim=-1)
    fixed.prefill(inputs)
    for _ in range(STEPS):
        logits = eager.step(tokens)
        torch.testing.assert_close(fixed.step(tokens), logits, rtol=2e-5, atol=2e-5)
        tokens = logits.argmax(dim=-1)
    assert fixed.problem == "operation not permitted"
    events = list(avl.stream(model, processor, picture(1), "what is this ?", POLICIES[2], max_new_tokens=4))
    (warning,) = (event for event in events if isinstance(event, Warning))
    assert warning.message.endswith("every step pays its launches: operation not permitted")
    assert isinstance(events[-1], End)


class PlayedGraph:
    """Stands for torch.cuda.CUDAGraph without a GPU: what a capture queues is not run, and a replay runs it at the same addresses."""

    captures = 0

    def capture(self, decoder: GraphDecoder) -> None:
        self.decoder = decoder
        self.kind = decoder._cache.update_step
        self.before = [tensor.clone() for tensor in decoder._state()]
        PlayedGraph.captures += 1

    def end(self) -> None:
        for tensor, old in zip(self.decoder._state(), self.before, strict=True):
            tensor.copy_(old)  # nothing has run

    def replay(self) -> None:
        cache = self.decoder._cache
        t, kind = cache.t, cache.update_step
        cache.t, cache.update_step = max(t, 1), self.kind  # the recorded step's own
        self.decoder._logits[self.kind].copy_(self.decoder._forward())
        cache.t, cache.update_step = t, kind


@pytest.fixture
def graphs(monkeypatch):
    """A CPU that captures: the decoders that are made, in order."""
    made: list[GraphDecoder] = []
    start = GraphDecoder.__init__

    def note(self, *args):
        start(self, *args)
        made.append(self)

    @contextlib.contextmanager
    def graph(played, pool=None, capture_error_mode=None):
        assert capture_error_mode == "thread_local"
        played.capture(made[-1])
        yield
        played.end()

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass

    monkeypatch.setattr(GraphDecoder, "__init__", note)
    monkeypatch.setattr("avl.engine.cuda_graphs.can_capture", lambda *_: None)
    monkeypatch.setattr("avl.engine.cuda_graphs._warm", weakref.WeakKeyDictionary())
    for name, stand_in in {
        "CUDAGraph": PlayedGraph,
        "graph": graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph_pool_handle": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    PlayedGraph.captures = 0
    return made


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@torch.inference_mode()
def test_replayed_steps_are_the_eager_ones(policy, graphs):
    """All that surrounds a capture, with a graph that is played without a GPU."""
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    inputs = dict(encode(processor, [request(1)]))
    pairs, _ = both(model, inputs, policy)
    assert graphs[-1].problem is None
    assert graphs[-1]._graphs.keys() == {policy.is_update(t) for t in range(1, STEPS + 1)}
    for one, two in pairs:
        torch.testing.assert_close(two, one, rtol=2e-5, atol=2e-5)


@torch.inference_mode()
def test_warm_up_is_once_per_shape(graphs, monkeypatch):
    """An answer of a known shape is captured, and nothing of it runs; another shape, or another model, is warmed up and checked anew."""
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    runs = []
    forward = GraphDecoder._forward
    monkeypatch.setattr(GraphDecoder, "_forward", lambda self: runs.append(1) or forward(self))

    def prepared(model=model, new=STEPS, words=3) -> tuple[bool, int, int]:
        """Whether it was warmed up; forward passes (a capture traces one); captures."""
        inputs = dict(encode(processor, [request(1, after=words)]))
        decoder = GraphDecoder(model, avl.make_cache(model, inputs, POLICIES[1], max_new_tokens=new))
        decoder.prefill(inputs)
        runs.clear()
        PlayedGraph.captures = 0
        decoder.prepare()
        assert decoder.problem is None
        return decoder.warmed, len(runs), PlayedGraph.captures

    kinds, passes = 2, WARMUPS + 2  # a capture and a replay
    assert prepared() == (True, kinds * passes, kinds)
    assert prepared() == (False, kinds, kinds)
    assert prepared(new=STEPS + 1) == (True, kinds * passes, kinds)
    assert not prepared(words=4)[0]  # one word more, one new token less: the same shape
    assert prepared(words=20)[0]
    assert prepared(model=avl.attach(build_model("llava-llama")))[0]
    assert prepared() == (False, kinds, kinds)


@torch.inference_mode()
def test_a_replay_that_differs_is_not_trusted(graphs, monkeypatch):
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    inputs = dict(encode(processor, [request(1)]))
    replay = PlayedGraph.replay

    def wrong(self):
        replay(self)
        self.decoder._logits[self.kind] += 1

    monkeypatch.setattr(PlayedGraph, "replay", wrong)
    pairs, _ = both(model, inputs, POLICIES[1])
    assert "a replayed step differs from the eager one" in graphs[-1].problem
    for one, two in pairs:
        torch.testing.assert_close(two, one, rtol=2e-5, atol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@torch.inference_mode()
def test_captured_steps_are_the_eager_ones(policy):
    model, processor = avl.attach(build_model("llava").to("cuda")), shared_processor("llava")
    inputs = {name: value.to("cuda") for name, value in encode(processor, [request(1)]).items()}
    pairs, caches = both(model, inputs, policy)
    assert caches[1].static
    for one, two in pairs:
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)
