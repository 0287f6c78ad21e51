"""The geometry of LLaVA-1.6-13B: 40 layers, heads of 128, 2928 image tokens, two rows; thin layers, so that a CPU runs it.

The toy models hide what depends on size: budgets that round, windows longer than a tile, layers that differ.
"""

from __future__ import annotations

import copy
import functools
import threading

import policy_cases
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

import avl
from avl.engine import agreement
from avl.engine.decoder import Decoder
from avl.engine.lanes import Job
from avl.engine.request import GenerationRequest
from avl.models import random_weights
from avl.models.inputs import first
from avl.policies import PromptShape
from avl.policies.base import PastTurn
from avl.policies.cost import allocated_tokens, layer_cost, step_cost
from avl.policies.lattice import lattice

LAYERS, HEADS, KV_HEADS, SIZE, SIDE = 40, 2, 1, 128, 336
STEPS, LIMIT = 40, 256

POLICIES = [
    avl.Full(),
    avl.PRESETS["llava-1.6-13b"],
    avl.SPREAD_PRESETS["llava-1.6-13b"],
    avl.AVL(S=45, C=30, K=3, P=90, T=60, update="after"),
    avl.H2O(),
    avl.SnapKV(),
    avl.PyramidKV(),
    avl.FastV(),
    avl.StreamingLLM(),
]


