"""Roofline: hand-computed bytes, the published sizes of the checkpoints, and the cache's own counters step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from random_models import build_model
from tiny_families import MODELS

import avl
from avl.bench.roofline import Rates, Sizes, batch_bytes, floor_ms, largest_batch, row_bytes, weights_ms
from avl.models import random_weights
from avl.models.families import family_of
from avl.policies import Policy, PromptShape
from avl.policies.cost import Cost, mean_cost, step_cost

SEVEN = Sizes(layers=32, heads=32, kv_heads=32, head_dim=128, hidden=4096, ffn=11008, vocab=32064, itemsize=2)
THIRTEEN = Sizes(layers=40, heads=40, kv_heads=40, head_dim=128, hidden=5120, ffn=13824, vocab=32064, itemsize=2)
MISTRAL = Sizes(layers=32, heads=32, kv_heads=8, head_dim=128, hidden=4096, ffn=14336, vocab=32064, itemsize=2)
H200 = Rates(4.3e12, 790e12)
LONG = PromptShape(n_image=2880, n_text=65, max_new_tokens=128, n_layers=32)
ONE = replace(LONG, n_layers=1)
PAPER = avl.AVL(S=45, C=30, K=3, T=70)


def gain_of(sizes: Sizes, policy: Policy, batch: int, n_image: int = LONG.n_image, rates: Rates = H200) -> float:
    """Floor of full attention over that of ``policy``, mean over the answer."""
    shape = replace(LONG, n_layers=sizes.layers, n_image=n_image)
    full, other = (floor_ms(sizes, mean_cost(each, shape), batch, rates) for each in (avl.Full(), policy))
    return full / other


@pytest.mark.parametrize(("sizes", "gigabytes", "kib"), [(SEVEN, 13.21, 512), (THIRTEEN, 25.70, 800), (MISTRAL, 14.22, 128)])
def test_bytes_of_the_checkpoints(sizes, gigabytes, kib):
    assert sizes.weight_bytes / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert sizes.layers * sizes.entry_bytes == kib * 1024


def test_a_step_by_hand():
    # 4 heads of 8, 2 key-value heads, one layer, float32: K and V of a token are 2 * 2 * 8 * 4 = 128 bytes
    sizes = Sizes(layers=1, heads=4, kv_heads=2, head_dim=8, hidden=32, ffn=64, vocab=100, itemsize=4)
    assert sizes.entry_bytes == 128
    # q and o 32 x 32, k and v 32 x 16, three MLP matrices 32 x 64, head 100 x 32
    assert sizes.step_weights == 2 * 1024 + 2 * 512 + 3 * 2048 + 3200
    small = PromptShape(n_image=100, n_text=10, max_new_tokens=20, n_layers=1)
    policy = avl.AVL(S=40, C=20, K=2, T=50)  # stores 40 image tokens, reads 20; text window of 15
    assert step_cost(policy, small, 1) == Cost(stored=40 + 11, read=20 + 11, scored=11)
    assert step_cost(policy, small, 2) == Cost(stored=40 + 12, read=40 + 12, scored=12 + 40)
    assert step_cost(policy, small, 9) == Cost(stored=40 + 15, read=20 + 16, scored=16)
    rates = Rates(bytes_per_s=1e6, flops=1e9)
    cost = Cost(stored=55, read=36, scored=16)
    assert floor_ms(sizes, cost, 3, rates) == pytest.approx(1e3 * (12416 * 4 + 3 * (36 * 128 + 16 * 4 * 8)) / 1e6)
    # 1e9 operations a second: from batch 2000 on, multiplying takes longer than reading
    assert weights_ms(sizes, 4000, rates) == pytest.approx(1e3 * 2 * 12416 * 4000 / 1e9)


@pytest.mark.parametrize(
    ("sizes", "batch", "full", "evict", "core", "update", "gain"),
    [
        (SEVEN, 1, 3.44, 3.25, 3.19, 3.25, 1.07),
        (SEVEN, 8, 6.01, 4.46, 4.04, 4.48, 1.43),
        (SEVEN, 16, 8.94, 5.86, 5.01, 5.90, 1.69),
        (SEVEN, 32, 14.81, 8.64, 6.95, 8.72, 1.96),
        (SEVEN, 64, 26.55, 14.20, 10.83, 14.36, 2.21),
        (THIRTEEN, 32, 24.32, 14.67, 12.04, 14.80, 1.88),
        (MISTRAL, 64, 9.18, 6.10, 5.26, 6.26, 1.64),
    ],
)
def test_the_published_table(sizes, batch, full, evict, core, update, gain):
    """Floors of LLaVA-1.6 on an H200 as computed before this code existed, half-way through 128 new tokens, from another formulation."""
    assert step_cost(avl.Full(), ONE, 64).read == 3009
    assert step_cost(PAPER, ONE, 64).read == 993
    shape = replace(LONG, n_layers=sizes.layers)
    halfway = {
        "full": floor_ms(sizes, step_cost(avl.Full(), shape, 64), batch, H200),
        "evict": floor_ms(sizes, step_cost(avl.AVL(S=45, T=70), shape, 64), batch, H200),
        "core": floor_ms(sizes, step_cost(PAPER, shape, 64), batch, H200),
        "update": floor_ms(sizes, step_cost(PAPER, shape, 63), batch, H200),
    }
    expected = {"full": full, "evict": evict, "core": core, "update": update}
    assert halfway == pytest.approx(expected, abs=0.025)
    mean = (2 * halfway["core"] + halfway["update"]) / 3
    assert halfway["full"] / mean == pytest.approx(gain, abs=0.006)
    # over the whole answer: 42 of 127 steps update, and the text window bites at the end
    assert gain_of(sizes, PAPER, batch) == pytest.approx(gain, abs=0.025)


def test_gain_grows_with_the_batch():
    gains = [gain_of(SEVEN, PAPER, batch) for batch in (1, 8, 16, 32, 64)]
    assert gains == sorted(gains)
    assert gain_of(SEVEN, avl.Full(), 8) == 1


# query heads / key-value heads, image tokens of the usual picture, KiB of a token in the cache, gain at batch 1, 8, 32
GAINS = {
    "llava-1.5-7b": ("32/32", 576, 512, (1.02, 1.11, 1.35)),
    "llava-1.5-13b": ("40/40", 576, 800, (1.01, 1.09, 1.29)),
    "llava-1.6-7b": ("32/32", 2928, 512, (1.07, 1.44, 1.98)),
    "llava-1.6-13b": ("40/40", 2928, 800, (1.06, 1.38, 1.90)),
    "llava-1.6-mistral-7b": ("32/8", 2928, 128, (1.02, 1.13, 1.41)),
    "qwen2.5-vl-7b": ("28/4", 999, 56, (1.00, 1.02, 1.08)),
    "qwen3-vl-8b": ("32/8", 768, 144, (1.00, 1.04, 1.14)),
    "internvl3-8b": ("28/4", 3328, 56, (1.01, 1.07, 1.23)),
    "gemma-3-12b": ("16/8", 256, 384, (1.00, 1.02, 1.08)),
}
H100 = Rates(3.35e12, 989e12)  # data sheet: HBM3, dense bfloat16


@pytest.mark.parametrize("name", random_weights.ARCHITECTURES)
def test_predicted_gain_of_every_architecture(name):
    """The table in README.md: A-VL (S 45, C 30, K 3, T 70) against full attention on an H100, 65 text tokens, 128 new ones."""
    config = random_weights.config(name)
    sizes, family = Sizes.of(config, 2), family_of(config)
    heads, n_image, kib, gains = GAINS[name]
    assert heads == f"{sizes.heads}/{sizes.kv_heads}"
    assert family.image_tokens(config, family.random_picture(config)) == n_image
    assert sizes.layers * sizes.entry_bytes == kib * 1024
    assert [gain_of(sizes, PAPER, batch, n_image, H100) for batch in (1, 8, 32)] == pytest.approx(gains, abs=0.006)


def test_the_readme_has_that_table():
    rows = [
        f"| {name} | {heads} | {tokens} | {kib} | {' | '.join(f'{g:.2f}' for g in gains)} |"
        for name, (heads, tokens, kib, gains) in GAINS.items()
    ]
    assert "\n".join(rows) in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8"), "\n".join(rows)


def test_grouped_queries_leave_less_to_gain():
    """At the same prompt: a smaller cache beside weights as large. Full attention of Qwen2.5-VL-7B reads 9 times less of it per token."""
    sizes = {name: Sizes.of(random_weights.config(name), 2) for name in GAINS}
    for batch in (1, 8, 32):
        gains = {name: gain_of(sizes[name], PAPER, batch, rates=H100) for name in GAINS}
        assert gains["qwen2.5-vl-7b"] < gains["llava-1.6-mistral-7b"] < gains["llava-1.6-7b"]
    assert sizes["llava-1.6-7b"].layers * sizes["llava-1.6-7b"].entry_bytes / (28 * sizes["qwen2.5-vl-7b"].entry_bytes) > 9


def test_weights_are_those_of_the_model():
    model = build_model("next-mistral")
    sizes = Sizes.of(model.config, 4)
    layers = sum(p.numel() for layer in model.model.language_model.layers for p in layer.parameters() if p.dim() == 2)
    assert sizes.step_weights == layers + model.lm_head.weight.numel()


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_every_family(name):
    """Of experts, as many as one token takes; how they are chosen is not counted."""
    model = MODELS[name].model()
    family = family_of(model.config)
    text = model.config.text_config
    layers = family.decoder(model).layers
    named = [pair for layer in layers for pair in layer.named_parameters() if not pair[0].endswith("mlp.gate.weight")]
    matrices = sum(weights.numel() for _, weights in named if weights.dim() == 2)
    experts = sum(weights.numel() * text.num_experts_per_tok // text.num_experts for _, weights in named if weights.dim() == 3)
    head = family.causal(model).get_output_embeddings().weight.numel()
    assert Sizes.of(model.config, 4).step_weights == matrices + experts + head


def test_largest_batch():
    kept, work = row_bytes(SEVEN, avl.Full(), LONG)
    assert kept == (2880 + 65 + 128) * 512 * 1024
    assert largest_batch(SEVEN, avl.Full(), LONG, 10.5 * (kept + work)) == 10
    assert largest_batch(SEVEN, avl.Full(), LONG, 0.5 * (kept + work)) == 0
    for policy in (avl.Full(), PAPER):
        most = largest_batch(SEVEN, policy, LONG, 100e9)
        assert batch_bytes(SEVEN, policy, LONG, most) <= 100e9 < batch_bytes(SEVEN, policy, LONG, most + 1)
    assert largest_batch(SEVEN, PAPER, LONG, 100e9) > 2.05 * largest_batch(SEVEN, avl.Full(), LONG, 100e9)
