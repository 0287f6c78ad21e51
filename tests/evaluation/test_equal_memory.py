"""Equal memory: every policy, small and real shapes, by the closed form."""

from collections import Counter

import pytest

import avl
from avl.evaluation import memory
from avl.policies import POLICIES, parse_policy


def steps(n_image, texts, answer, layers):
    return {avl.PromptShape(n_image, text, 96, layers): Counter(dict.fromkeys(range(1, answer + 1), 3)) for text in texts}


SIZES = {
    "tiny": steps(576, (11, 14, 31), 80, 8),
    "short answers": steps(576, (11, 14, 31), 3, 8),
    "llava-1.5-13b": steps(576, (60, 75), 95, 40),
    "llava-1.6-7b": steps(2928, (60, 200), 95, 32),
}
OTHERS = [name for name in POLICIES if name not in ("Full", "AVL")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OTHERS)
def test_every_policy_stores_what_avl_stores(name, size):
    share = memory.stored_share(avl.AVL(S=45, C=30, K=3, P=90, T=60), SIZES[size])
    policy = memory.at_equal_memory(parse_policy(name), share, SIZES[size])
    assert abs(memory.stored_share(policy, SIZES[size]) - share) <= memory.TOLERANCE
    assert type(policy) is POLICIES[name]


def test_prompt_shares_would_not_be_equal():
    """What the search is for: at one share of the prompt, caches that grow with the answer store more."""
    grows, does_not = (memory.stored_share(policy, SIZES["tiny"]) for policy in (avl.SnapKV(keep=48), avl.H2O(keep=48)))
    assert grows - does_not > 2 * memory.TOLERANCE


@pytest.mark.parametrize(("name", "share"), [("FastV", 0.1), ("H2O", 1.0), ("PyramidKV", 0.01)])
def test_what_cannot_be_stored_is_refused_with_what_can(name, share):
    with pytest.raises(ValueError, match=f"{name} cannot store .*: with keep from 0.001 to 100 it stores .* to "):
        memory.at_equal_memory(parse_policy(name), share, SIZES["tiny"])


def test_full_attention_has_no_memory_to_set():
    with pytest.raises(ValueError, match="stores everything"):
        memory.at_equal_memory(avl.Full(), 1.0, SIZES["tiny"])
