"""Invariants of every model family, on a tiny random model of its own classes: what holds for LLaVA holds for all.

A family without a tiny model in tests/tiny_families fails here.
"""

from __future__ import annotations

import functools

import family_oracle
import oracle
import pytest
import torch
import transformers
from observed import generate
from test_counts import check as check_counts
from test_oracle import check_sets
from tiny_families import ABSENT, MODELS
from tiny_families.base import HEAD_DIM, RAGGED, encode
from transformers import AttentionInterface

import avl
from avl.engine.decoder import Decoder
from avl.engine.fused import FusedLayers
from avl.models.families import FAMILIES, causal_model, describe, language_model

STEPS = 9
NAMES = sorted(MODELS)

CASES = {
    "avl": (avl.AVL(S=45, C=30, K=3, P=70, T=60), oracle.AVL(S=45, C=30, K=3, P=70, T=60)),
    "spread": (avl.AVL(S=60, C=25, K=2, P=80, spread=33), oracle.AVL(S=60, C=25, K=2, P=80, spread=33)),
    "h2o": (avl.H2O(keep=50), oracle.H2O(keep=50)),
    "snapkv": (avl.SnapKV(keep=50, window=6, pool=3), oracle.SnapKV(keep=50, window=6, pool=3)),
    "fastv": (avl.FastV(layer=2, keep=50), oracle.FastV(layer=2, keep=50)),
}


@functools.cache
def made(name):
    model = MODELS[name].model()
    avl.attach(model)
    return model, MODELS[name].processor()


def prompts(name, rows=RAGGED, seed=0):
    """Rows with pictures of different shapes; one picture a row where the family takes no more."""
    tiny = MODELS[name]
    rows = rows if tiny.pictures else tuple(sizes[:1] for sizes in rows)
    return dict(encode(tiny, made(name)[1], rows, seed))


