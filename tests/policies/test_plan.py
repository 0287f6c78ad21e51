"""The plan of a sweep: its points, what is lowered or skipped for them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import avl
from avl.policies import POLICIES
from avl.policies.plan import MAX_COMBINATIONS, MAX_POINTS, parse_over, plan, spaced

BASE = avl.AVL(S=45, C=30, K=3, P=90)


def test_points_are_the_policies_of_the_range():
    chosen = plan(BASE, {"S": range(35, 61, 5)})
    assert [point.policy for point in chosen.points] == [avl.AVL(S=S, C=30, K=3, P=90) for S in (35, 40, 45, 50, 55, 60)]
    assert [point.values for point in chosen.points] == [{"S": S} for S in (35, 40, 45, 50, 55, 60)]
    assert not chosen.skipped
    assert not any(point.lowered for point in chosen.points)
    assert (chosen.axes[0].label, chosen.axes[0].unit) == ("secondary", "%")


def test_a_grid_varies_its_last_parameter_first():
    chosen = plan(BASE, {"K": [1, 3], "T": np.array([50, 60])})
    assert [(point.policy.K, point.policy.T) for point in chosen.points] == [(1, 50), (1, 60), (3, 50), (3, 60)]
    assert all(type(value) in (int, float) for point in chosen.points for value in point.values.values())


def test_what_a_value_leaves_no_room_for_is_lowered_and_said():
    chosen = plan(avl.AVL(S=45, C=30, spread=33), {"S": [20, 31, 40]})
    assert [(point.policy.S, point.policy.C, point.policy.spread) for point in chosen.points] == [(20, 20, 20), (31, 30, 31), (40, 30, 33)]
    assert [len(point.lowered) for point in chosen.points] == [2, 1, 0]
    assert chosen.points[0].lowered[0] == "C is lowered from 30 to 20 to fit"


def test_swept_values_are_never_lowered_but_skipped_with_the_reason():
    chosen = plan(BASE, {"S": [20, 40], "C": [10, 30, None]})
    assert [tuple(point.values.values()) for point in chosen.points] == [(20, 10), (20, None), (40, 10), (40, 30), (40, None)]
    assert [one.values for one in chosen.skipped] == [{"S": 20, "C": 30}]
    assert "C is at most S=20" in chosen.skipped[0].reason


@pytest.mark.parametrize("name", POLICIES)
def test_every_numeric_parameter_of_every_policy_can_be_swept(name):
    cls = POLICIES[name]
    policy = cls(**{one.name: one.start for one in cls.params() if one.required})
    for one in cls.params():
        if one.choices:
            with pytest.raises(ValueError, match="that is a number"):
                plan(policy, {one.name: [1]})
            continue
        chosen = plan(policy, {one.name: [one.low, one.start, one.high]})
        assert len(chosen.points) + len(chosen.skipped) == 3
        assert any(getattr(point.policy, one.name) == one.start for point in chosen.points)


def test_a_check_skips_points():
    fastv = plan(avl.FastV(layer=2, keep=50), {"layer": [1, 2, 8, 9]}, lambda policy: policy.check_model(8))
    assert [point.policy.layer for point in fastv.points] == [1, 2]
    assert [one.values["layer"] for one in fastv.skipped] == [8, 9]
    assert all("layer" in one.reason for one in fastv.skipped)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({}, "one or two parameters"),
        ({"S": [1], "C": [1], "K": [1]}, "one or two parameters"),
        ([("S", [1])], "one or two parameters"),
        (None, "one or two parameters"),
        ({"Q": [1]}, "no parameter 'Q'"),
        ({"update": ["every"]}, "no parameter 'update' that is a number"),
        ({"S": []}, "no values"),
        ({"S": 45}, "pass a list"),
        ({"S": "45"}, "pass a list"),
        ({"S": ["45"]}, "only numbers"),
        ({"S": [True]}, "only numbers"),
        ({"S": [float("nan")]}, "only numbers"),
        ({"S": [float("inf")]}, "only numbers"),
        ({"S": [10**400]}, "only numbers"),
        ({"S": [40, 40.0]}, "twice"),
        ({"S": [0, 101]}, "no point of this sweep is valid: S=0"),
        ({"S": range(1, 10**9)}, "more than 256 values"),
        ({"S": range(1, 101)}, "100 points, and 64 is the most"),
        ({"S": range(1, 50), "T": range(1, 50)}, "2401 combinations"),
        ({"S": {"from": 5, "to": 60}}, "three numbers"),
        ({"S": {"from": 5, "to": 60, "step": 0}}, "is empty"),
        ({"S": {"from": 60, "to": 5, "step": 5}}, "is empty"),
        ({"S": {"from": 5, "to": 60, "step": 1e-9}}, "use a larger step"),
        ({"S": {"from": 5, "to": float("inf"), "step": 5}}, "three numbers"),
        ({"S": {"from": 5, "to": 60, "step": 5, "off": 1}}, "pass true for off"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(over, said):
    with pytest.raises(ValueError, match=said) as raised:
        plan(BASE, over)
    assert "\n" not in str(raised.value)


def test_full_attention_has_nothing_to_sweep():
    with pytest.raises(ValueError, match="it has none"):
        plan(avl.Full(), {"S": [1]})


def test_as_many_points_as_allowed_are_allowed():
    assert len(plan(BASE, {"T": range(1, MAX_POINTS + 1)}).points) == MAX_POINTS
    over = plan(BASE, {"S": range(5, 81, 5), "C": range(50, 130, 5)})  # 28 of 16 x 16 are valid
    assert len(over.points) + len(over.skipped) == MAX_COMBINATIONS


def test_ranges_end_where_they_say_without_a_floats_error():
    assert spaced(5, 60, 5, "S") == list(range(5, 61, 5))
    assert spaced(0.1, 0.3, 0.1, "S") == [0.1, 0.2, 0.3]
    assert spaced(5, 5, 1, "S") == [5]
    assert all(type(value) is int for value in spaced(1, 9, 2, "pool"))


def test_ranges_as_a_command_line_has_them():
    assert parse_over(["S=5:20:5", "C=off,10,2.5"]) == {"S": [5, 10, 15, 20], "C": [None, 10, 2.5]}
    assert parse_over(["K=1:5:2,off"]) == {"K": [1, 3, 5, None]}
    for text in ("S", "S=", "=5", "S=5:60", "S=a:b:c", "S=5,,6", "S=five"):
        with pytest.raises(ValueError, match=r"write NAME|which is no number"):
            parse_over([text])
    with pytest.raises(ValueError, match="swept twice"):
        parse_over(["S=5", "S=6"])
