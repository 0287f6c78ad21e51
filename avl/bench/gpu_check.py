"""Checks of a machine, part by part, in a bounded time: what ``avl gpu-check`` runs.

Each part is a process of its own with a share of the time, and keeps what it finds in a file as it finds it. So a part that hangs, crashes,
runs out of memory or spoils its CUDA context loses nothing but what it had not found yet, and the next one runs. Parts have weights: the
time left is shared out among those to come, so what one does not use flows on to the next.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from avl.bench import gpu_report, targets

SCHEMA = "avl.gpu-check/1"
LEAST_SECONDS = 2.0
"""A part that would get less is not begun."""

ENDED = ("done", "not here")
"""States of a part that ended by itself, without an error. The others: running, failed, out of memory, out of time, crashed, stopped,
no time left."""

Command = Callable[["Part", Path, float], Sequence[str]]


class NotHereError(Exception):
    """Why a part has nothing to do on this machine."""


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: of its files.
        title: for people.
        weight: its share of the time, relative to the other parts'.
        work: does it; takes the record of what it finds.
    """

    name: str
    title: str
    weight: float
    work: Callable[[Record], None]


class Record:
    """What a part finds, written to its file each time it grows.

    Args:
        file: where it is kept, as JSON.
        part: name of the part.
        seconds: time of the part.
    """

    def __init__(self, file: Path, part: str, seconds: float) -> None:
        self._file, self._began, self._seconds = file, time.monotonic(), seconds
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.facts: dict[str, Any] = {"schema": SCHEMA, "part": part, "date": date, "state": "running", "why": None}
        self.keep()

    def keep(self, **facts: Any) -> None:
        """Add facts, and write all of them."""
        self.facts |= facts
        write(self._file, json.dumps(self.facts, indent=1))

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._seconds - (time.monotonic() - self._began)


def write(file: Path, text: str) -> None:
    """Write a file that is whole whenever it is read."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_text(f"{text}\n", encoding="utf-8")
    beside.replace(file)


def first_line(error: BaseException) -> str:
    """Return the kind and the first line of an error."""
    text = str(error).strip().partition("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def carry_out(work: Callable[[Record], None], record: Record) -> None:
    """Do the work of a part in this process, and keep how it ended; an error's traceback goes to stderr."""
    try:
        work(record)
    except NotHereError as reason:
        record.keep(state="not here", why=str(reason))
    except Exception as error:
        from avl.engine.failures import out_of_memory  # only now: it needs torch

        traceback.print_exc()
        record.keep(state="out of memory" if out_of_memory(error) else "failed", why=first_line(error))
    else:
        record.keep(state="done")


def child_command(part: Part, folder: Path, seconds: float) -> list[str]:
    """Return the command that carries out a part in a process of its own."""
    return [sys.executable, "-m", "avl.bench.gpu_parts", part.name, str(folder / f"{part.name}.json"), f"{seconds:.1f}"]


@dataclass
class _Running:
    part: Part
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float
    limit: float


