"""Figures 4 and 5: do layers attend to the same image tokens, and do the steps of one layer (p % PPCI, Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avl import charts
from avl.evaluation.figures.answers import LONG, PARTS, Answer, long_enough
from avl.evaluation.figures.made import CannotMakeError, Figure
from avl.evaluation.figures.statements import Statement, quartiles

LOW, LOWER = 70, 60
"""Percent of PPCI below which the paper sees the first layer and later ones, and the first and the last."""
SHORT = 3
"""Decode steps after which attention may shift."""


def figure_4(answers: Sequence[Answer]) -> Figure:
    """Return Figure 4 of recorded answers about pictures."""
    found = [one.seen for one in answers if one.seen is not None]
    layers = len(found[0].few)
    several = [one for one in found if layers > 1]
    missing = "" if several else "the model has one layer"
    curves = {p: quartiles([one.layers[p] for one in found]) for p in PARTS}
    data: dict[str, Any] = {"layers": list(range(layers)), "ppci": curves, "answers": len(found)}

    def said(claim: str, quantity: str, limit: float, values: list[float]) -> Statement:
        return Statement("4", claim, quantity, "<", limit, "the paper's number", "%", "answers", tuple(values), missing)

    statements = (
        said(
            "The first layer and each later one share less than 70 % of their top 50 % of the image tokens.",
            "50 % PPCI with the first layer, of the later layer where it is most, mean over passes",
            LOW,
            [100 * float(one.layers[50][1:].max()) for one in several],
        ),
        said(
            "The first and the last layer share less than 60 %.",
            "50 % PPCI of the last layer with the first, mean over passes",
            LOWER,
            [100 * float(one.layers[50][-1]) for one in several],
        ),
        said(
            "The first three layers and the last share less than 70 % on average.",
            "50 % PPCI of the last layer with the first three, mean over these and the passes",
            LOW,
            [100 * one.last[50] for one in several],
        ),
    )

    def draw(path: Path, title: str, description: str) -> Path:
        with charts.figure(9.6, 4.8) as (figure, (panel,)):
            for place, p in enumerate(PARTS):
                charts.band(panel, data["layers"], curves[p], 100, **charts.style(place), label=f"top {p} %")
                _chance(panel, p, place)
            panel.axhline(LOW, color=charts.GRAY, linestyle="--", linewidth=1.3, label="the paper: top 50 % below 70 %")
            panel.plot([], [], color=charts.GRAY, linestyle=":", linewidth=1.5, label="by chance")
            panel.set(title=title, xlabel="layer", ylabel="shared with the first layer in %", ylim=(0, 102))
            panel.set_xticks(data["layers"] if layers <= 16 else range(0, layers, 4))
            charts.legend(figure, panel)
            return charts.save_svg(figure, path, title, description)

    return Figure(
        "4",
        f"Do layers attend to the same image tokens? PPCI with the first layer, {len(found)} answers",
        "Over layers: the part of a layer's most attended 50 and 30 % of the image tokens that the first layer's contain, median over "
        "answers, quartiles as bands; dotted what chance gives.",
        data,
        statements,
        draw,
    )


def figure_5(answers: Sequence[Answer]) -> Figure:
    """Return Figure 5 of recorded answers about pictures: of those with at least 20 decode steps, where there are any."""
    seen = [one for one in answers if one.seen is not None]
    long = long_enough(seen)
    drawn = long or [one for one in seen if one.steps > 0]
    if not drawn:
        raise CannotMakeError("Figure 5 is about decode steps, and no answer has one: raise --max-new-tokens, or ask something longer")
    steps = min(LONG, min(one.steps for one in drawn))
    found = [one.seen for one in drawn if one.seen is not None]
    curves = {p: quartiles([one.steps[p][: steps + 1].mean(axis=1) for one in found]) for p in PARTS}
    by_layer = {p: np.median([one.steps[p][: steps + 1] for one in found], axis=0).T.round(4).tolist() for p in PARTS}
    data: dict[str, Any] = {"steps": list(range(steps + 1)), "ppci": curves, "median_of_layers": by_layer, "answers": len(found)}
    missing = "" if long else f"no answer has {LONG} decode steps: ask for something longer, or raise --max-new-tokens"
    whole = [one.seen for one in long if one.seen is not None]
    statements = (
        Statement(
            "5",
            "For 20 steps each layer keeps attending to the top 50 % of the image tokens.",
            f"50 % PPCI with the prompt's last query, mean over decode steps 1 to {LONG}, of the layer where it is least",
            ">=",
            LOW,
            "ours: the number below which the paper calls layers different",
            "%",
            "answers",
            tuple(100 * float(one.steps[50][1 : LONG + 1].mean(axis=0).min()) for one in whole),
            missing,
        ),
        Statement(
            "5",
            "Attention on the top 30 % holds in the short term and may shift after three steps.",
            f"30 % PPCI with the prompt's last query, mean over layers: decode steps 1 to {SHORT} minus {SHORT + 1} to {LONG}",
            ">",
            0,
            "it shifts",
            "points",
            "answers",
            tuple(100 * float(one.steps[30][1 : SHORT + 1].mean() - one.steps[30][SHORT + 1 : LONG + 1].mean()) for one in whole),
            missing,
        ),
    )

    def draw(path: Path, title: str, description: str) -> Path:
        with charts.figure(9.6, 4.8) as (figure, (panel,)):
            for place, p in enumerate(PARTS):
                for layer in by_layer[p]:
                    panel.plot(data["steps"], [100 * value for value in layer], color=charts.PALETTE[place], linewidth=0.8, alpha=0.45)
                charts.band(panel, data["steps"], curves[p], 100, **charts.style(place), label=f"top {p} %, mean of layers")
                _chance(panel, p, place)
            panel.plot([], [], color=charts.GRAY, linewidth=0.8, label="one layer")
            panel.plot([], [], color=charts.GRAY, linestyle=":", linewidth=1.5, label="by chance")
            panel.set(title=title, xlabel="decode step (0: the prompt's last token)", ylabel="shared with step 0 in %", ylim=(0, 102))
            panel.set_xticks(range(0, steps + 1, 1 if steps < 8 else 5))
            charts.legend(figure, panel)
            return charts.save_svg(figure, path, title, description)

    return Figure(
        "5",
        f"Do steps attend to the same image tokens? PPCI with the first query, {len(found)} answers",
        "Over decode steps: the part of a step's most attended 50 and 30 % of the image tokens that the prompt's last token had among "
        "its own, in the same layer, median over answers; quartiles as bands, layers as thin lines, dotted what chance gives.",
        data,
        statements,
        draw,
    )


def _chance(panel: object, p: int, place: int) -> None:
    panel.axhline(p, color=charts.PALETTE[place], linestyle=":", linewidth=1.5)  # type: ignore[attr-defined]