@functools.cache
def model():
    """Real sizes in everything that a cache sees; one layer of vision, a narrow MLP and a small vocabulary."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, projection_dim=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=512, hidden_size=HEADS * SIZE, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=SIZE, max_position_embeddings=4096,
    )  # fmt: skip
    tiles = [[rows * SIDE, columns * SIDE] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=500, vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_grid_pinpoints=tiles,
    )  # fmt: skip
    torch.manual_seed(0)
    made = LlavaNextForConditionalGeneration(config).requires_grad_(False).eval()
    made.generation_config.eos_token_id = None
    return avl.attach(made)


@functools.cache
def inputs(rows: int):
    return random_weights.inputs(model(), batch=rows)


def test_every_policy_is_tried():
    assert {policy.name for policy in POLICIES} == set(policy_cases.ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@torch.inference_mode()
def test_counts_and_bytes_follow_the_cost_model(policy):
    """Per layer and step, two rows; allocated memory too. 256 new tokens are planned for, 40 are run."""
    prompt = inputs(2)
    cache = avl.make_cache(model(), prompt, policy, max_new_tokens=LIMIT)
    shape = PromptShape(2928, random_weights.SYSTEM_TOKENS + random_weights.QUESTION_TOKENS, LIMIT, LAYERS)
    assert (cache.rows[0].n_image, cache.rows[0].n_text) == (shape.n_image, shape.n_text)
    decoder = Decoder(model(), cache)
    tokens = decoder.prefill(prompt).argmax(-1)
    token_bytes = 2 * KV_HEADS * SIZE * 4
    assert cache.allocated_bytes == 2 * allocated_tokens(policy, shape) * token_bytes
    full = 2 * step_cost(avl.Full(), shape, 0).stored * token_bytes
    # evicting layer by layer, prefill holds one layer whole beside what the others keep; where rows run in pieces, one layer's slots twice
    assert cache.peak_bytes <= cache.allocated_bytes + 2 * (shape.length + LIMIT) * token_bytes
    assert policy == avl.Full() or cache.stored_bytes < 0.97 * full
    for t in range(STEPS):
        if t:
            logits = decoder.step(tokens)
            assert logits.isfinite().all()
            tokens = logits.argmax(-1)
        for layer in range(LAYERS):
            cost = layer_cost(policy, shape, layer, t)
            assert (cache.stored_tokens[layer], cache.read_tokens[layer]) == (2 * cost.stored, 2 * cost.read), (layer, t)


@pytest.mark.slow
@torch.inference_mode()
def test_spread_holds_an_even_share_of_the_picture():
    """967 of 2928 tokens in every layer that P leaves whole, 484 of them always in the core, at the counts of A-VL without it."""
    policy, prompt = avl.SPREAD_PRESETS["llava-1.6-13b"], inputs(2)
    cache = avl.make_cache(model(), prompt, policy, max_new_tokens=LIMIT)
    decoder = Decoder(model(), cache)
    tokens = decoder.prefill(prompt).argmax(-1)
    allocated = cache.allocated_bytes
    for t in range(8):
        if t:
            tokens = decoder.step(tokens).argmax(-1)
        for row in range(2):
            for layer, (stored, core) in enumerate(cache.image_sets(row)):
                held = lattice(2928, 967, layer)
                present = set(range(2928)) - (set(cache.pruned[row]) if layer >= 2 else set())
                assert set(held) & present <= set(stored), (t, row, layer)
                assert set(held[:484]) & present <= set(core), (t, row, layer)
        assert cache.pruned[0]
        assert not set(lattice(2928, 967, 1)) & set(cache.pruned[0]), "P keeps what the layer that ranks holds"
    assert cache.allocated_bytes == allocated


@pytest.mark.slow
@torch.inference_mode()
def test_full_attention_gives_transformers_own_logits():
    """One row, the prompt and 8 steps, float32: the cache that keeps everything changes nothing."""
    prompt = inputs(1)
    stock = model().generate(**prompt, max_new_tokens=9, do_sample=False, output_logits=True, return_dict_in_generate=True)
    cache = avl.make_cache(model(), prompt, avl.Full(), max_new_tokens=9)
    ours = model().generate(
        **prompt, past_key_values=cache, max_new_tokens=9, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert ours.sequences.tolist() == stock.sequences.tolist()
    for mine, theirs in zip(ours.logits, stock.logits, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.slow
@torch.inference_mode()
def test_an_adapter_changes_the_steps():
    """LoRA on a copy of the model, two rows: our loop gives what ``model.generate`` gives with the same cache, not the plain answer."""
    peft = pytest.importorskip("peft")
    prompt, steps, policy = inputs(2), 12, avl.PRESETS["llava-1.6-13b"]
    adapted = copy.deepcopy(model())
    adapted.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.eval()
    answers = {}
    for name, subject in (("adapted", adapted), ("plain", model())):
        decoder = Decoder(subject, avl.make_cache(subject, prompt, policy, steps))
        assert (decoder.unfused is None) == (name == "plain")
        tokens = [decoder.prefill(prompt).argmax(-1)]
        while len(tokens) < steps:
            tokens.append(decoder.step(tokens[-1]).argmax(-1))
        answers[name] = torch.stack(tokens, dim=1)
    cache = avl.make_cache(adapted, prompt, policy, steps)
    expected = adapted.generate(**prompt, past_key_values=cache, max_new_tokens=steps, do_sample=False)[:, -steps:]
    assert torch.equal(answers["adapted"], expected)
    assert not torch.equal(answers["adapted"], answers["plain"])


@pytest.mark.slow
@torch.inference_mode()
def test_a_prompt_that_ends_in_its_image_keeps_its_last_position():
    """P=1 leaves 30 of 2928 image tokens, one of which is the position that asks, in every row; a copied cache goes on alike."""
    prompt = {name: value.clone() for name, value in inputs(2).items()}
    end = int((prompt["input_ids"][0] == 500).nonzero().max()) + 1
    prompt |= {name: prompt[name][:, :end] for name in ("input_ids", "attention_mask") if name in prompt}
    cache = avl.make_cache(model(), prompt, avl.AVL(S=45, C=30, K=3, P=1, T=60), 8)
    tokens = model()(**prompt, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)
    for row in range(2):
        assert len(cache.pruned[row]) == 2928 - 30
        assert 2927 not in cache.pruned[row]
    twin = copy.deepcopy(cache)
    for number in range(5):
        one, two = (model()(input_ids=tokens[:, None] + number, past_key_values=held, use_cache=True).logits for held in (cache, twin))
        assert torch.equal(one, two)


@pytest.mark.slow
@torch.inference_mode()
def test_agreement_at_real_scale():
    """One of two rows, fed a given answer: what reads everything agrees with full attention, the paper's setting less."""
    request = GenerationRequest(
        Image.new("RGB", (8, 8)), "?", (avl.Full(), avl.AVL(S=100, C=100), avl.PRESETS["llava-1.6-13b"]), LIMIT, batch=2
    )
    job = Job(model(), None, first(inputs(2), 2), request, None)
    tokens = torch.randint(0, 500, (6,), generator=torch.Generator().manual_seed(0)).tolist()
    full, same, preset = ([*agreement._logits(job, one, 0, tokens, threading.Event())] for one in request.policies)
    for of_full, of_same, of_preset, token in zip(full, same, preset, tokens, strict=True):
        best, divergence, surprise = agreement.compare(of_full, of_same, token)
        assert best == int(of_full.argmax())
        assert divergence <= 1e-8
        assert surprise == pytest.approx(agreement.compare(of_full, of_full, token)[2], rel=1e-3)
        assert agreement.compare(of_full, of_preset, token)[1] > divergence


