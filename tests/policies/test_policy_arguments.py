"""Parameters of policies, and their text form, that are of the wrong type or out of range give one sentence."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

import avl
from avl.policies import find_policy, parse_policy

HUGE, LONG = 10**400, 10**5000
ODD: list[Any] = ["x", "50", "", b"50", [], [50], {}, (50,), object(), int, True, False, 1j, Decimal(50), math.nan, math.inf, -math.inf]
ODD += [HUGE, LONG, -LONG, -1, 0, np.float64("nan"), np.bool_(True), np.array([1, 2])]
PARAMETERS = [(policy, one) for policy in avl.POLICIES.values() for one in policy.params()]


@pytest.mark.parametrize(("policy", "one"), PARAMETERS, ids=lambda part: getattr(part, "name", None))
@pytest.mark.parametrize("place", range(len(ODD)))
def test_a_bad_parameter_is_named(policy, one, place):
    value = ODD[place]
    if type(value) is int and value == 0 and one.low == 0 and one.unit != "%":
        pytest.skip("0 is valid here")
    others = {other.name: other.start for other in policy.params() if other.required}
    with pytest.raises(ValueError, match=rf"^{one.name}=.* is out of range: ") as raised:
        policy(**{**others, one.name: value})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "spec",
    [None, 5, b"avl", [], {}, True, "", ":", "x", "avl:x=1", "avl:S", "avl:S=", "avl:S=x", "avl:S=1e400", "avl:S=-1", "avl:S=NaN",
     "avl:S=" + "9" * 5000, "avl:S=" + "[" * 100_000, "avl:S=[1]", "avl:S={}", "avl:S=true", "avl:K=1.5", "avl:K=1e9999", "avl:S=1,S",
     "avl:=", "avl:" + "S" * 10_000, "s" * 10_000, "full:S=1", "avl:S=\x00", "avl:S=45=45", "avl:C=46,S=45"],
    ids=lambda spec: repr(spec)[:24],
)  # fmt: skip
def test_the_text_of_a_policy_that_is_none(spec):
    with pytest.raises(ValueError, match=r".{15}") as raised:
        parse_policy(spec)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("name", [None, 5, [], b"avl", "", "-", "x"], ids=repr)
def test_the_name_of_a_policy_that_is_none(name):
    with pytest.raises(ValueError, match="polic"):
        find_policy(name)


@pytest.mark.parametrize("value", ["x", None, True, 0, 1.1, math.nan, HUGE, [], 1j], ids=lambda value: type(value).__name__)
def test_a_stored_share_that_is_none(value):
    with pytest.raises(ValueError, match="fraction="):
        avl.AVL(S=45).at_stored(value, 576, 64, 32)


@pytest.mark.parametrize("name", ["n_image", "n_text", "n_layers"])
@pytest.mark.parametrize("value", ["x", None, True, -1, 1.5, math.nan, HUGE, LONG, []], ids=lambda value: type(value).__name__)
def test_sizes_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        avl.AVL(S=45).at_stored(0.5, **{"n_image": 576, "n_text": 64, "n_layers": 32, name: value})
