"""What the scripts of the page call.

Plain functions, because Gradio marks each with an attribute, which a method does not take. Whatever a visitor sends is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from avl import trace
from avl.evaluation import runs_table
from avl.ui import equal_memory, report
from avl.ui import settings as controls
from avl.ui.following import Following
from avl.ui.history import keys_of, summary
from avl.ui.prompts import PromptSize
from avl.ui.runs import KeptRun, Runs
from avl.ui.settings import About

MISSING_BYTES = 2**20  # of an answer to a page that missed events; it asks again for more
GONE = "The server no longer has this run."


def player_functions(runs: Runs, recorded: trace.Trace | None, following: Following) -> list[Callable[[Any], Any]]:
    """Return the functions that the player calls.

    Args:
        runs: where runs are kept.
        recorded: the run that the page opens with, None without one.
        following: ends a run by its key.
    """
    recording_json = None if recorded is None else recorded.to_json()

    def missing(wanted: Any) -> str | None:
        """Return a run's events from a number on, as a batch has them, for a page that missed some: as many as fit in one answer."""
        run = runs.get(wanted.get("run")) if isinstance(wanted, dict) else None
        first = wanted.get("first") if isinstance(wanted, dict) else None
        if run is None or not isinstance(first, int) or first < 0:
            return None
        return trace.events_json(run.events[first:], MISSING_BYTES)

    def download(wanted: Any) -> str:
        """Return a run as JSON, CSV or an offline page; or several runs, as one CSV with a line per run and arm."""
        wanted = wanted if isinstance(wanted, dict) else {}
        if "runs" in wanted:
            return runs_table.to_csv([run.trace for run in several(wanted)])
        run = runs.get(wanted.get("run"))
        if run is None or not run.events:
            raise gr.Error(GONE, print_exception=False)
        kind = wanted.get("kind")
        return report.page(run) if kind == "html" else report.steps_csv(run) if kind == "csv" else run.to_json()

    def several(wanted: dict[str, Any]) -> list[KeptRun]:
        keys, kind = keys_of(wanted), wanted.get("kind")
        if kind != "csv":
            raise gr.Error("Several runs come as one CSV file only.", print_exception=False)
        found = [run for run in map(runs.find, keys) if run is not None]
        if not found or len(found) < len(keys):
            raise gr.Error(f"The server has {len(found)} of these {len(keys)} runs: load the list of runs again.", print_exception=False)
        return [run for run in found if run.began]  # the others have no lines

    def recording(_: Any) -> str | None:
        """Return the run that the page opens with, asked for after the first paint: within the page, its size would hold that up."""
        return recording_json

    def last(wanted: Any) -> str | None:
        """Return a run that the visitor had before the page was loaded anew, None where it is gone."""
        run = runs.get(wanted.get("run")) if isinstance(wanted, dict) else None
        return run.to_json() if run is not None and run.events else None

    def history(wanted: Any) -> list[dict[str, Any]]:
        """Return what is to be said of each of the runs that are still there, in the order of the keys."""
        found = [run for run in map(runs.find, keys_of(wanted)) if run is not None]
        # a run that no page reads may be joined by one that has just been opened
        return [summary(run) if run.over else {**summary(run), "read": following.is_read(run.key)} for run in found]

    def stop_run(wanted: Any) -> bool:
        """End a run by its key; false where it is over, or is not known."""
        return isinstance(wanted, dict) and following.stop_run(wanted.get("run"))

    return [missing, download, recording, last, history, stop_run]


def settings_functions(about: About) -> list[Callable[[Any], Any]]:
    """Return the functions that the settings call: ``predict``, ``equal``, ``equal_all``; all hear the prompt's size."""

    def asked(wanted: Any) -> tuple[dict[str, Any], Any, PromptSize]:
        wanted = wanted if isinstance(wanted, dict) else {}
        return wanted, wanted.get("settings"), controls.sent_prompt(wanted.get("prompt"), about)

    def predict(wanted: Any) -> dict[str, Any]:
        """Return what the arms of the settings will store and read."""
        _, chosen, prompt = asked(wanted)
        return controls.predict(chosen, about, prompt)

    def equal(wanted: Any) -> dict[str, Any]:
        """Return the parameters of ``arm`` at the stored share of arm ``to``, of two arms the other one."""
        wanted, chosen, prompt = asked(wanted)
        return equal_memory.equal(chosen, wanted.get("arm"), about, prompt, wanted.get("to"))

    def equal_all(wanted: Any) -> dict[str, Any]:
        """Return an arm of every policy, at the stored share of ``arm`` or at ``share``."""
        wanted, chosen, prompt = asked(wanted)
        return equal_memory.equal_all(chosen, about, prompt, wanted.get("arm"), wanted.get("share"))

    return [predict, equal, equal_all]
