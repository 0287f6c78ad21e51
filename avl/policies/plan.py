"""The plan of a sweep: one policy with one or two of its parameters over a range. Plain Python, made before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from avl.policies.base import Param, Policy, number, shown

MAX_AXES = 2
MAX_POINTS = 64
"""Points of a sweep at most; each is a run of its own."""
MAX_COMBINATIONS = 256
"""Combinations at most, those included that are skipped."""


@dataclass(frozen=True)
class Axis:
    """One parameter that is swept: its name, label and unit as in :class:`Param`, and its values in the order asked; None is off."""

    name: str
    label: str
    unit: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Point:
    """One policy of a sweep. ``values``: of the swept parameters. ``lowered``: what else had to be lowered to leave them room, in words."""

    values: dict[str, float | None]
    policy: Policy
    lowered: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A combination that is not run, and why, in one sentence."""

    values: dict[str, float | None]
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a sweep runs besides full attention.

    Attributes:
        policy: its parameters that are not swept hold for every point.
        axes: one or two; points vary along the last one first.
        points: at least one.
        skipped: combinations that are no valid policy.
    """

    policy: Policy
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    skipped: tuple[Skipped, ...]


def plan(policy: Policy, over: Mapping[str, Any], check: Callable[[Policy], object] | None = None) -> Plan:
    """Plan a sweep.

    Args:
        policy: what is varied.
        over: parameter -> its values: an iterable of numbers, None for off; or ``{"from": 5, "to": 60, "step": 5}``, both ends included,
            and ``"off": True`` for off after them.
            Parameters that a value leaves no room for, such as A-VL's C above S, are lowered to it unless they are swept themselves.
        check: raises ValueError for a policy that cannot run; its points are skipped.

    Raises:
        ValueError: a parameter is unknown or no number, there are too many points, or none is valid; one sentence.
    """
    axes = _axes(policy, over)
    points, skipped = [], []
    for combination in itertools.product(*(axis.values for axis in axes)):
        values = dict(zip((axis.name for axis in axes), combination, strict=True))
        try:
            changed = policy.changed(**values)
            if check is not None:
                check(changed)
        except ValueError as error:
            skipped.append(Skipped(values, str(error)))
            continue
        points.append(Point(values, changed, _lowered(policy, changed, values)))
    if not points:
        raise ValueError(f"no point of this sweep is valid: {skipped[0].reason}")
    if len(points) > MAX_POINTS:
        raise ValueError(f"this sweep has {len(points)} points, and {MAX_POINTS} is the most: use a larger step or a shorter range")
    return Plan(policy, axes, tuple(points), tuple(skipped))


def _axes(policy: Policy, over: Mapping[str, Any]) -> tuple[Axis, ...]:
    swept = {one.name: one for one in policy.params() if not one.choices}
    if not isinstance(over, Mapping) or not 1 <= len(over) <= MAX_AXES:
        raise ValueError('a sweep goes over one or two parameters, such as {"S": range(5, 61, 5)}')
    unknown = [name for name in over if name not in swept]
    if unknown:
        known = f"it has {', '.join(swept)}" if swept else "it has none"
        raise ValueError(f"{policy.title} has no parameter {shown(unknown[0])} that is a number: {known}")
    axes = tuple(Axis(name, swept[name].label, swept[name].unit, _values(swept[name], values)) for name, values in over.items())
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_COMBINATIONS:
        raise ValueError(f"this sweep has {count} combinations, and {MAX_COMBINATIONS} is the most: use larger steps or shorter ranges")
    return axes


def _values(one: Param, given: Any) -> tuple[float | None, ...]:
    if isinstance(given, Mapping):
        off = given.get("off", False)
        if not isinstance(off, bool):
            raise ValueError(f'"off" of the range of {one.name} is {shown(off)}: pass true for off after the range, or leave it out')
        given = [*spaced(given.get("from"), given.get("to"), given.get("step"), one.name), *([None] if off else [])]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f'the values of {one.name} are {shown(given)}: pass a list of numbers, or {{"from": …, "to": …, "step": …}}')
    found: list[float | None] = []
    for value in itertools.islice(given, MAX_COMBINATIONS + 1):
        plain = number(value)
        if value is not None and (plain is None or not math.isfinite(plain)):
            raise ValueError(f"{one.name} has a value {shown(value)}: only numbers can be swept, and None for off")
        found.append(plain)
    if not found:
        raise ValueError(f"{one.name} has no values to sweep")
    if len(found) > MAX_COMBINATIONS:
        raise ValueError(f"{one.name} has more than {MAX_COMBINATIONS} values: use a larger step or a shorter range")
    if len(set(found)) != len(found):
        twice = next(value for value in found if found.count(value) > 1)
        raise ValueError(f"{one.name} has the value {shown(twice)} twice")
    return tuple(found)


def spaced(first: Any, last: Any, step: Any, name: str) -> list[float]:
    """Return evenly spaced numbers, both ends included, without a float's error: from 0.1 to 0.3 by 0.1 are three.

    Raises:
        ValueError: one is no number, the step is not above 0, the range is empty or has too many values; one sentence.
    """
    ends = [number(value) for value in (first, last, step)]
    if any(value is None or not abs(value) <= 10**9 for value in ends):
        raise ValueError(f"the range of {name} needs three numbers: from, to and step, not {shown(first)}, {shown(last)} and {shown(step)}")
    low, high, by = (Fraction(str(value)) for value in ends)
    if by <= 0 or high < low:
        raise ValueError(f"the range of {name} is empty: it goes up from {shown(first)} to {shown(last)} by a step above 0")
    count = (high - low) // by + 1
    if count > MAX_COMBINATIONS:
        raise ValueError(f"the range of {name} has {count} values, and {MAX_COMBINATIONS} is the most: use a larger step")
    return [_plain(low + index * by) for index in range(count)]


def _plain(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)


def _lowered(policy: Policy, changed: Policy, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what :meth:`Policy.changed` changed beyond ``values``, in words."""
    others = [one.name for one in policy.params() if one.name not in values and getattr(policy, one.name) != getattr(changed, one.name)]
    return tuple(f"{name} is lowered from {getattr(policy, name):g} to {getattr(changed, name):g} to fit" for name in others)


def parse_over(texts: Iterable[str]) -> dict[str, list[float | None]]:
    """Parse ``NAME=FROM:TO:STEP`` and ``NAME=VALUE,VALUE,…``, or both by commas, where ``off`` means None, to what :func:`plan` takes.

    Raises:
        ValueError: a text is neither; says what it should be.
    """
    over: dict[str, list[float | None]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not name or not equals or not rest:
            raise ValueError(f"{shown(text)} is no range: write NAME=FROM:TO:STEP or NAME=VALUE,VALUE, such as S=5:60:5 or C=10,20,off")
        if name in over:
            raise ValueError(f"{name} is swept twice: give its values once")
        over[name] = []
        for part in rest.split(","):
            if ":" in part:
                ends = [_number(end, name) for end in part.split(":")]
                if len(ends) != 3:
                    raise ValueError(f"{shown(text)} is no range: write NAME=FROM:TO:STEP, such as S=5:60:5")
                first, last, step = ends
                over[name] += spaced(first, last, step, name)
            else:
                over[name].append(None if part == "off" else _number(part, name))
    return over


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} has a value {shown(text)}, which is no number") from None
    return int(value) if value.is_integer() else value