@pytest.mark.slow
@pytest.mark.parametrize("policy", [avl.Full(), avl.SPREAD_PRESETS["llava-1.6-13b"]], ids=lambda policy: policy.label)
@torch.inference_mode()
def test_later_turns_follow_the_cost_model(policy):
    """Two rows, questions of 35 and 150 tokens: counts per layer, bytes, the stored image tokens; Full's logits are the model's."""
    prompt, limit = inputs(2), 32
    cache = avl.make_cache(model(), prompt, policy, max_new_tokens=limit)
    decoder = Decoder(model(), cache)
    tokens = decoder.prefill(prompt).argmax(-1)
    said = [tokens]
    for _ in range(8):
        said.append(tokens := decoder.step(tokens).argmax(-1))
    before, secondary = [bucket.shape for bucket in cache.buckets], [[held for held, _ in cache.image_sets(row)] for row in range(2)]
    draw = torch.Generator().manual_seed(1)
    new = [[int(tokens[row]), *torch.randint(0, 500, (34 + 115 * row,), generator=draw).tolist()] for row in range(2)]
    cache.extend([len(some) for some in new], limit)
    decoder = Decoder(model(), cache)
    logits = decoder.extend(new)
    token_bytes = 2 * KV_HEADS * SIZE * 4
    shapes = [PromptShape(2928, before[0].n_text + 8 + len(some), limit, LAYERS, PastTurn(before[0], 8)) for some in new]
    assert cache.allocated_bytes == sum(allocated_tokens(policy, shape) for shape in shapes) * token_bytes
    for t in range(12):
        if t:
            assert decoder.step(tokens).isfinite().all()
        for layer in range(LAYERS):
            costs = [layer_cost(policy, shape, layer, t) for shape in shapes]
            counts = sum(cost.stored for cost in costs), sum(cost.read for cost in costs)
            assert (cache.stored_tokens[layer], cache.read_tokens[layer]) == counts, (layer, t)
    if policy.pins_image:
        assert [[held for held, _ in cache.image_sets(row)] for row in range(2)] == secondary
    if policy == avl.Full():
        for row in range(2):
            ids = [*prompt["input_ids"][row].tolist(), *(int(one[row]) for one in said[:-1]), *new[row]]
            one = {name: value[row : row + 1] for name, value in prompt.items() if name not in ("input_ids", "attention_mask")}
            exact = model()(input_ids=torch.tensor([ids]), **one, logits_to_keep=1).logits[0, -1]
            torch.testing.assert_close(logits[row], exact, rtol=0, atol=2e-5 * float(exact.abs().max()))
