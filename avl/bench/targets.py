"""What a GPU is expected to reach, as data, and the comparison with what one reached. Reads results' JSON and nothing else.

The goals are for data-center GPUs in 16 bits, and most are ratios of times of one run, so that they hold for more than one machine. Why
each is where it is: a kernel has about five microseconds of its own beside the bytes that it must move, a step of fused layers the tenth
of its time; the rest is the bytes (avl/bench/roofline.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, dict[str, Any]]
"""Part -> what is in its file."""

Found = Iterator[tuple[str, float]]
"""Pairs (where it was measured, value)."""

LONG = "llava-1.6-7b"
ENGINES = ("engine-1.6", "engine-1.5")


@dataclass(frozen=True)
class Target:
    """A goal.

    Attributes:
        key: to name it by.
        what: the quantity.
        goal: its bound.
        at_most: whether the bound is an upper one.
        find: gives what was measured of it.
    """

    key: str
    what: str
    goal: float
    at_most: bool
    find: Callable[[Results], Found]

    @property
    def bound(self) -> str:
        """The goal in words."""
        return f"{'at most' if self.at_most else 'at least'} {self.goal:g}"


def compare(results: Results, judge: bool = True) -> list[dict[str, Any]]:
    """Return a row for every place where a target was measured, and one for every target that was not.

    Args:
        results: what the parts found.
        judge: whether to say if a goal was met; times of a CPU meet or miss nothing.

    Returns:
        Rows of ``key``, ``what``, ``where``, ``goal``, ``value`` (None: not measured) and ``met`` (None: not judged).
    """
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        facts = {"key": target.key, "what": target.what, "goal": target.bound}
        found = list(target.find(results))
        for where, value in found:
            met = (value <= target.goal if target.at_most else value >= target.goal) if judge else None
            rows.append(facts | {"where": where, "value": value, "met": met})
        if not found:
            rows.append(facts | {"where": "", "value": None, "met": None})
    return rows


def _kernel(label: str, batches: Collection[int], shapes: Collection[str] = (LONG,)) -> Callable[[Results], Found]:
    """Find a ratio of the kernels' table."""

    def find(results: Results) -> Found:
        for cell in results.get("kernels", {}).get("cells", []):
            if cell["shape"] in shapes and cell["batch"] in batches and label in cell.get("ratios", {}):
                yield f"{cell['shape']}, batch {cell['batch']}", cell["ratios"][label]

    return find


def _rows(results: Results, models: Collection[str] = ()) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Yield (where, policy -> its row) of the engine's tables."""
    for part in ENGINES:
        facts = results.get(part, {})
        rows = facts.get("rows", [])
        if models and facts.get("model") not in models:
            continue
        for batch in dict.fromkeys(row["batch"] for row in rows):
            yield f"{facts['model']}, batch {batch}", {row["arm"]: row for row in rows if row["batch"] == batch}


def _floor_share(large: bool) -> Callable[[Results], Found]:
    def find(results: Results) -> Found:
        for where, arms in _rows(results):
            for arm, row in arms.items():
                if (row["batch"] >= 32 if large else row["batch"] == 1) and arm != "prune":
                    yield f"{where}, {arm}", row["floor_share"]

    return find


def _ratio(key: str, over: str, under: str, batches: Collection[int] = (), models: Collection[str] = ()) -> Callable[[Results], Found]:
    """Find the ratio of two policies' medians."""

    def find(results: Results) -> Found:
        for where, arms in _rows(results, models):
            if over in arms and under in arms and (not batches or arms[over]["batch"] in batches):
                yield where, arms[over][key]["median"] / arms[under][key]["median"]

    return find


def _update_cost(results: Results) -> Found:
    """Find what an update step takes on top of a core step, over the time of the bytes that it moves on top."""
    for where, arms in _rows(results, (LONG,)):
        row = arms.get("avl", {})
        if row.get("batch", 0) >= 8 and "update_ms" in row and "core_ms" in row:
            extra = row["update_floor_ms"] - row["core_floor_ms"]
            if extra > 0:
                yield where, (row["update_ms"]["median"] - row["core_ms"]["median"]) / extra


def _peak(results: Results) -> Found:
    for where, arms in _rows(results):
        for arm, row in arms.items():
            if arm in ("evict", "avl"):
                yield f"{where}, {arm}", row["kv_peak_ratio"]


