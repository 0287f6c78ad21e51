"""No layer of a prompt makes the host wait for a GPU: its queue would run dry, and launches would show in the time to the first token."""

from __future__ import annotations

import policy_cases
import pytest
import tiny_families
import torch
from host_waits import Calls, Operators, Waits
from random_models import RAGGED, build_model, encode, request, shared_processor
from tiny_families import base

import avl
from avl.attention.exact import lse_backend
from avl.models.families import describe

POLICIES = (
    *policy_cases.POLICIES,
    policy_cases.SPREAD,
    avl.AVL(S=45, C=30),
    avl.AVL(S=45, C=30, T=50),
    avl.AVL(S=45, C=30, P=70),
    avl.H2O(keep=100),
)
ROWS = {
    "one": [request(1)],
    "alike": [request(1), request(2), request(3)],
    "ragged": [*RAGGED, RAGGED[0]],
    "padded": [request(1), request(2, after=9)],
}


def prompt(model, inputs, policy, waits):
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=6)
    with waits.watch(model):
        model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    assert not waits.active


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("architecture", ["llava-llama", "next-mistral"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@torch.inference_mode()
def test_no_layer_of_a_prompt_waits(policy, architecture, rows):
    model = avl.attach(build_model(architecture))
    facts = describe(model)
    lse_backend(model.device, model.dtype, facts.head_dim, facts.heads // facts.kv_heads)  # tried once per process
    waits = Waits()
    prompt(model, dict(encode(shared_processor(architecture), ROWS[rows])), policy, waits)
    assert not waits.found


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "qwen3_vl"])
@torch.inference_mode()
def test_masks_and_features_of_a_family_do_not_wait(name):
    """Masks that say who sees whom are compared in the first layer; features of a picture are added after several."""
    tiny = tiny_families.MODELS[name]
    model, waits = avl.attach(tiny.model()), Waits()
    rows = [sizes[:1] for sizes in base.RAGGED]
    prompt(model, dict(base.encode(tiny, tiny.processor(), rows)), avl.AVL(S=45, C=30, P=70), waits)
    assert not waits.found


@torch.inference_mode()
def test_waits_are_seen():
    """Each kind, or the test above says nothing."""
    there, waits = torch.randn(3, 4), Waits()
    device, number = there.device, torch.zeros(3, dtype=torch.int64, device="cpu")
    kinds = {
        "a tensor of Python numbers": lambda: torch.tensor([1], device=device),
        "a list as an index": lambda: there[[0, 1]],
        "__bool__": lambda: bool(there.any()),
        "__int__": lambda: int(there[0, 0]),
        "item": lambda: there[0, 0].item(),
        "tolist": lambda: there.tolist(),
        "cpu": lambda: there.cpu(),
        "a mask as an index": lambda: there[there > 0],
        "a result whose size": lambda: there.nonzero(),
        "to of a tensor in host memory": lambda: torch.arange(3).to(device),
        "of a tensor in host memory": lambda: there[torch.arange(2)],
    }
    for kind, call in kinds.items():
        waits.found.clear()
        with Calls(waits), Operators(waits):
            waits.active = True
            there[number], there.gather(1, torch.zeros(3, 1, dtype=torch.int64, device=device))
            assert not waits.found
            call()
        assert any(kind in found for found in waits.found), kind
