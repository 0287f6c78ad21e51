"""What a page's list of runs says of each."""

from __future__ import annotations

from typing import Any

from avl import trace
from avl.evaluation import runs_table
from avl.ui.runs import KeptRun

MOST_KEYS = 24
"""Runs that one call may ask for; as many as are kept of a visitor."""

CUT = 400
"""Characters of an answer, and of a question."""

_OF_ARM = (
    "label", "policy", "tokens", "reason", "same_as_full", "first_difference", "stored_bytes", "stored_share", "read_bytes", "read_share",
    "peak_bytes", "ttft_ms", "mean_ms", "median_ms", "p99_ms",
)  # fmt: skip


def keys_of(wanted: Any) -> list[str]:
    """Return the keys that a page sent, each once; nothing where it sent something else, the first :data:`MOST_KEYS` of too many."""
    sent = wanted.get("runs") if isinstance(wanted, dict) else None
    if not isinstance(sent, list):
        return []
    return list(dict.fromkeys(key for key in sent[:MOST_KEYS] if isinstance(key, str) and len(key) <= 64))


def summary(run: KeptRun) -> dict[str, Any]:
    """Return a run in short; of one that is over it is made once."""
    if run.summary is not None:
        return run.summary
    events, meta, over = run.trace.events, run.trace.meta, run.over
    told: dict[str, Any] = {
        "run": run.key,
        "state": run.state,
        "position": run.position,
        "left": run.left,
        "count": len(events),
        "thumbnail": run.thumbnail,
        "pictures": [str(name)[:CUT] for name in meta.get("pictures", ())],
        "link": meta.get("link"),
        "started": run.began,
    }
    errors = run.trace.of(trace.Error)
    told["error"] = errors[-1].message if errors else None
    if run.began:
        start = run.trace.start
        told |= {
            "date": start.date,
            "question": start.question[:CUT],
            "turn": start.turn,
            "first_question": (*start.questions, start.question)[0][:CUT],
            "mode": start.mode,
            "batch": start.batch,
            "limit": start.limit,
            "image_tokens": start.n_image,
            "text_tokens": start.n_text,
            "temperature": start.temperature,
            "seed": start.seed,
            "repeats": meta.get("repeats", 1),
            "expected": meta.get("expected"),
            "arms": [_arm(row, start.arms[row["arm"]]) for row in runs_table.rows(run.trace)],
        }
    if over:
        run.summary = told
    return told


def _arm(row: dict[str, Any], arm: trace.Arm) -> dict[str, Any]:
    answer = row["answer"] or ""
    told = {name: row[name] for name in _OF_ARM}
    return {**told, "title": arm.title, "parameters": arm.policy, "answer": answer[:CUT], "cut": len(answer) > CUT}
