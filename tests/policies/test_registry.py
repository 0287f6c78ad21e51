"""One list of policies: names, parameters, spellings and errors come from it."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import policy_cases
import pytest

import avl
from avl.policies import POLICIES, Policy, PromptShape, cli_name, find_policy, parse_policy
from avl.policies.cost import step_cost, stored_after_prefill

SHAPE = PromptShape(n_image=2928, n_text=65, max_new_tokens=256, n_layers=40)


def test_every_registered_policy_has_its_row_in_the_tests_and_the_readme():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert list(policy_cases.ROWS) == list(POLICIES)
    for name, policy in POLICIES.items():
        assert getattr(avl, name) is policy
        assert name in avl.__all__
        assert f"`{name}(" in readme, f"README.md has no line on {name}"


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_parameter_describes_itself(policy):
    assert [one.name for one in policy.params()] == [field.name for field in dataclasses.fields(policy)]
    for one in policy.params():
        assert one.label
        assert one.help
        assert "Args:" in policy.__doc__
        assert f"{one.name}:" in policy.__doc__
        if not one.choices:
            assert one.low <= one.start <= one.high
            one.check(one.start)
        with pytest.raises(ValueError, match=f"^{one.name}=.* is out of range: {one.name} is "):
            one.check("nonsense")
        if one.optional:
            one.check(None)


@pytest.mark.parametrize("spelled", ["streaming-llm", "StreamingLLM", "streaming_llm", "STREAMINGLLM", "streaming"])
def test_a_policy_is_found_however_it_is_spelled(spelled):
    assert find_policy(spelled) is avl.StreamingLLM


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_command_lines_name_finds_the_policy(policy):
    assert find_policy(cli_name(policy)) is policy
    assert isinstance(parse_policy(cli_name(policy)), policy)


def test_parse_policy_reads_parameters():
    assert parse_policy("avl:S=45,C=30,K=2,T=60.5,update=after") == avl.AVL(S=45, C=30, K=2, T=60.5, update="after")
    assert parse_policy("avl:C=off") == avl.AVL(S=45)
    assert parse_policy("fastv:layer=3") == avl.FastV(layer=3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("best", "there is no policy 'best': use full, avl, h2o, snapkv, pyramidkv, fastv, streaming-llm"),
        ("f", "there is no policy 'f'"),
        ("", "there is no policy ''"),
        ("avl:Q=3", "A-VL has no parameter 'Q': it has S, C, K, P, T, update"),
        ("full:keep=3", "Full attention has no parameter 'keep': it has none"),
        ("h2o:keep=0", "keep=0 is out of range"),
        ("snapkv:pool=4", "pool=4 is out of range: pool is the width of the max-pool over positions, an odd number of at least 1"),
        ("avl:update=sometimes", "update='sometimes' is out of range"),
    ],
)
def test_parse_policy_says_what_is_wrong(spec, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace("[", r"\[")):
        parse_policy(spec)


def test_not_a_policy_is_refused_with_the_registered_names():
    with pytest.raises(ValueError, match=r"'AVL' is not a policy: pass one of avl.Full\(...\), avl.AVL\(...\).*avl.PyramidKV"):
        avl.policies.check_policy("AVL")


@pytest.mark.parametrize("fraction", [0.2, 0.4831, 0.7, 0.9])
@pytest.mark.parametrize("policy", policy_cases.POLICIES[1:], ids=policy_cases.name_of)
def test_at_stored_is_the_cost_models_share(policy: Policy, fraction: float):
    """At the size of LLaVA-1.6-13B, within a token per layer; or a sentence that says what can be had."""
    prompt = dataclasses.replace(SHAPE, max_new_tokens=0)
    target = fraction * step_cost(avl.Full(), SHAPE, 0).stored
    least, most = (stored_after_prefill(policy.with_budget(value), prompt) for value in (1, 100_000))
    if not least <= target <= most:
        with pytest.raises(ValueError, match=r"cannot store .* it stores .* to "):
            policy.at_stored(fraction, SHAPE.n_image, SHAPE.n_text, SHAPE.n_layers)
        return
    chosen = policy.at_stored(fraction, SHAPE.n_image, SHAPE.n_text, SHAPE.n_layers)
    assert abs(stored_after_prefill(chosen, prompt) - target) <= SHAPE.n_layers
    assert len(f"{getattr(chosen, policy.budget):g}") <= 6, "as few decimals as will do"


def test_pyramidkv_budgets_fall_on_a_line_and_add_up_to_snapkvs():
    """32 and 40 layers, 600 and 3000 tokens: the sum is SnapKV's, no layer keeps more than the one before or less than the window."""
    for n_layers in (1, 2, 32, 40):
        for n_image, n_text in ((576, 24), (2928, 72)):
            shape = PromptShape(n_image, n_text, 256, n_layers)
            for keep in (1, 12.5, 50, 80, 100):
                for beta in (1, 2, 20):
                    policy = avl.PyramidKV(keep=keep, window=32, beta=beta)
                    budgets = [policy.store(layer, shape).prompt for layer in range(n_layers)]
                    snap = avl.SnapKV(keep=keep).store(0, shape).prompt
                    assert sum(budgets) == n_layers * snap
                    assert budgets == sorted(budgets, reverse=True)
                    assert budgets[0] <= shape.length
                    assert budgets[-1] >= min(32, snap)
                    steps = [first - second for first, second in itertools.pairwise(budgets)]
                    assert not steps or max(steps) - min(steps) <= 2, "a straight line, but for rounding"
