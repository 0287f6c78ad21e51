"""Figure 3: how attention lies on the image tokens, layer by layer, and how few tokens hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avl import charts
from avl.evaluation.figures.answers import POINTS, Answer, PictureAttention
from avl.evaluation.figures.made import Figure
from avl.evaluation.figures.statements import Statement, quartiles

PAPER = 22.88
"""Percent of the image tokens with over 80 % of the attention (LLaVA-1.5-7B, OCRVQA)."""
LITTLE = 20
"""Percent of the attention that counts as little for the half of the tokens with the least; ours."""
MOST_MAPS = 8
COLUMNS = 4


def figure_3(answers: Sequence[Answer]) -> Figure:
    """Return Figure 3 of recorded answers about pictures; the maps are those of the longest answer."""
    found = [one.seen for one in answers if one.seen is not None]
    shown = max((one for one in answers if one.seen is not None), key=lambda one: one.steps)
    assert shown.seen is not None
    layers = len(shown.seen.few)
    chosen = sorted({round(place) for place in np.linspace(0, layers - 1, min(MOST_MAPS, layers))})
    maps = [_map(shown.seen, layer) for layer in chosen]
    tokens = np.linspace(0, 100, POINTS)
    curves = {layer: quartiles([one.held[layer] for one in found]) for layer in range(layers)}
    data = {
        "maps": {
            "picture": shown.name,
            "question": shown.question,
            "text": shown.text,
            "layers": chosen,
            "scores": [[[float(f"{score:.3g}") for score in row] for row in one] for one in maps],
        },
        "tokens_percent": tokens.round(1).tolist(),
        "held": curves,
        "few": quartiles([one.few for one in found]),
        "answers": len(found),
    }
    few = [100 * float(one.few.mean()) for one in found]
    halves = [100 * float((1 - one.held[1:, POINTS // 2]).max()) for one in found if layers > 1]
    statements = (
        Statement(
            "3",
            f"{PAPER:g} % of the image tokens receive over 80 % of the attention (LLaVA-1.5-7B, OCRVQA).",
            "share of the image tokens that hold 80 % of the attention on the image, mean over layers and passes",
            "<=",
            PAPER,
            "the paper's number",
            "%",
            "answers",
            tuple(few),
        ),
        Statement(
            "3",
            "After the first layer most image tokens receive little attention.",
            "attention on the less attended half of the image tokens, in the layer after the first where it is most",
            "<",
            LITTLE,
            "ours, the paper gives no number",
            "%",
            "answers",
            tuple(halves),
            "" if halves else "the model has one layer",
        ),
    )
    return Figure(
        "3",
        f"Attention on the image tokens, {len(found)} answers",
        f"Maps of one answer's scores on the image tokens in layers {', '.join(map(str, chosen))}, dark is much; beside them, for every "
        "layer, the share of the attention that the most attended tokens hold, median over answers, with the paper's 22.88 % at 80 %.",
        data,
        statements,
        lambda path, title, description: _draw(data, maps, layers, path, title, description),
    )


def _map(picture: PictureAttention, layer: int) -> np.ndarray:
    """Return a layer's scores as they lie in the first grid of the picture; as one row where no grid is known."""
    scores = picture.maps[layer]
    if not picture.grids:
        return scores[None]
    grid = picture.grids[0]
    rows, cols = np.meshgrid(range(grid.rows), range(grid.cols), indexing="ij")
    return scores[grid.first + rows * (grid.cols + grid.newline) + cols]


def _draw(data: dict[str, Any], maps: Sequence[np.ndarray], layers: int, path: Path, title: str, description: str) -> Path:
    names = [f"map {number}" for number in range(len(maps))]
    columns = min(COLUMNS, len(maps))
    rows = [names[start : start + columns] for start in range(0, len(names), columns)]
    rows = [[*row, *["."] * (columns - len(row)), "held", "held"] for row in rows]
    with charts.mosaic(12.4, 1.3 + 1.75 * max(len(rows), 2), rows, width_ratios=[1] * columns + [1.15] * 2) as (figure, panels):
        for name, layer, scores in zip(names, data["maps"]["layers"], maps, strict=True):
            panel = panels[name]
            # by the layer's own highest scores, so that where it looks is seen, however little it looks at the picture
            panel.imshow(
                scores,
                cmap="magma_r",
                vmin=0,
                vmax=float(np.quantile(scores, 0.995)) or None,
                interpolation="nearest",
                aspect="auto" if len(scores) == 1 else "equal",
            )
            panel.set(xticks=[], yticks=[])
            panel.set_title(f"layer {layer}", fontsize=10)
            panel.grid(False)
        curve = panels["held"]
        for layer in range(layers):
            shade = charts.shade(layer / max(1, layers - 1))
            curve.plot(data["tokens_percent"], [100 * value for value in data["held"][layer]["median"]], color=shade, linewidth=1.8)
        for layer, words in ((0, "first layer"), (layers - 1, "last layer")):
            curve.plot([], [], color=charts.shade(float(layer > 0)), linewidth=2.4, label=words)
        curve.plot(
            [PAPER],
            [80],
            color=charts.PALETTE[1],
            marker="*",
            markersize=15,
            linestyle="none",
            label=f"the paper: {PAPER:g} % hold 80 %",
            zorder=5,
        )
        curve.axhline(80, color=charts.GRAY, linewidth=1, linestyle=":")
        curve.set(xlim=(0, 100), ylim=(0, 101), xlabel="most attended image tokens in %", ylabel="attention that they hold in %")
        curve.legend(frameon=False, loc="lower right")
        figure.suptitle(title, x=0.012, ha="left", fontsize=12)
        return charts.save_svg(figure, path, title, description)
