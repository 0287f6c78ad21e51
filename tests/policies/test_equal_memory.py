"""Equal memory: every policy, small and real shapes, by the closed form."""

from collections import Counter

import pytest

import avl
from avl.policies import POLICIES, labels, parse_policy
from avl.policies.equal_memory import TOLERANCE, answer_steps, at_share, at_whole_percent, stored_share


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
    share = stored_share(avl.AVL(S=45, C=30, K=3, P=90, T=60), SIZES[size])
    policy = at_share(parse_policy(name), share, SIZES[size])
    assert abs(stored_share(policy, SIZES[size]) - share) <= TOLERANCE
    assert type(policy) is POLICIES[name]


def test_prompt_shares_would_not_be_equal():
    """What the search is for: at one share of the prompt, caches that grow with the answer store more."""
    grows, does_not = (stored_share(policy, SIZES["tiny"]) for policy in (avl.SnapKV(keep=48), avl.H2O(keep=48)))
    assert grows - does_not > 2 * TOLERANCE


@pytest.mark.parametrize(("name", "share"), [("FastV", 0.1), ("H2O", 1.0), ("PyramidKV", 0.01)])
def test_what_cannot_be_stored_is_refused_with_what_can(name, share):
    with pytest.raises(ValueError, match=f"{name} cannot store .*: with keep from 0.001 to 100 it stores .* to "):
        at_share(parse_policy(name), share, SIZES["tiny"])


def test_full_attention_has_no_memory_to_set():
    with pytest.raises(ValueError, match="stores everything"):
        at_share(avl.Full(), 1.0, SIZES["tiny"])


SHAPES = {
    "bundled": avl.PromptShape(576, 40, 96, 8),
    "llava-1.5-7b": avl.PromptShape(576, 60, 256, 32),
    "llava-1.6-13b": avl.PromptShape(2928, 60, 256, 40),
    "short": avl.PromptShape(40, 12, 8, 8),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_policies_at_the_memory_of_one(shape):
    """All of the registry, in its order; the one that sets the memory as it is; by the cost model each stores the same in the mean."""
    to = avl.AVL(S=50, C=30, K=3, P=90, T=60)
    found = avl.at_equal_memory(to, shape)
    assert [policy.name for policy in found.policies] == list(POLICIES)
    assert found.policies[:2] == (avl.Full(), to)
    assert found.left_out == ()
    steps = answer_steps(shape)
    assert found.share == stored_share(to, steps) < 1
    for policy in found.policies[1:]:
        assert abs(stored_share(policy, steps) - found.share) <= max(TOLERANCE, 1 / shape.length), policy.label


def test_what_cannot_store_a_share_is_left_out_with_a_sentence():
    found = avl.at_equal_memory(0.05, avl.PromptShape(576, 60, 32, 32))
    assert [policy.name for policy in found.policies] == ["Full", "H2O", "SnapKV", "PyramidKV", "StreamingLLM"]
    assert [sentence.partition(" cannot")[0] for sentence in found.left_out] == ["A-VL", "FastV"]
    assert all("it stores" in sentence and "\n" not in sentence for sentence in found.left_out)
    deep = avl.at_equal_memory(0.5, SHAPES["llava-1.5-7b"], [avl.FastV(layer=40), avl.Full(), avl.H2O(recent=20)])
    assert [type(policy) for policy in deep.policies] == [avl.Full, avl.H2O]
    assert deep.policies[1].recent == 20, "other parameters stay"
    assert "layer=40 is out of range" in deep.left_out[0]


@pytest.mark.parametrize("to", [avl.Full(), 0, 1.5, -1, float("nan"), True, "avl", None, [0.5]], ids=repr)
def test_a_memory_that_is_none_is_one_sentence(to):
    with pytest.raises(ValueError, match=r"share|everything"):
        avl.at_equal_memory(to, SHAPES["bundled"])


@pytest.mark.parametrize("name", OTHERS)
def test_whole_percent_come_as_near_as_sliders_can(name):
    steps = answer_steps(SHAPES["llava-1.5-7b"])
    for share in (0.41, 0.523):
        found = at_whole_percent(parse_policy(name), share, steps)
        percent = getattr(found, found.budget)
        assert percent == int(percent)
        nearest = min(range(1, 101), key=lambda one: abs(stored_share(found.with_budget(1000 * one), steps) - share))
        assert abs(stored_share(found, steps) - share) == abs(stored_share(found.with_budget(1000 * nearest), steps) - share)


def test_labels_of_equal_policies_get_numbers():
    a, b = avl.AVL(S=45), avl.H2O()
    assert labels([a, b]) == [a.label, b.label]
    assert labels([a, b, a, a]) == [f"{a.label} (1)", b.label, f"{a.label} (2)", f"{a.label} (3)"]
    assert labels([]) == []
