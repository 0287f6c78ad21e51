"""Text tokens followed from step to step are those that the cache holds: every policy with a window, every kind of step, every row."""

from __future__ import annotations

import policy_cases
import pytest
import torch
from fake_cuda import install
from random_models import ARCHITECTURES, RAGGED, build_model, encode, picture, request, shared_processor

import avl
from avl.cache import joined
from avl.cache.evictions import TextTokens
from avl.cache.readback import Readback
from avl.engine.cuda_graphs import GraphDecoder, make_decoder
from avl.engine.decoder import Decoder
from avl.engine.runner import Runner
from avl.engine.text import token_texts
from avl.trace import Sets, Start, Step, TextSets, Trace, pack_bits, unpack_bits

pytestmark = pytest.mark.filterwarnings("ignore:Use of index_put_ on expanded tensors")

STEPS = 9
POLICIES = (
    *policy_cases.POLICIES,
    avl.AVL(S=45, C=30, K=2, T=30),
    avl.AVL(S=60, T=10),
    avl.AVL(S=60, T=85),  # full after some steps
    avl.AVL(S=60, T=100),
    avl.H2O(keep=20),
    avl.H2O(keep=90),
    avl.PyramidKV(keep=30, window=2, pool=3, beta=5),
    avl.StreamingLLM(keep=15, sinks=2),
)
LABELS = {policy.label: policy for policy in POLICIES}


def positions(cache, row):
    """Per layer, the positions of the text tokens that the cache says it holds."""
    return [cache.text_positions(layer, row) for layer in range(len(cache.layers))]


def follow(model, inputs, policy, kind, steps=STEPS, prepare=False):
    """Every row's text tokens step by step, compared with the cache's own; the tokens lost."""
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=steps)
    decoder = kind(model, cache)
    logits, rows = decoder.prefill(inputs), range(cache.batch_size)
    followed = [TextTokens(cache, row) for row in rows]
    held, lost = [], 0
    for row in rows:
        n_text, kept = cache.rows[row].n_text, followed[row].prompt
        held.append([set(tokens) for tokens in kept] if kept else [set(range(n_text)) for _ in cache.layers])
        lost += sum(n_text - len(tokens) for tokens in held[row])
    if prepare:
        decoder.prepare()

    def compare():
        for row in rows:
            layout = cache.rows[row]
            at = [*layout.text, *range(layout.length, layout.length + steps)]
            assert [sorted(at[token] for token in tokens) for tokens in held[row]] == positions(cache, row)

    compare()
    for t in range(1, steps + 1):
        logits = decoder.step(logits.argmax(dim=-1))
        for row in rows:
            gone = followed[row].follow(t, followed[row].freed(t)) or [[] for _ in cache.layers]
            for tokens, left in zip(held[row], gone, strict=True):
                tokens.add(cache.rows[row].n_text + t - 1)
                assert tokens >= set(left)
                assert left == sorted(set(left))
                tokens -= set(left)
                lost += len(left)
        compare()
    return cache, lost


@pytest.mark.parametrize("kind", [Decoder, make_decoder, GraphDecoder])
@pytest.mark.parametrize("label", LABELS)
@torch.inference_mode()
def test_they_are_those_of_the_cache(label, kind):
    model = avl.attach(build_model("next-mistral"))
    inputs = dict(encode(shared_processor("next-mistral"), [request(1, before=9, after=12), request(1, before=9, after=12)]))
    cache, lost = follow(model, inputs, LABELS[label], kind)
    limited = any(window.size is not None or window.start < window.prompt for window in cache.buckets[0].windows)
    assert limited or not lost


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
@torch.inference_mode()
def test_rows_of_different_layouts(label, together, architecture, model, processor, monkeypatch):
    monkeypatch.setattr(joined, "joins", lambda device: together)
    cache, _ = follow(model, dict(encode(processor, (RAGGED[1], RAGGED[0], RAGGED[2], RAGGED[0]))), LABELS[label], Decoder)
    assert bool(cache.joined) == together


@pytest.mark.parametrize("label", LABELS)
@torch.inference_mode()
def test_replayed_steps(label, monkeypatch):
    """The steps that are captured run before, uncounted; what they change is put back."""
    install(monkeypatch)
    model = avl.attach(build_model("next-mistral"))
    follow(
        model, dict(encode(shared_processor("next-mistral"), [request(2, before=9, after=12)])), LABELS[label], GraphDecoder, prepare=True
    )


