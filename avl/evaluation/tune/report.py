"""What a tuner found: plain values for a file, a table, a picture, and how to use the chosen setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl import charts
from avl.evaluation.rows import Row
from avl.evaluation.tune.search import Tried, front
from avl.policies import Policy, cli_name


@dataclass(frozen=True)
class Tuned:
    """A search and its outcome.

    Attributes:
        task: its name.
        keep: share of full attention's score that was to be kept, 0 to 1.
        full: full attention's row.
        tried: every setting, in the order tried.
        chosen: the best one, None where none keeps enough.
        confirmed: the chosen setting on fresh samples, and full attention's row there; None where it was not asked for.
    """

    task: str
    keep: float
    full: Row
    tried: tuple[Tried, ...]
    chosen: Tried | None
    confirmed: tuple[Tried, Row] | None = None

    def record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        best = None
        if self.chosen is not None:
            best = plain(self.chosen) | {"compare": compare_line(self.chosen.policy), "policies": spec(self.chosen.policy)}
            if self.confirmed is not None:
                again, full = self.confirmed
                best["on fresh samples"] = plain(again) | {"full": round(full.scores[self.task], 4)}
        return {
            "task": self.task,
            "keep": self.keep,
            "full": {"n": len(self.full.points[self.task]), "score": round(self.full.scores[self.task], 4)},
            "chosen": best,
            "front": [one.policy.label for one in front(self.tried)],
            "settings": [plain(one) for one in self.tried],
        }

    def table(self) -> str:
        """Return the Pareto front of score, stored and read as a Markdown table, full attention first."""
        lines = [
            "| setting | score | kept (95 %) | stored | read |",
            "|---|--:|--:|--:|--:|",
            f"| {self.full.policy} | {self.full.scores[self.task]:.1%} | 100.0% | {self.full.stored:.1%} | {self.full.read:.1%} |",
        ]
        for one in front(self.tried):
            low, high = one.interval
            name = f"**{one.policy.label}**" if self.chosen is not None and one.policy == self.chosen.policy else one.policy.label
            lines.append(f"| {name} | {one.score:.1%} | {one.kept:.1%} ({low:.1%} to {high:.1%}) | {one.stored:.1%} | {one.read:.1%} |")
        return "\n".join(lines)

    def verdict(self) -> str:
        """Return what was chosen, its score on the samples that chose it and on fresh ones, and how to use it."""
        dropped = sum(one.dropped for one in self.tried)
        said = [f"{len(self.tried)} settings, {dropped} of them dropped early; {len(front(self.tried))} on the front"]
        if self.chosen is None:
            most = max((one for one in self.tried if not one.dropped), key=lambda one: one.kept, default=None)
            nearest = "all were dropped" if most is None else f"the nearest is {most.policy.label} with {most.kept:.1%}"
            return "\n".join([*said, f"no setting keeps {self.keep:.4g} of full attention's score: {nearest}"])
        said.append(f"chosen    {_said(self.chosen)}")
        if self.confirmed is not None:
            said.append(f"confirmed {_said(self.confirmed[0])}, on fresh samples: the choice cannot have flattered this one")
        return "\n".join([*said, compare_line(self.chosen.policy)])


def _said(one: Tried) -> str:
    low, high = one.interval
    return f"{one.policy.label}: kept {one.kept:.1%} ({low:.1%} to {high:.1%}), stored {one.stored:.1%}, read {one.read:.1%}, n {one.n}"


def plain(one: Tried) -> dict[str, Any]:
    """Return one setting as plain values."""
    return {
        "policy": one.policy.label,
        "parameters": one.policy.to_dict(),
        "stage": one.stage,
        "n": one.n,
        "dropped": one.dropped,
        "score": round(one.score, 4),
        "kept": round(one.kept, 4),
        "interval": [round(end, 4) for end in one.interval],
        "upper": round(one.upper, 4),
        "stored": one.stored,
        "read": one.read,
    }


def _values(policy: Policy) -> list[tuple[str, str]]:
    values = policy.to_dict()
    return [(one.name, "off" if values[one.name] is None else str(values[one.name])) for one in policy.params()]


def spec(policy: Policy) -> str:
    """Return a policy as ``--policies`` and ``--against`` take it: ``avl:S=45,C=30``."""
    return f"{cli_name(type(policy))}:{','.join(f'{name}={value}' for name, value in _values(policy))}"


def compare_line(policy: Policy) -> str:
    """Return the command that tries a setting of A-VL on a picture, with every parameter, because the command has defaults of its own."""
    options = (f"{'-' if len(name) == 1 else '--'}{name} {value}" for name, value in _values(policy))
    return f'avl compare PICTURE "QUESTION" {" ".join(options)}'


def plot(tuned: Tuned, path: Path) -> None:
    """Draw score against what is stored and against what is read as a PNG: all settings, the front, the chosen one."""
    whole, best = [one for one in tuned.tried if not one.dropped], front(tuned.tried)
    gone = [one for one in tuned.tried if one.dropped]
    full = tuned.full.scores[tuned.task]
    with charts.figure(11, 5, 2) as (figure, panels):
        for panel, what in zip(panels, ("stored", "read"), strict=True):

            def points(tried: Sequence[Tried], what: str = what) -> tuple[list[float], list[float]]:
                return [100 * getattr(one, what) for one in tried], [100 * one.score for one in tried]

            panel.set(title=f"{tuned.task}: {what}", xlabel=f"{what} share of the full cache in %", xlim=(0, 102))
            panel.axhline(100 * full, color=charts.INK, linestyle=":", linewidth=1.5, label="full attention")
            panel.axhline(100 * full * tuned.keep, color=charts.PALETTE[1], linewidth=1, label=f"{100 * tuned.keep:g} % of it")
            panel.plot(*points(gone), "x", color=charts.GRAY, label="dropped early")
            panel.plot(*points(whole), "o", color=charts.PALETTE[5], label="settings")
            panel.plot(*points(best), "o", color=charts.PALETTE[0], label="front of score, stored and read")
            if tuned.chosen is not None:
                panel.plot(
                    *points([tuned.chosen]), "*", color=charts.PALETTE[1], markersize=16, label=f"chosen: {tuned.chosen.policy.label}"
                )
        panels[0].set_ylabel("score in %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False)
        charts.save(figure, path)
