"""A table as results.json and as Markdown: the paper's numbers, ours, and whether ours differ from full attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avl._files import write_whole
from avl.evaluation.paper.filling import Place
from avl.evaluation.paper.methods import TABLES, Method
from avl.evaluation.paper.published import BENCHMARKS, MIXED, MODELS, OURS, SCALE
from avl.evaluation.rows import Row, paired
from avl.policies.presets import UNMEASURED

RESULTS, TABLE = "results.json", "table.md"


def record(
    facts: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]], rows: Sequence[tuple[Place, Row]], asked: Sequence[Place]
) -> dict[str, Any]:
    """Return all that was found as plain values.

    Args:
        facts: what all cells have in common; "model" and "paper_model", the short name in the paper's tables or None, are among them.
        tasks: name -> what the answers to a task depend on.
        rows: the cells that are complete, full attention's first of each task.
        asked: all cells.
    """
    full = {place.task.name: (place.method, row) for place, row in rows if row.parameters["name"] == "Full"}
    found = [_cell(place, row, *full[place.task.name]) for place, row in rows]
    out = [{"task": one.task.name, "method": one.method.label, "reason": one.left_out} for one in asked if one.policy is None]
    missing = sum(one.policy is not None for one in asked) - len(rows)
    return {
        **facts,
        "finished": missing == 0,
        "notes": _notes(facts, [place for place, _ in rows]),
        "tasks": {name: dict(made) for name, made in tasks.items()},
        "cells": found,
        "averages": _averages(found, [place.method for place, _ in rows]),
        "left_out": out,
    }


def _cell(place: Place, row: Row, method: Method, full: Row) -> dict[str, Any]:
    name = place.task.name
    ours, base = (SCALE * one.scores[name] for one in (row, full))
    paper, paper_base = place.method.paper.get(name), method.paper.get(name)
    is_full = row is full
    low, high = paired(row.points[name], full.points[name])
    return {
        "task": name,
        "method": place.method.label,
        "policy": row.policy,
        "parameters": row.parameters,
        "n": len(row.points[name]),
        "of": place.task.of,
        "paper": paper,
        "ours": round(ours, 2),
        "difference": None if paper is None else round(ours - paper, 2),
        "paper_to_full": None if is_full or paper is None or paper_base is None else round(paper - paper_base, 2),
        "to_full": None if is_full else round(ours - base, 2),
        "interval": None if is_full else [round(SCALE * low, 2), round(SCALE * high, 2)],
        "paper_stored": place.method.paper_stored,
        "stored": round(100 * row.stored, 1),
        "paper_read": place.method.paper_read,
        "read": round(100 * row.read, 1),
        "seconds": row.seconds,
        "date": row.date,
    }


def _averages(cells: Sequence[Mapping[str, Any]], methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return the mean over the paper's five tasks of each method that answered all of them."""
    found = []
    for method in dict.fromkeys(one.label for one in methods):
        ours = {cell["task"]: cell["ours"] for cell in cells if cell["method"] == method}
        if set(BENCHMARKS) <= set(ours):
            printed = next(one.average for one in methods if one.label == method)
            found.append({"method": method, "paper": printed, "ours": round(sum(ours[name] for name in BENCHMARKS) / len(BENCHMARKS), 2)})
    return found


def _notes(facts: Mapping[str, Any], done: Sequence[Place]) -> list[str]:
    notes = []
    printed = [place for place in done if place.task.name in place.method.paper]
    if any(place.method.label == OURS for place in printed):
        notes.append(MIXED)
    if facts["paper_model"] is None and set(TABLES) & set(facts["asked"]):
        notes.append(UNMEASURED)
    limited = sorted({place.task.name for place in done if place.task.size < place.task.of})
    if limited:
        notes.append(f"Only the first documents of {', '.join(limited)} were asked; the paper's numbers are of all.")
    notes.append(
        "In brackets: the 95 % interval of the difference to full attention on the same documents (paired bootstrap); from 0 to 0, no "
        "document was scored otherwise. Differences to the paper's numbers are also of other code, prompts and data: they test nothing."
    )
    notes.append("Stored and read: shares of a full cache, averaged over decode steps, each row until its answer ends.")
    return notes


def markdown(found: Mapping[str, Any]) -> str:
    """Return a record as a document with one table."""
    model = MODELS.get(found["paper_model"] or "", found["model"])
    versions = ", ".join(f"{name} {found[name]}" for name in ("avl", "evaluator", "torch", "transformers"))
    processes = "one process" if found["processes"] == 1 else f"{found['processes']} processes"
    lines = [
        f"# A-VL (arXiv 2409.14846), {' '.join(found['asked'])}: {model}",
        "",
        f"{found['model']} {found['revision'] or ''} {found['dtype']} on {found['device']}; {versions}; {processes}.",
        *([] if found["finished"] else ["", "**Not finished.**"]),
        "",
        "| task | policy | n | paper | ours | difference | to full, paper | to full, ours | stored | read |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    before = None
    for cell in found["cells"]:
        n = f"{cell['n']}" if cell["n"] == cell["of"] else f"{cell['n']} of {cell['of']}"
        values = [
            _title(cell["task"]) if cell["task"] != before else "",
            cell["policy"],
            n,
            _plain(cell["paper"]),
            _plain(cell["ours"]),
            _signed(cell["difference"]),
            _signed(cell["paper_to_full"]),
            _signed(cell["to_full"]) + ("" if cell["interval"] is None else f" ({' to '.join(map(_signed, cell['interval']))})"),
            _share(cell["stored"], cell["paper_stored"]),
            _share(cell["read"], cell["paper_read"]),
        ]
        lines.append(f"| {' | '.join(values)} |")
        before = cell["task"]
    for place, one in enumerate(found["averages"]):
        difference = None if one["paper"] is None else one["ours"] - one["paper"]
        values = ["" if place else "Average", one["method"], "", _plain(one["paper"]), _plain(one["ours"]), _signed(difference)]
        lines.append(f"| {' | '.join(values)} | | | | |")
    lines += ["", *(f"- {note}" for note in found["notes"])]
    lines += [f"- {one['method']} on {one['task']} is left out: {one['reason']}." for one in found["left_out"]]
    return "\n".join(lines) + "\n"


def _title(task: str) -> str:
    return f"{BENCHMARKS[task].title}, {BENCHMARKS[task].score}" if task in BENCHMARKS else task


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def _share(ours: float, paper: int | None) -> str:
    return f"{ours:.0f} %" if paper is None else f"{ours:.0f} % (paper {paper} %)"


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Write a record as results.json and table.md, each whole or not at all."""
    write_whole(folder / RESULTS, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / TABLE, markdown(found))