def run_parts(
    parts: Sequence[Part], folder: Path, seconds: float, say: Callable[[str], None] = print, command: Command = child_command
) -> dict[str, Any]:
    """Run parts one after another, and keep the summary after each.

    On a machine without a GPU, where times mean nothing, two run at a time.

    Args:
        parts: in order of value.
        folder: where the files lie: for each part NAME.json and its output NAME.log, and summary.json and summary.md.
        seconds: time of all of them together.
        say: takes a line of progress.
        command: gives the command of a part's process.

    Returns:
        The summary. Ctrl-C ends it early: what is done is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:  # what an earlier run left
        for kind in ("json", "log"):
            (folder / f"{part.name}.{kind}").unlink(missing_ok=True)
    end = time.monotonic() + seconds
    waiting, running = list(parts), list[_Running]()
    summary = summarize(parts, folder)

    def close(one: _Running, state: str, why: str) -> None:
        nonlocal summary
        _settle(one, folder, state, why)
        running.remove(one)
        summary = summarize(parts, folder)
        facts = _read(folder, one.part)
        say(f"{one.part.name}: {facts['state']} in {facts['seconds']:.0f} s{'' if facts['why'] is None else ', ' + facts['why']}")

    try:
        while waiting or running:
            together = 2 if summary["evidence"] == "cpu" else 1
            while waiting and len(running) < together:
                part = waiting.pop(0)
                limit = (end - time.monotonic()) * part.weight / (part.weight + sum(one.weight for one in waiting))
                if limit < LEAST_SECONDS:
                    Record(folder / f"{part.name}.json", part.name, 0).keep(state="no time left", seconds=0.0, limit_s=max(0.0, limit))
                    say(f"{part.name}: no time left")
                    continue
                running.append(_start(part, folder, limit, command))
            for one in list(running):
                if one.process.poll() is not None:
                    close(one, "crashed", _how_it_ended(one, folder))
                elif time.monotonic() - one.began > one.limit:
                    close(one, "out of time", f"killed after its {one.limit:.0f} s")
            time.sleep(0.05)
    except KeyboardInterrupt:
        for one in list(running):
            close(one, "stopped", "by Ctrl-C or SIGTERM")
    return summarize(parts, folder)


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end what runs inside as Ctrl-C does."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(part: Part, folder: Path, limit: float, command: Command) -> _Running:
    home = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")])), "PYTHONUNBUFFERED": "1"}
    log = (folder / f"{part.name}.log").open("wb")
    # a session of its own: Ctrl-C reaches only this process, and what the part started is killed with it
    process = subprocess.Popen(
        command(part, folder, limit), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    return _Running(part, process, log, time.monotonic(), limit)


def _settle(one: _Running, folder: Path, state: str, why: str) -> None:
    """Make sure that a part's process is gone and its file says how it ended: ``state`` unless it says so itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid, signal.SIGKILL)
    try:
        one.process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # a driver that does not return
        why += "; its process is still there"
    one.log.close()
    facts = _read(folder, one.part)
    if facts["state"] == "running":
        facts |= {"state": state, "why": why}
    facts |= {"seconds": round(time.monotonic() - one.began, 2), "limit_s": round(one.limit, 2)}
    write(folder / f"{one.part.name}.json", json.dumps(facts, indent=1))


def _how_it_ended(one: _Running, folder: Path) -> str:
    """Return the signal or exit status of a process, and the last line that it said."""
    status = one.process.returncode
    how = f"exit status {status}"
    if status < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-status).name
    said = (folder / f"{one.part.name}.log").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    return f"{how}: {last[:300]}" if last else how


def _read(folder: Path, part: Part) -> dict[str, Any]:
    """Return what is in a part's file, as far as it is there."""
    try:
        facts: dict[str, Any] = json.loads((folder / f"{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"schema": SCHEMA, "part": part.name, "state": "running", "why": None}
    return facts


def summarize(parts: Sequence[Part], folder: Path) -> dict[str, Any]:
    """Return what all parts found against the targets, and write it to ``folder``, for programs and for people."""
    found = {part.name: _read(folder, part) for part in parts if (folder / f"{part.name}.json").exists()}
    kinds = {facts["evidence"] for facts in found.values() if "evidence" in facts}
    rows = targets.compare(found, judge="gpu" in kinds)
    summary = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evidence": "gpu" if "gpu" in kinds else "cpu" if kinds else None,
        "machine": next((facts["machine"] for facts in found.values() if "machine" in facts), None),
        "parts": [
            {"name": part.name, "title": part.title}
            | {key: found.get(part.name, {}).get(key) for key in ("state", "seconds", "limit_s", "why")}
            for part in parts
        ],
        "targets": rows,
        "missed": [f"{row['key']}, {row['where']}" for row in rows if row["met"] is False],
    }
    write(folder / "summary.json", json.dumps(summary, indent=1))
    write(folder / "summary.md", gpu_report.text(summary, found))
    return summary