@pytest.mark.parametrize("label", ["AVL", "H2O", "PyramidKV", "StreamingLLM"])
@torch.inference_mode()
def test_every_policy_of_the_table_loses_text_somewhere(label):
    """Otherwise the comparisons above would compare nothing."""
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    inputs = dict(encode(processor, [request(1, before=20, after=30)]))
    policy = next(one for one in POLICIES if one.name == label)
    assert follow(model, inputs, policy, Decoder)[1] > 0


def of_trace(trace: Trace, arm: int = 0):
    """Per step, per layer, the numbers of the text tokens held, from the events alone."""
    start: Start = trace.start
    held = [set(range(start.n_text)) for _ in range(start.layers)]
    states = []
    for event in trace:
        if isinstance(event, TextSets) and event.t == 0 and event.arm == arm:
            held = [set(unpack_bits(kept, start.n_text).nonzero()[0].tolist()) for kept in event.kept]
        elif isinstance(event, Step) and event.arm == arm:
            states.append([set(tokens) for tokens in held])
            held = [tokens | {start.n_text + event.t - 1} for tokens in held]
        elif isinstance(event, TextSets) and event.arm == arm:
            held = [tokens - set(gone) for tokens, gone in zip(held, event.gone, strict=True)]
    return [*states, held]


@pytest.mark.parametrize("label", LABELS)
def test_a_trace_tells_what_every_layer_holds_at_every_step(label, monkeypatch):
    model, processor, policy = avl.attach(build_model("next-mistral")), shared_processor("next-mistral"), LABELS[label]
    found = []
    original = Runner._report

    def watched(self, step):
        found.append(positions(self.cache, 0))  # on a CPU no step runs ahead
        yield from original(self, step)

    monkeypatch.setattr(Runner, "_report", watched)
    question = "what is on the sign ? red blue left w1 w2 w3"
    trace = Trace(list(avl.stream(model, processor, picture(1), question, policy, max_new_tokens=14, batch=2)))
    trace = Trace.from_json(trace.to_json())
    start, states = trace.start, of_trace(trace)
    text = [at for name, first, stop in start.spans if name != "image" for at in range(first, stop)]
    at = [*text, *range(start.n_image + start.n_text, start.n_image + start.n_text + start.limit)]
    assert [[sorted(at[token] for token in tokens) for tokens in layers] for layers in states[1:]] == found
    assert len(start.text) == start.n_text
    assert "".join(start.text).count("sign") == 1


def test_it_takes_little_of_a_trace():
    """At LLaVA-1.6's size, as K = 3 gives it: one token of each layer a step, beside the sets of every third step."""
    layers, n_image, n_text, steps = 40, 2928, 60, 255
    core = tuple(pack_bits(range(900), n_image) for _ in range(layers))
    text = [TextSets(0, t, None, ((n_text + t - 1,),) * layers) for t in range(1, steps + 1)]
    sets = [Sets(0, t, None, core) for t in range(3, steps + 1, 3)]
    size = [len(Trace(list(events)).to_json()) for events in (text, sets)]
    assert size[0] < 0.1 * size[1]


def test_only_freed_slots_are_copied_after_the_prompt(monkeypatch):
    """At real scale the table of slots is megabytes, what a step frees is a number a head."""
    model, processor = avl.attach(build_model("next-mistral")), shared_processor("next-mistral")
    inputs = dict(encode(processor, [request(1, before=9, after=12)]))
    copied = []
    monkeypatch.setattr(
        Readback, "__init__", lambda self, tensor: (copied.append(tensor.numel()), setattr(self, "_copy", tensor.clone()))[0]
    )
    monkeypatch.setattr(Readback, "get", lambda self: self._copy)
    with torch.inference_mode():
        cache = avl.make_cache(model, inputs, avl.H2O(keep=20), max_new_tokens=STEPS)
        decoder = Decoder(model, cache)
        logits = decoder.prefill(inputs)
        followed = TextTokens(cache)
        _ = followed.prompt
        copied.clear()
        for t in range(1, STEPS):
            logits = decoder.step(logits.argmax(dim=-1))
            followed.follow(t, followed.freed(t))
    heads = cache.layers[0].kvs[0].token_idx.shape[1]
    assert copied
    assert max(copied) <= len(cache.layers) * heads


def test_the_prompts_words_are_told():
    class Tokens:
        all_special_ids = (0,)

        @staticmethod
        def decode(ids, **_):
            return "".join(["", " a", " b", "\ufffd", "c"][one] for one in ids).removeprefix(" ")

        @staticmethod
        def convert_ids_to_tokens(one):
            return "<s>" if one == 0 else "?"

    assert token_texts(Tokens(), [0, 1, 2, 3, 4, 0, 4]) == ("<s>", "a", " b", "\ufffd", "c", "<s>", "c")
    assert token_texts(Tokens(), []) == ()