def plain(model, inputs, steps=STEPS):
    """Tokens ``[B, steps]`` and logits ``steps x [B, V]`` of transformers' own generate, without a cache of ours."""
    out = model.generate(**inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return out.sequences[:, -steps:], out.logits


def decoded(model, inputs, tokens, policy=None):
    """Logits of the engine's loop, fed with ``tokens``."""
    decoder = Decoder(model, avl.make_cache(model, inputs, policy or avl.Full(), max_new_tokens=tokens.shape[1]))
    return decoder, [decoder.prefill(inputs), *(decoder.step(tokens[:, t]) for t in range(tokens.shape[1] - 1))]


def assert_close(found, expected, tolerance=1e-4):
    """Logits agree to float32 rounding, relative to their size."""
    for t, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= tolerance * other.abs().max(), f"step {t}"


def check_every_step(model, inputs, policy, rule):
    """Compare one row's sets, counts and logits, of generate and of the engine's loop, with the oracle's; return what was observed."""
    feed = torch.randint(30, 100, (STEPS,), generator=torch.Generator().manual_seed(5)).tolist()
    observed = generate(model, inputs, policy, STEPS, feed=[feed])
    expected = family_oracle.run(model, inputs, rule, STEPS, feed)
    check_sets(observed, [expected])
    assert_close([logits[0].double() for logits in observed.logits], expected.logits)
    found = decoded(model, inputs, torch.tensor([feed]), policy)[1]
    assert_close([logits[0].double() for logits in found], expected.logits)
    return observed


def test_every_family_has_a_tiny_model():
    assert {tiny.family for tiny in MODELS.values()} | ABSENT == {name for name, family in FAMILIES.items() if family.pictures}
    assert not ABSENT or transformers.__version__.startswith("5.17."), "all of them but on the oldest release"


@pytest.mark.parametrize("rows", [RAGGED[1:2], RAGGED], ids=["alone", "ragged"])
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_full_is_generate(name, rows):
    """In logits and tokens: through ``model.generate`` and through the engine's own loop."""
    model, _ = made(name)
    inputs = prompts(name, rows)
    tokens, expected = plain(model, inputs)
    observed = generate(model, inputs, avl.Full(), STEPS, sets=False)
    assert observed.tokens == tokens.tolist()
    assert_close(observed.logits, expected)
    decoder, found = decoded(model, inputs, tokens)
    assert_close(found, expected)
    assert (decoder.unfused is None) == MODELS[name].fused


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if MODELS[name].fused])
@torch.inference_mode()
def test_fused_steps_are_the_modules(name, merged):
    """Logits and what is stored and read, of a ragged batch under eviction; with projections merged, as on a GPU, and apart."""
    model, inputs = MODELS[name].model(), prompts(name)
    avl.attach(model)
    tokens = torch.randint(30, 100, (len(inputs["input_ids"]), STEPS), generator=torch.Generator().manual_seed(4))
    found, counts = [], []
    for layers in (True, False):
        cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30, K=3, P=70, T=60), max_new_tokens=STEPS)
        decoder = Decoder(model, cache)
        decoder._layers = FusedLayers(model, cache, merged=merged) if layers else None
        found.append([decoder.prefill(inputs), *(decoder.step(tokens[:, t]) for t in range(STEPS - 1))])
        counts.append((cache.stored_tokens, cache.read_tokens, [cache.image_sets(row) for row in range(cache.batch_size)]))
    assert_close(*found)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_every_step_is_the_oracles(name, case):
    """Sets, counts and logits of transformers' own loop in float64, with masks in place of evictions. The tokens fed are random words."""
    check_every_step(made(name)[0], prompts(name, RAGGED[1:2], seed=3), *CASES[case])


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_counts_are_the_closed_form(name):
    """Stored and read at every step and layer, rows of a ragged batch with grids of their own, several pictures in one prompt."""
    model, _ = made(name)
    inputs, facts = prompts(name), describe(model)
    image = (inputs["input_ids"] == facts.image_token_id).sum(1)
    sizes = list(zip(image.tolist(), (inputs["attention_mask"].sum(1) - image).tolist(), strict=True))
    assert len(set(sizes)) > 1
    policy = avl.AVL(S=45, C=30, K=3, P=70, T=60)
    observed = generate(model, inputs, policy, STEPS)
    check_counts(observed.states, policy, sizes, STEPS, 2 * facts.kv_heads * HEAD_DIM * 4)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_attached_and_detached_are_bitwise_the_model(name):
    model = MODELS[name].model()
    inputs = prompts(name)
    before = plain(model, inputs, 4)
    avl.attach(model)
    attached = plain(model, inputs, 4)
    generate(model, inputs, avl.AVL(S=45, C=30, K=3, P=70), 4)
    avl.detach(model)
    detached = plain(model, inputs, 4)
    for tokens, logits in (attached, detached):
        assert torch.equal(tokens, before[0])
        assert all(torch.equal(one, other) for one, other in zip(logits, before[1], strict=True))


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_prompts_interleave(name):
    """Two prompts with pictures of different shapes take turns on one model: a model that counts positions itself knows the last only."""
    model, _ = made(name)
    policy = avl.AVL(S=60, C=30, K=2, P=80)
    both = [prompts(name, RAGGED[0:1]), prompts(name, RAGGED[2:3], seed=7)]
    tokens = torch.randint(30, 100, (1, 5), generator=torch.Generator().manual_seed(1))
    alone = [decoded(model, inputs, tokens, policy)[1] for inputs in both]
    decoders = [Decoder(model, avl.make_cache(model, inputs, policy, max_new_tokens=5)) for inputs in both]
    found = [[decoder.prefill(inputs)] for decoder, inputs in zip(decoders, both, strict=True)]
    for t in range(4):
        for decoder, logits in zip(decoders, found, strict=True):
            logits.append(decoder.step(tokens[:, t]))
    for one, other in zip(found, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_rows_in_pieces_are_rows_together(name, monkeypatch):
    model, _ = made(name)
    inputs = {key: torch.cat([value, value, value]) for key, value in prompts(name, RAGGED[0:1]).items()}
    tokens = torch.randint(30, 100, (3, 4), generator=torch.Generator().manual_seed(2))
    policy = avl.AVL(S=60, C=30, K=2, P=80)
    together = decoded(model, inputs, tokens, policy)[1]
    monkeypatch.setattr("avl.engine.decoder.rows_at_once", lambda length, device="cpu": 2)
    assert_close(decoded(model, inputs, tokens, policy)[1], together)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_prompt_sums_are_those_of_eager_weights(name):
    """What H2O sums per KV head and T per layer: against the weights of the modeling file's own eager attention."""
    model = MODELS[name].model()
    inputs = prompts(name, RAGGED[0:1])
    text = language_model(model)
    found: dict[str, dict[int, torch.Tensor]] = {"kv": {}, "shared": {}}
    weights: dict[int, torch.Tensor] = {}
    modeling = __import__(type(text.layers[0].self_attn).__module__, fromlist=["x"])

    def eager(module, query, key, value, mask, **options):
        out, seen = modeling.eager_attention_forward(module, query, key, value, mask, **options)
        weights[module.layer_idx] = seen[0].unflatten(0, (key.shape[1], -1)).mean(1).sum(1)  # [G, L]
        return out, seen

    AttentionInterface.register("summed_eager", eager)
    family_oracle.AttentionMaskInterface.register("summed_eager", family_oracle.eager_mask)
    before, text.config._attn_implementation = text.config._attn_implementation, "summed_eager"
    model(**inputs)
    text.config._attn_implementation = before
    avl.attach(model)
    for heads, policy in (("kv", avl.H2O(keep=50)), ("shared", avl.AVL(S=100, T=40))):
        cache = avl.make_cache(model, inputs, policy, max_new_tokens=4)
        for layer in cache.layers:
            commit = layer.commit_prompt

            def seen(key, value, image, window, commit=commit, number=layer.number, kind=heads):
                found[kind][number] = window[0][0]
                commit(key, value, image, window)

            layer.commit_prompt = seen
        model(**inputs, past_key_values=cache)
    text_only = [place for place, token in enumerate(inputs["input_ids"][0].tolist()) if token != describe(model).image_token_id]
    for number, expected in weights.items():
        torch.testing.assert_close(found["kv"][number], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["shared"][number][0], expected.mean(0)[text_only], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_causal_models(name):
    model, _ = made(name)
    assert causal_model(model).get_output_embeddings() is model.get_output_embeddings()