def _outside(batches: Collection[int]) -> Callable[[Results], Found]:
    """Find transformers' own generate over A-VL's step, same model and batch."""

    def find(results: Results) -> Found:
        facts = results.get("references", {})
        ours = {where: arms["avl"]["tpot_ms"]["median"] for where, arms in _rows(results) if "avl" in arms}
        for entry in facts.get("entries", []):
            where = f"{facts['model']}, batch {entry['batch']}"
            if "Dynamic" in entry["name"] and entry["batch"] in batches and entry.get("tpot_ms") and where in ours:
                yield where, entry["tpot_ms"]["median"] / ours[where]

    return find


def _largest(key: str) -> Callable[[Results], Found]:
    def find(results: Results) -> Found:
        facts = results.get("engine-1.6", {})
        full, adaptive = (facts.get("largest", {}).get(arm, {}).get(key) for arm in ("full", "avl"))
        if full and adaptive:
            yield facts["model"], adaptive / full

    return find


def _troubles(results: Results) -> Found:
    rows = results.get("self-check", {}).get("rows", [])
    if rows:
        yield f"{len(rows)} dtypes and head sizes", sum(row["trouble"] is not None for row in rows)


def _failures(results: Results) -> Found:
    counts = results.get("tests", {}).get("counts")
    if counts:
        yield f"{sum(counts.values())} tests", counts["failed"]


def _without_graphs(results: Results) -> Found:
    for part in ENGINES:
        facts = results.get(part, {})
        if "troubles" in facts:
            yield facts["model"], len(facts["troubles"])


TARGETS = (
    Target("C1", "kinds of tensors for which the kernels fail their self-check", 0, True, _troubles),
    Target("C2", "kernel tests that fail", 0, True, _failures),
    Target("C3", "batches whose steps fail, or cannot be CUDA graphs", 0, True, _without_graphs),
    Target("K1", "core attention's bandwidth / bandwidth of a copy", 0.95, False, _kernel("core / copy", (32, 64))),
    Target("K2", "time with scattered / contiguous slots", 1.02, True, _kernel("scattered / contiguous", range(8, 1000))),
    Target("K3a", "time of FlashInfer / core attention, few rows", 1.3, False, _kernel("FlashInfer / core", (1,))),
    Target("K3b", "time of FlashInfer / core attention, many rows", 1.05, False, _kernel("FlashInfer / core", range(16, 1000))),
    Target("K4", "time of slicing and SDPA / core attention", 3.3, False, _kernel("slice / core", range(8, 1000))),
    Target("K5a", "time with / without the text's scores", 1.01, True, _kernel("text scores / none", range(8, 1000))),
    Target("K5b", "time with / without all scores", 1.03, True, _kernel("all scores / none", range(8, 1000))),
    Target("K6a", "time of full / core attention, one row", 1.9, False, _kernel("full / core", (1,))),
    Target("K6b", "time of full / core attention, many rows", 2.8, False, _kernel("full / core", range(16, 1000))),
    Target("S1a", "floor / time of a step, one row", 0.86, False, _floor_share(large=False)),
    Target("S1b", "floor / time of a step, many rows", 0.90, False, _floor_share(large=True)),
    Target("S2a", "step of full attention / A-VL, 8 rows", 1.38, False, _ratio("tpot_ms", "full", "avl", (8,), (LONG,))),
    Target("S2b", "step of full attention / A-VL, 32 rows", 1.90, False, _ratio("tpot_ms", "full", "avl", (32,), (LONG,))),
    Target("S4", "step of full attention / A-VL, everywhere", 1.0, False, _ratio("tpot_ms", "full", "avl")),
    Target("S5a", "step of transformers' generate / A-VL, one row", 5.0, False, _outside((1,))),
    Target("S5b", "step of transformers' generate / A-VL, many rows", 4.3, False, _outside((32,))),
    Target("S7", "an update step's extra time / time of its extra bytes", 1.15, True, _update_cost),
    Target("M1a", "most rows of A-VL / full attention", 2.05, False, _largest("confirmed")),
    Target("M1b", "tokens per second there, A-VL / full attention", 2.4, False, _largest("tokens_per_s")),
    Target("M2", "peak of keys and values / those stored and one whole layer's", 1.03, True, _peak),
    Target("P1a", "time to the first token, A-VL without P / full attention", 1.01, True, _ratio("ttft_ms", "avl", "full", (), (LONG,))),
    Target("P1b", "time to the first token, A-VL with P / full attention", 0.93, True, _ratio("ttft_ms", "prune", "full", (), (LONG,))),
)
