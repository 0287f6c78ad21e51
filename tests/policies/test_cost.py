"""The cost model is what the cache counts: every registered policy, every layer, every step, every path that decodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import policy_cases
import pytest
import torch
from random_models import RAGGED, build_model, build_processor, encode, request, shared_model, shared_processor

import avl
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder
from avl.policies import KVBudget, Policy, PromptShape
from avl.policies.cost import allocated_tokens, layer_cost, mean_cost, step_cost, update_steps

LIMIT = 24


@dataclass(frozen=True)
class Funnel(Policy):
    """A window, pinned image tokens and a core that all differ from layer to layer."""

    name = "Funnel"

    def store(self, layer: int, shape: PromptShape) -> KVBudget:
        return KVBudget(image=max(1, shape.n_image // (layer + 1)), window=12 + 3 * layer, recent=4 + layer)

    def select(self, layer: int, shape: PromptShape) -> int | None:
        return None if layer == 1 else max(1, shape.n_image // (2 * layer + 3))

    def is_update(self, t: int) -> bool:
        return t % 2 == 0


CASES = {
    **{policy.name: policy for policy in policy_cases.POLICIES},
    "evict": avl.AVL(S=45, T=50),
    "all-text": avl.AVL(S=45, C=30, K=3),
    "after": avl.AVL(S=60, C=10, K=2, T=90, update="after"),
    "P-below-C": avl.AVL(S=80, C=60, K=2, P=40, T=20),
    "snapkv-default": avl.SnapKV(),
    "layer-wise": Funnel(),
}


def compare(cache, policy: Policy, t: int) -> None:
    """Raise unless the cache counts per layer at step ``t`` what the cost model says, all rows added up."""
    for layer, (stored, read) in enumerate(zip(cache.stored_tokens, cache.read_tokens, strict=True)):
        costs = [layer_cost(policy, PromptShape(row.n_image, row.n_text, LIMIT, len(cache.layers)), layer, t) for row in cache.rows]
        assert stored == sum(cost.stored for cost in costs), f"stored, layer {layer}, step {t}"
        assert read == sum(cost.read for cost in costs), f"read, layer {layer}, step {t}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [[request(3), request(3)], RAGGED], ids=["alike", "ragged"])
@pytest.mark.parametrize("architecture", ["llava-llama", "next-mistral"])
def test_cost_equals_what_the_cache_counts(architecture, rows, case, model, processor):
    policy, inputs = CASES[case], dict(encode(processor, rows))
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=LIMIT)
    decoder = Decoder(model, cache)
    with torch.inference_mode():
        tokens = decoder.prefill(inputs).argmax(-1)
        compare(cache, policy, 0)
        for t in range(1, LIMIT):
            tokens = decoder.step(tokens).argmax(-1)
            compare(cache, policy, t)
    shapes = [PromptShape(row.n_image, row.n_text, LIMIT, len(cache.layers)) for row in cache.rows]
    token = cache.stored_bytes // sum(cache.stored_tokens)
    assert cache.allocated_bytes == token * sum(allocated_tokens(policy, shape) for shape in shapes)


@pytest.mark.parametrize("case", CASES)
def test_cost_equals_what_steps_at_fixed_addresses_count(case):
    """The steps that a GPU replays, run here uncaptured: same counts, and the same logits as the eager ones."""
    model, processor = avl.attach(shared_model("llava-llama")), shared_processor("llava-llama")
    policy, inputs = CASES[case], dict(encode(processor, [request(3), request(3)]))
    caches = [avl.make_cache(model, inputs, policy, max_new_tokens=LIMIT) for _ in range(2)]
    eager, static = Decoder(model, caches[0]), GraphDecoder(model, caches[1])
    with torch.inference_mode():
        tokens = eager.prefill(inputs).argmax(-1)
        static.prefill(inputs)
        for t in range(1, LIMIT):
            expected, found = eager.step(tokens), static.step(tokens)
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
            compare(caches[1], policy, t)
            tokens = expected.argmax(-1)
    avl.detach(model)


def test_cost_at_the_papers_scale_adds_up():
    """40 layers, 2928 image tokens, 256 new tokens: sums over layers are the layers', means are the steps'."""
    shape = PromptShape(n_image=2928, n_text=65, max_new_tokens=256, n_layers=40)
    for policy in [*CASES.values(), *avl.PRESETS.values()]:
        for t in (0, 1, 3, 128, 255):
            layers = [layer_cost(policy, shape, layer, t) for layer in range(40)]
            total = step_cost(policy, shape, t)
            assert (total.stored, total.read) == (sum(one.stored for one in layers), sum(one.read for one in layers))
        mean = mean_cost(policy, shape)
        assert mean.read == pytest.approx(sum(step_cost(policy, shape, t).read for t in range(1, 256)) / 255)
        assert step_cost(policy, shape, 1).read <= step_cost(avl.Full(), shape, 1).read


def test_update_steps_core_and_update_apart_add_up_to_the_mean():
    shape = PromptShape(n_image=2880, n_text=65, max_new_tokens=128, n_layers=32)
    policy = avl.AVL(S=45, C=30, K=3, T=70)
    apart = {kind: mean_cost(policy, shape, steps) for kind, steps in update_steps(policy, shape).items()}
    mean = mean_cost(policy, shape)
    assert apart["core"].read < mean.read < apart["update"].read
    assert mean.read == pytest.approx((85 * apart["core"].read + 42 * apart["update"].read) / 127)
    assert update_steps(avl.Full(), shape) == {}
    assert update_steps(avl.AVL(S=45), shape) == {}
    assert set(update_steps(avl.AVL(S=45, C=30, K=1), replace(shape, n_layers=2))) == {"update"}


def test_budgets_that_differ_by_layer_are_kept():
    """A policy whose window falls with depth stores what it plans in every layer, not in each what the first one does."""
    model, processor = avl.attach(build_model("llava-llama")), build_processor("llava-llama")
    inputs = dict(encode(processor, [request(3)]))
    cache = avl.make_cache(model, inputs, policy_cases.POLICIES[4], max_new_tokens=4)
    with torch.inference_mode():
        Decoder(model, cache).prefill(inputs)
    assert isinstance(cache.policy, avl.PyramidKV)
    assert cache.stored_tokens == sorted(cache.stored_tokens, reverse=True)
    assert len(set(cache.stored_tokens)) == len(cache.stored_tokens)
