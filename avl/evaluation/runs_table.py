"""Runs as rows of a table, one a run and arm, for spreadsheets: what was asked, every parameter, the answer, memory and times."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from avl.policies import POLICIES
from avl.trace import End, Error, Prefill, Repeat, Step, Trace
from avl.trace.cells import cell

PARAMETERS = tuple(dict.fromkeys(one.name for policy in POLICIES.values() for one in policy.params()))
"""Of all policies, in their order; a column each."""

COLUMNS = (
    "date", "model", "revision", "dtype", "device", "pictures", "turn", "question", "expected", "image_tokens", "text_tokens", "mode",
    "batch", "max_new_tokens", "temperature", "top_p", "seed", "arm", "label", "policy", "reread",
    *(f"policy.{name}" for name in PARAMETERS), "answer", "tokens", "reason", "same_as_full", "first_difference", "stored_bytes",
    "stored_share", "read_bytes", "read_share", "peak_bytes", "ttft_ms", "mean_ms", "median_ms", "p99_ms", "total_ms", "repeats", "error",
)  # fmt: skip


def rows(run: Trace) -> list[dict[str, Any]]:
    """Return what a run says of each arm: name of a column -> value, None where there is none (yet).

    Bytes are of all rows, ``stored_bytes`` and ``read_bytes`` means over the decode steps so far; shares are of what full attention would
    store and read at the same steps. ``tokens`` counts without the end token. ``same_as_full`` compares token by token with the run's arm
    of full attention, None where there is none or one of the two did not end by itself; ``first_difference`` is the first token that
    differs. Times are milliseconds of one step of all rows; ``repeats`` are further runs, whose times are not in these.
    ``turn`` is the number of the question in its conversation; ``reread``, whether the arm read the whole conversation again for it.
    """
    start = run.start
    told: list[list[Prefill | Step]] = [[] for _ in start.arms]
    ends: dict[int, End] = {}
    for event in list(run.events):  # a run that goes on may grow meanwhile
        if isinstance(event, Prefill | Step):
            told[event.arm].append(event)
        elif isinstance(event, End):
            ends[event.arm] = event
    errors = run.of(Error)
    full = next((number for number, arm in enumerate(start.arms) if arm.policy.get("name") == "Full"), None)
    common = {
        "date": start.date,
        **{
            key: start.model.get(name)
            for key, name in (("model", "name"), ("revision", "revision"), ("dtype", "dtype"), ("device", "device"))
        },
        "pictures": ", ".join(map(str, run.meta.get("pictures", ()))) or None,
        "turn": start.turn,
        "question": start.question,
        "expected": run.meta.get("expected"),
        "image_tokens": start.n_image,
        "text_tokens": start.n_text,
        "mode": start.mode,
        "batch": start.batch,
        "max_new_tokens": start.limit,
        "temperature": start.temperature,
        "top_p": start.top_p,
        "seed": start.seed if start.temperature > 0 else None,
        "error": errors[-1].message if errors else None,
    }
    found = []
    for number, arm in enumerate(start.arms):
        row = {**dict.fromkeys(COLUMNS), **common, "arm": number, "label": arm.label, "policy": arm.policy.get("name")}
        row |= {f"policy.{name}": arm.policy.get(name) for name in PARAMETERS}
        row |= {"reread": arm.reread, "text_tokens": start.text_tokens(number)}
        prompt = start.n_image + start.text_tokens(number)
        row |= _measured(told[number], ends.get(number), start.token_bytes * start.batch, prompt)
        row["repeats"] = len(run.of(Repeat, number))
        if full is not None:
            row |= _compared(told[number], ends.get(number), told[full], ends.get(full))
        found.append(row)
    return found


def _measured(told: list[Prefill | Step], end: End | None, token_bytes: int, prompt: int) -> dict[str, Any]:
    if not told:
        return {"tokens": 0}
    first, steps = told[0], [event for event in told if isinstance(event, Step)]
    assert isinstance(first, Prefill)
    text = end.text if end is not None else "".join(event.text for event in told).strip()
    measured: dict[str, Any] = {
        "answer": text,
        "tokens": len(end.tokens) if end is not None else len(told),
        "reason": None if end is None else end.reason,
        "stored_bytes": first.stored_bytes,
        "stored_share": first.stored_bytes / (token_bytes * prompt),
        "peak_bytes": first.peak_bytes if end is None else end.peak_bytes,
        "ttft_ms": first.ms,
        "total_ms": first.ms + sum(step.ms for step in steps),
    }
    if steps:
        # full attention stores and reads the prompt and t more tokens at step t
        full = token_bytes * (prompt + (steps[0].t + steps[-1].t) / 2)
        stored, read = (sum(values) / len(steps) for values in zip(*((step.stored_bytes, step.read_bytes) for step in steps), strict=True))
        times = [step.ms for step in steps]
        measured |= {"stored_bytes": stored, "stored_share": stored / full, "read_bytes": read, "read_share": read / full}
        measured |= {"mean_ms": sum(times) / len(times), "median_ms": float(np.median(times)), "p99_ms": float(np.percentile(times, 99))}
    return measured


def _compared(own: list[Prefill | Step], end: End | None, full: list[Prefill | Step], full_end: End | None) -> dict[str, Any]:
    a, b = [event.token for event in own], [event.token for event in full]
    differ = next((t for t, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), None)
    whole = all(one is not None and one.reason != "stopped" for one in (end, full_end))
    if differ is None and whole and len(a) != len(b):
        differ = min(len(a), len(b))
    return {"first_difference": differ, "same_as_full": False if differ is not None else True if whole else None}


def to_csv(runs: Iterable[Trace], *, head: bool = True) -> str:
    """Return runs as CSV, a line per run and arm; cells that a spreadsheet would run as a formula begin with an apostrophe.

    Args:
        runs: each with its start.
        head: whether the first line names the columns.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    if head:
        writer.writerow(COLUMNS)
    for run in runs:
        for row in rows(run):
            writer.writerow([_plain(row[name]) for name in COLUMNS])
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return cell(value)
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6g}" if isinstance(value, float) and abs(value) < 1e6 else round(value) if isinstance(value, float) else value


def check_file(file: Path) -> bool:
    """Return whether a file has runs already; False where there is none, or an empty one.

    Raises:
        ValueError: it holds something else; one sentence.
    """
    if not file.exists() or not file.stat().st_size:
        return False
    with file.open(encoding="utf-8", errors="replace", newline="") as held:
        if held.readline().strip() != ",".join(COLUMNS):
            raise ValueError(f"{file} has other columns than the runs of this version: name another file, or move this one away")
    return True


def append_csv(run: Trace, file: Path) -> None:
    """Add a run to a file, which is made where there is none.

    Raises:
        ValueError: as :func:`check_file`.
        OSError: it cannot be written.
    """
    held = check_file(file)
    with file.open("a", encoding="utf-8", newline="") as out:
        out.write(to_csv([run], head=not held))
