"""PNG charts of a benchmark result. Reads the result's JSON and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from avl import charts
from avl.bench.report import Result, machine, number, subject, title

WIDTH, HEIGHT = 960, 600
"""Pixels of a chart."""


def _caption(figure: Any, result: Result) -> None:
    figure.supxlabel(f"{subject(result)}; {result['date'][:10]}\n{machine(result)}", x=0.01, ha="left", fontsize=8, color=charts.GRAY)


def _lines(result: Result, value: Callable[[Result], dict[str, Any] | None], floor: str, heading: str, unit: str, path: Path) -> Path:
    """One line an arm over the batches, quartiles as whiskers, the floor dashed."""
    batches = sorted({row["batch"] for row in result["rows"]})
    rows = [row for row in result["rows"] if value(row) is not None]
    with charts.figure(WIDTH / 100, HEIGHT / 100) as (figure, (panel,)):
        if floor == "floor_ratio":
            panel.axhline(1, color=charts.INK, linewidth=1.5)
            panel.text(1, 0.99, "below this line it does not pay", transform=panel.get_yaxis_transform(), ha="right", va="top", fontsize=9)
        for place, arm in enumerate(result["arms"]):
            own = [row for row in rows if row["arm"] == arm]
            if not own:
                continue
            look = charts.style(place)
            # arms stand a little apart, so that whiskers do not hide each other
            at = [batches.index(row["batch"]) + (place - (len(result["arms"]) - 1) / 2) * 0.05 for row in own]
            spreads = [value(row) or {} for row in own]
            middle = [spread["median"] for spread in spreads]
            low = [spread["median"] - spread["q1"] for spread in spreads]
            high = [spread["q3"] - spread["median"] for spread in spreads]
            panel.errorbar(at, middle, yerr=[low, high], elinewidth=2, label=title(result, arm), **look)
            panel.plot(at, [row[floor] for row in own], color=look["color"], linestyle="--", linewidth=1.5, marker="_", markersize=16)
        panel.plot([], [], color=charts.GRAY, linestyle="--", linewidth=1.5, label="floor by bytes")
        panel.set(title=heading, ylabel=unit, xlabel="rows decoded at once (batch)", ylim=(0, None), xlim=(-0.5, len(batches) - 0.5))
        panel.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        panel.legend(frameon=False)
        _caption(figure, result)
        return charts.save(figure, path)


def _memory(result: Result, path: Path) -> Path:
    """Bars: KV bytes of one row that each arm stores, and reads in a mean step."""
    arms = result["roofline"]["arms"]
    unit, scale = ("GB", 1e9) if max(facts["stored_bytes"] for facts in arms.values()) >= 1e9 else ("MB", 1e6)
    with charts.figure(WIDTH / 100, HEIGHT / 100) as (figure, (panel,)):
        for side, (name, words) in enumerate((("stored_bytes", "stored"), ("read_bytes", "read per step"))):
            at = [place + (side - 0.5) * 0.3 for place in range(len(arms))]
            bars = panel.bar(at, [facts[name] / scale for facts in arms.values()], 0.28, color=charts.PALETTE[2 * side], label=words)
            panel.bar_label(bars, [number(facts[name] / scale) for facts in arms.values()], padding=2)
        panel.set(title="Keys and values of one row", ylabel=unit, xlabel="mean over the answer")
        panel.set_xticks(range(len(arms)), [title(result, arm) for arm in arms])
        panel.margins(y=0.15)
        panel.legend(frameon=False)
        _caption(figure, result)
        return charts.save(figure, path)


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw ``tpot.png`` (time per token over batch), ``ratio.png`` (against the first policy), ``kv.png``; returns the files written.

    Raises:
        OSError: matplotlib is not installed.
    """
    files = [_memory(result, folder / "kv.png")]
    if result["rows"]:
        files.append(_lines(result, lambda row: row["tpot_ms"], "floor_ms", "Time per token", "milliseconds", folder / "tpot.png"))
    if any(row["ratio"] for row in result["rows"]):
        base = title(result, next(row["ratio"]["to"] for row in result["rows"] if row["ratio"]))
        heading, unit = f"Times faster than {base}", f"time of {base} / time"
        files.append(_lines(result, lambda row: row["ratio"], "floor_ratio", heading, unit, folder / "ratio.png"))
    return files
