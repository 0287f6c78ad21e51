"""A set of figures as files: SVG and data each, and an index of what the paper says, what was measured, and whether they agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avl._files import write_whole
from avl.evaluation.figures.made import Figure
from avl.evaluation.figures.statements import Statement


def check_folder(folder: Path) -> None:
    """Make a folder and see that files can be written there: asked before anything is measured.

    Raises:
        OSError: they cannot; one sentence.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".figures.part"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise OSError(f"no figure can be written into {folder} ({error.strerror or type(error).__name__}): pass another --out") from None


class Written:
    """The figures of one command, each written as soon as it is made; the index is complete after every one.

    Args:
        folder: where.
        made: what all figures have in common: model, machine, settings, date.
    """

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self._folder, self._made = folder, made
        self._figures: dict[str, Figure] = {}
        self.skipped: dict[str, str] = {}

    @property
    def statements(self) -> list[Statement]:
        """The statements of all figures."""
        return [one for figure in self._figures.values() for one in figure.statements]

    def add(self, figure: Figure) -> None:
        """Write a figure: ``figure-N.svg`` and ``figure-N.json``."""
        name = f"figure-{figure.number}"
        statements = [one.to_dict() for one in figure.statements]
        record = {"figure": figure.number, "title": figure.title, **self._made, "statements": statements, "data": figure.data}
        figure.draw(self._folder / f"{name}.svg", figure.title, figure.description)
        write_whole(self._folder / f"{name}.json", json.dumps(record, ensure_ascii=False) + "\n")
        self._figures[figure.number] = figure
        self._index()

    def skip(self, number: str, reason: str) -> None:
        """Say why a figure is not made."""
        self.skipped[number] = reason
        self._index()

    def record(self) -> dict[str, Any]:
        """Return the index as plain values: without the values that each statement is of, which are in the figures' files."""
        return {
            **self._made,
            "figures": [
                {
                    "figure": figure.number,
                    "title": figure.title,
                    "files": [f"figure-{figure.number}.svg", f"figure-{figure.number}.json"],
                    "statements": [{key: value for key, value in one.to_dict().items() if key != "values"} for one in figure.statements],
                }
                for figure in self._figures.values()
            ],
            "skipped": [{"figure": number, "reason": reason} for number, reason in self.skipped.items()],
        }

    def markdown(self) -> str:
        """Return the index as Markdown: what it was made with, a table of the statements, what was skipped, the pictures."""
        model, machine = self._made["model"], self._made["machine"]
        hardware = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} threads"
        lines = [
            f"# The paper's figures, {model['name']}",
            "",
            f"`{self._made['command']}`",
            "",
            f"{model['name']}, {model['dtype']} on {model['device']}; {hardware}; torch {machine['torch']}, transformers "
            f"{machine['transformers']}; {self._made['date']}. Intervals are 95 %, from a bootstrap. Each rule is in figures.json.",
            "",
            *table(self.statements),
        ]
        for number, reason in self.skipped.items():
            lines += ["", f"Figure {number} is left out: {reason}."]
        for figure in self._figures.values():
            lines += ["", f"## Figure {figure.number}", "", f"![{figure.description}](figure-{figure.number}.svg)"]
        return "\n".join(lines) + "\n"

    def _index(self) -> None:
        write_whole(self._folder / "figures.json", json.dumps(self.record(), indent=1, ensure_ascii=False) + "\n")
        write_whole(self._folder / "figures.md", self.markdown())


def table(statements: list[Statement]) -> list[str]:
    """Return statements as the lines of a Markdown table."""
    lines = ["| figure | the paper says | measured here | agrees |", "|---|---|---|---|"]
    for one in statements:
        verdict = one.agrees if not one.reason else f"{one.agrees}: {one.reason}"
        lines.append(f"| {one.figure} | {one.claim} | {one.quantity}: {one.here} ({len(one.values)} {one.over}) | {verdict} |")
    return lines
