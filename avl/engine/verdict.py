"""Which points of a sweep keep full attention's answer, and what that costs."""

from __future__ import annotations

import math

from avl.policies import PromptShape
from avl.policies.cost import mean_cost
from avl.policies.plan import Plan
from avl.trace.sweeps import SweepEnd, SweepPoint


def unfinished(chosen: Plan, reason: str) -> SweepEnd:
    """Return the verdict where full attention's answer is not whole."""
    text = "Full attention did not finish its answer, so there is nothing to compare with."
    return SweepEnd(reason, 0, len(chosen.points), (), None, None, text)


def conclude(chosen: Plan, rows: dict[int, SweepPoint], full: SweepPoint, shape: PromptShape, reason: str) -> SweepEnd:
    """Return the verdict.

    Args:
        chosen: what was asked for.
        rows: what was measured, by the number of the point.
        full: full attention's row.
        shape: the prompt's.
        reason: why the sweep ended.
    """
    kept = tuple(number for number, row in rows.items() if row.same)
    cheapest = min(kept, key=lambda number: (rows[number].stored_bytes, rows[number].read_bytes), default=None)
    safe = None
    if cheapest is None:
        text = _closest(rows, len(full.tokens))
    elif len(chosen.axes) == 1:
        costs = _costs(chosen, rows, shape, len(full.tokens))
        failing = [costs[number] for number in rows if number not in kept]
        safe = min((number for number in kept if costs[number] > max(failing, default=(-1, -1))), key=costs.__getitem__, default=None)
        text = _one_axis(chosen, rows, costs, cheapest, safe)
    else:
        best = rows[cheapest]
        text = f"{len(kept)} of {len(rows)} points keep the whole answer; {_named(best)} is the cheapest of them: {_share(best)}."
    if full.reason == "length":
        text = f"{text} Answers were cut at {shape.max_new_tokens} tokens."
    planned = len(chosen.points)
    if len(rows) < planned:
        text = f"{len(rows)} of {planned} points were measured. {text}"
    return SweepEnd(reason, len(rows), planned, kept, cheapest, safe, text)


def _costs(chosen: Plan, rows: dict[int, SweepPoint], shape: PromptShape, tokens: int) -> dict[int, tuple[float, float]]:
    """Return what each point stores, then reads: of sizes, because a short answer stores less on average."""
    steps = range(1, max(2, tokens))
    found = {number: mean_cost(chosen.points[number].policy, shape, steps) for number in rows}
    return {number: (cost.stored, cost.read) for number, cost in found.items()}


def _named(row: SweepPoint) -> str:
    return ", ".join(f"{name}={'off' if value is None else f'{value:g}'}" for name, value in row.values.items())


def _share(row: SweepPoint) -> str:
    return f"it stores {_percent(row.stored_share)} of full attention's bytes and reads {_percent(row.read_share)}"


def _percent(share: float) -> str:
    """Return a share as the page writes it: halves upwards, one digit below ten percent."""
    digits = 1 if share < 0.0995 else 0
    return f"{math.floor(share * 100 * 10**digits + 0.5) / 10**digits:.{digits}f} %"


def _closest(rows: dict[int, SweepPoint], tokens: int) -> str:
    if not rows:
        return "No point was measured."
    best = max(rows.values(), key=lambda row: row.identical)
    return f"No point keeps the whole answer; {_named(best)} comes closest, with the first {best.identical} of its {tokens} tokens."


def _one_axis(chosen: Plan, rows: dict[int, SweepPoint], costs: dict[int, tuple[float, float]], cheapest: int, safe: int | None) -> str:
    """Say which value of one parameter suffices."""
    best = rows[cheapest]
    first = f"{_named(best)} is the {_extreme(chosen, rows, costs)} value that keeps the whole answer: {_share(best)}."
    if safe == cheapest:
        return first
    failing = [_named(row) for number, row in rows.items() if not row.same and costs[number] >= costs[cheapest]]
    several = f"{failing[0]} does" if len(failing) == 1 else f"{len(failing)} values do"
    but = f"But {several} not keep it, although no less is stored or read there"
    return f"{first} {but}" + (f"; from {_named(rows[safe])} on all do." if safe is not None else ".")


def _extreme(chosen: Plan, rows: dict[int, SweepPoint], costs: dict[int, tuple[float, float]]) -> str:
    """Return "smallest" or "largest" where that is what "cheapest" means for this parameter."""
    by_value = [(rows[number].values[chosen.axes[0].name], costs[number]) for number in rows]
    numbers = sorted((value, cost) for value, cost in by_value if value is not None)
    order = [cost for _, cost in numbers]
    if len(numbers) == len(by_value) > 1 and len(set(order)) == len(order):  # off has no place among numbers
        return "smallest" if order == sorted(order) else "largest" if order == sorted(order, reverse=True) else "cheapest"
    return "cheapest"
