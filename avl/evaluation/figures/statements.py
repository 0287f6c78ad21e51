"""What the paper says of a figure, beside what was measured here, and whether the two agree: by a rule that stands in the data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LEAST = 5
"""Values below which nothing is decided."""
DRAWS = 4000
SIGNS: dict[str, Callable[[float, float], bool]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
WORDS = {"<": "below", "<=": "at most", ">": "above", ">=": "at least"}
STATISTICS: dict[str, Callable[..., Any]] = {"median": np.median, "mean": np.mean}


@dataclass(frozen=True)
class Statement:
    """One statement of the paper, as a quantity with a limit.

    Attributes:
        figure: its number.
        claim: what the paper says.
        quantity: what is measured, once for each of ``over``.
        sign: of the quantity to the limit, where the paper is right.
        limit: in ``unit``.
        limit_from: whose number the limit is, and why.
        unit: of the quantity: "%", "points", "×".
        over: what the values are of: "answers", "samples", "rounds".
        values: the quantity of each; empty where it could not be measured.
        missing: why there are no values.
        statistic: what stands for all of them.
    """

    figure: str
    claim: str
    quantity: str
    sign: Literal["<", "<=", ">", ">="]
    limit: float
    limit_from: str
    unit: str
    over: str
    values: tuple[float, ...]
    missing: str = ""
    statistic: Literal["median", "mean"] = "median"

    @property
    def measured(self) -> float | None:
        """The statistic of the values, None without any."""
        return float(STATISTICS[self.statistic](self.values)) if self.values else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval, from a bootstrap over the values; None for fewer than :data:`LEAST`."""
        if len(self.values) < LEAST:
            return None
        drawn = np.random.default_rng(0).integers(len(self.values), size=(DRAWS, len(self.values)))
        found = STATISTICS[self.statistic](np.asarray(self.values)[drawn], axis=1)
        low, high = np.quantile(found, (0.025, 0.975))
        return float(low), float(high)

    @property
    def rule(self) -> str:
        """How it is decided, in words."""
        return (
            f"{self.quantity}: {self.statistic} over {self.over} {WORDS[self.sign]} {_number(self.limit)}{_space(self.unit)} "
            f"({self.limit_from}); yes where its whole 95 % interval is, no where none of it is, else it cannot be said"
        )

    @property
    def agrees(self) -> Literal["yes", "no", "cannot say"]:
        """Whether this run agrees with the paper."""
        if self.interval is None:
            return "cannot say"
        ends = [SIGNS[self.sign](end, self.limit) for end in self.interval]
        return "yes" if all(ends) else "no" if not any(ends) else "cannot say"

    @property
    def reason(self) -> str:
        """Why it cannot be said; "" where it can."""
        if self.agrees != "cannot say":
            return ""
        if self.missing:
            return self.missing
        if len(self.values) < LEAST:
            return f"fewer than {LEAST} {self.over} decide nothing, {len(self.values)} here"
        return "the limit is inside the interval"

    @property
    def here(self) -> str:
        """What was measured, for people."""
        if self.measured is None:
            return "–"
        unit = _space(self.unit)
        if self.interval is None:
            return f"{_number(self.measured)}{unit}"
        low, high = map(_number, self.interval)
        return f"{_number(self.measured)}{unit}" + ("" if low == high else f" ({low} to {high})")

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "figure": self.figure,
            "claim": self.claim,
            "rule": self.rule,
            "quantity": self.quantity,
            "unit": self.unit,
            "sign": self.sign,
            "limit": self.limit,
            "limit_from": self.limit_from,
            "statistic": self.statistic,
            "over": self.over,
            "count": len(self.values),
            "measured": _rounded(self.measured),
            "interval": None if self.interval is None else [_rounded(end) for end in self.interval],
            "agrees": self.agrees,
            "reason": self.reason,
            "values": [_rounded(value) for value in self.values],
        }


def quartiles(values: Sequence[Any] | np.ndarray) -> dict[str, list[float]]:
    """Return median and quartiles over the first axis, with four digits behind the point: what a figure draws as a line and its band.

    Values that are no number are left out.
    """
    found = np.nanquantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75), axis=0)
    return {name: row.round(4).tolist() for name, row in zip(("q1", "median", "q3"), found, strict=True)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _number(value: float) -> str:
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text.replace("-", "−")


def _space(unit: str) -> str:
    return f" {unit}" if unit else ""
