"""Steps at fixed addresses give what eager steps give: on a CPU uncaptured, on a GPU (where there is one) as CUDA graphs."""

from __future__ import annotations

import contextlib

import policy_cases
import pytest
import torch
from fake_cuda import Cuda, install
from random_models import ARCHITECTURES, build_model, encode, picture, request, shared_model, shared_processor

import avl
from avl.engine import cuda_graphs
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
    avl.AVL(S=45, C=30, K=2, P=70, T=50, spread=40),
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


@pytest.fixture
def cuda(monkeypatch):
    """A CPU that captures."""
    return install(monkeypatch)


def prepared(policy=POLICIES[1], rows=1):
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    return model, processor, dict(encode(processor, [request(number + 1) for number in range(rows)])), policy


def same(pairs):
    for one, two in pairs:
        torch.testing.assert_close(two, one, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@pytest.mark.parametrize("rows", [1, 2])
@torch.inference_mode()
def test_replayed_steps_are_the_eager_ones(policy, rows, cuda):
    """All that surrounds a capture, with the model on another device than the current one."""
    model, _, inputs, policy = prepared(policy, rows)
    pairs, _ = both(model, inputs, policy)
    (decoder,) = cuda.made
    assert decoder.problem is None
    assert decoder._graphs.keys() == {policy.is_update(t) for t in range(1, STEPS + 1)}
    assert all(graph.decoder is decoder for graph in decoder._graphs.values()), "a graph is empty: its work went to another stream"
    assert cuda.current == 0
    same(pairs)


@torch.inference_mode()
def test_steps_of_the_whole_model_are_replayed_too(cuda):
    """A model that cannot be fused runs its own forward within the graph; the hooks then count nothing."""
    model, _, inputs, policy = prepared()
    model.model.language_model.register_forward_hook(lambda *_: None)
    pairs, caches = both(model, inputs, policy)
    (decoder,) = cuda.made
    assert "the text model has a hook" in decoder.unfused
    assert decoder.problem is None
    assert caches[0].t == caches[1].t == STEPS
    same(pairs)


@torch.inference_mode()
def test_an_embedding_with_a_hook_runs_within_the_captured_step(cuda):
    """A plain one is looked up before it; the same shape is then warmed up anew, because other kernels run."""
    model, _, inputs, policy = prepared()
    both(model, inputs, policy)
    seen = []
    model.model.language_model.embed_tokens.register_forward_hook(lambda module, given, found: seen.append(1) or 2 * found)
    pairs, _ = both(model, inputs, policy)
    first, second = cuda.made
    assert (first._layers.looks_up, second._layers.looks_up) == (True, False)
    assert first.warmed
    assert second.warmed
    assert second.problem is None
    assert seen
    same(pairs)


@torch.inference_mode()
def test_a_capture_on_another_stream_is_not_trusted(cuda, monkeypatch):
    """Were neither device nor stream given, torch would capture on the current device and the graph be empty: the check must say so."""
    model, _, inputs, policy = prepared()
    monkeypatch.setattr("avl.engine.cuda_graphs.on_device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, stream=None, **options: cuda.graph(*args, **options))
    pairs, _ = both(model, inputs, policy)
    assert "by nan of the largest value" in cuda.made[0].problem
    same(pairs)


@pytest.mark.parametrize(("what", "said"), [("_logits", "logits differ"), ("_positions", "another state"), ("index", "another state")])
@torch.inference_mode()
def test_a_replay_that_differs_is_not_trusted(what, said, cuda, monkeypatch):
    """In its logits, in the positions, or in the slots of the core."""
    model, _, inputs, policy = prepared()
    replay = Cuda.Graph.replay

    def wrong(self):
        replay(self)
        if what == "_logits":
            self.decoder._logits[self.kind] += 1
        elif what == "_positions":
            self.decoder._positions += 1
        else:
            self.decoder._cache.tables[0].index.flip(-1)
            self.decoder._cache.tables[0].index[..., 0] += 1

    monkeypatch.setattr(Cuda.Graph, "replay", wrong)
    pairs, _ = both(model, inputs, policy)
    assert said in cuda.made[0].problem
    same(pairs)


class CompilationError(Exception):
    """As Triton's: no RuntimeError."""


@pytest.mark.parametrize(
    "first", [RuntimeError("operation not permitted\nmore of it"), CompilationError("no"), torch.OutOfMemoryError("full")]
)
@pytest.mark.parametrize("last", [None, RuntimeError("operation failed due to a previous error during capture")])
@torch.inference_mode()
def test_a_failed_capture_is_told_and_changes_nothing(first, last, cuda, monkeypatch):
    """The answer goes on eagerly, from the state and on the stream before; what is told is the first error, not what it led to."""
    model, processor, inputs, policy = prepared()
    forward = GraphDecoder._forward

    def fail(self):
        logits = forward(self)
        if cuda.captures and not self.problem:
            raise type(first)(*first.args)  # another one, which no parameter keeps with its frames
        return logits

    cuda.at_end = last and type(last)(*last.args)
    monkeypatch.setattr(GraphDecoder, "_forward", fail)
    before = dict(cuda.streams)
    pairs, _ = both(model, inputs, policy)
    assert cuda.made[0].problem == str(first).splitlines()[0]
    assert cuda.streams == before
    assert cuda.current == 0
    same(pairs)
    monkeypatch.setattr("avl.engine.runner.make_decoder", GraphDecoder)
    events = list(avl.stream(model, processor, picture(1), "what is this ?", policy, max_new_tokens=4))
    (warning,) = (event for event in events if isinstance(event, Warning))
    assert warning.message.endswith(f"every step pays its launches: {str(first).splitlines()[0]}")
    assert isinstance(events[-1], End)


@torch.inference_mode()
def test_warm_up_is_once_per_shape(cuda, monkeypatch):
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
        cuda.captures = 0
        decoder.prepare()
        assert decoder.problem is None
        found = decoder.warmed, len(runs), cuda.captures
        del decoder
        cuda.forget()
        return found

    kinds, passes = 2, WARMUPS + 2  # a capture and a replay
    assert prepared() == (True, kinds * passes, kinds)
    assert prepared() == (False, kinds, kinds)
    assert prepared(new=STEPS + 1) == (True, kinds * passes, kinds)
    assert not prepared(words=4)[0]  # one word more, one new token less: the same shape
    assert prepared(words=20)[0]
    assert prepared(model=avl.attach(build_model("llava-llama")))[0]
    assert prepared() == (False, kinds, kinds)
    model.model.language_model.norm.register_forward_hook(lambda *_: None)
    assert prepared()[0]  # the same shape, but no longer the fused step


@torch.inference_mode()
def test_one_stream_serves_every_answer_of_a_model(cuda):
    """cuBLAS keeps a workspace per stream for ever, 32 MiB on Hopper."""
    model, _, inputs, policy = prepared()
    for _ in range(3):
        both(model, inputs, policy, steps=2)
        cuda.forget()
    assert [len(idle) for streams in cuda_graphs._streams.values() for idle in streams.values()] == [1]


@torch.inference_mode()
def test_answers_that_interleave_share_no_stream(cuda, monkeypatch):
    """torch may free a stream's workspace with any graph captured there, while the other answer's graphs still write to it."""
    model, _, inputs, policy = prepared()
    eager = Decoder(model, avl.make_cache(model, inputs, policy, STEPS))
    tokens = [eager.prefill(inputs).argmax(dim=-1)]
    for _ in range(4):
        tokens.append(eager.step(tokens[-1]).argmax(dim=-1))
    used = []
    graph = torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, stream, **options: used.append(stream) or graph(*args, stream=stream, **options))
    living = [GraphDecoder(model, avl.make_cache(model, inputs, policy, STEPS)) for _ in range(2)]
    for decoder in living:
        cuda.made.append(decoder)
        assert torch.equal(decoder.prefill(inputs).argmax(dim=-1), tokens[0])
        decoder.prepare()
        assert decoder.problem is None
        assert decoder.warmed, "a new stream has no workspace yet"
    one, other = used[0], used[-1]
    assert one is not other
    assert [stream is one for stream in used] == [True, True, False, False]
    for step in range(4):
        for decoder in living:
            assert torch.equal(decoder.step(tokens[step]).argmax(dim=-1), tokens[step + 1])
    living.clear()
    del decoder
    cuda.forget()
    again = GraphDecoder(model, avl.make_cache(model, inputs, policy, STEPS))
    again.prefill(inputs)
    again.prepare()
    assert used[-1] in (one, other)
    assert not again.warmed


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
