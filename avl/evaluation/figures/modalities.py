"""Figure 1: which part of the context a new token attends to, over the answer. With pictures, and of language models without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avl import charts
from avl.evaluation.figures.answers import LONG, Answer, long_enough
from avl.evaluation.figures.made import CannotMakeError, Figure
from avl.evaluation.figures.statements import Statement, quartiles

FIRST = 3
"""Decode steps whose mean is an answer's start; its end is the last quarter."""
SUBSTANTIAL = 10
"""Percent of the attention that counts as a substantial part; ours, the paper gives no number."""
HALF, HALF_FROM = 50, "ours: it loses half; the paper gives no number"
KEPT = f"what is left in the last quarter of the answer of its attention in the first {FIRST} decode steps"
PLACES = {"system": 7, "image": 0, "instruction": 1, "generated": 3, "between": 4}
"""Part of the context -> its place in the palette."""


def figure_1(answers: Sequence[Answer]) -> Figure:
    """Return Figure 1 of recorded answers: of those with at least 20 decode steps, where there are any."""
    long = long_enough(answers)
    drawn = long or [one for one in answers if one.steps > 0]
    if not drawn:
        raise CannotMakeError("Figure 1 is about decode steps, and no answer has one: raise --max-new-tokens, or ask something longer")
    steps = int(np.median([one.steps for one in drawn]))  # so far, half of the answers go
    parts = [part for part in PLACES if any(part in one.shares and one.shares[part].any() for one in drawn)]
    curves = {part: quartiles([_padded(one, part, steps) for one in drawn]) for part in parts}
    data: dict[str, Any] = {
        "answers": [{"picture": one.name, "question": one.question, "text": one.text, "decode_steps": one.steps} for one in drawn],
        "steps": list(range(1, steps + 1)),
        "answers_at_step": [sum(one.steps >= step for one in drawn) for step in range(1, steps + 1)],
        "shares": curves,
    }
    seen = any(one.seen is not None for one in drawn)
    what = "system, image, instruction and answer" if seen else "what precedes the question, the question and the answer"
    few = "" if long else f"; no answer has {LONG} decode steps"

    def draw(path: Path, title: str, description: str) -> Path:
        with charts.figure(9.6, 5.0) as (figure, (panel,)):
            for part in parts:
                charts.band(panel, data["steps"], curves[part], 100, color=charts.PALETTE[PLACES[part]], linewidth=2.4, label=part)
            panel.set(title=title, xlabel="decode step", ylabel="attention in %, mean over layers", ylim=(0, None), xlim=(1, max(2, steps)))
            charts.legend(figure, panel)
            return charts.save_svg(figure, path, title, description)

    return Figure(
        "1",
        f"Attention by part of the context, {len(drawn)} answers" + ("" if seen else ", no picture"),
        f"Lines over decode steps: the share of a new token's attention on {what}, median over answers, quartiles as bands{few}.",
        data,
        tuple(_with_pictures(long) if seen else _text_only(long)),
        draw,
    )


def _padded(answer: Answer, part: str, steps: int) -> np.ndarray:
    """Return a part's share at decode steps 1 to ``steps``, no number where the answer is shorter."""
    found = np.full(steps, np.nan)
    shares = answer.shares.get(part, np.zeros(answer.steps + 1))[1 : steps + 1]
    found[: len(shares)] = shares
    return found


def _kept(answer: Answer, part: str) -> float | None:
    """Return which percentage of a part's attention at the answer's start is left at its end; None where it had none."""
    start, end = _ends(answer, part)
    return 100 * end / start if start > 0 else None


def _ends(answer: Answer, part: str) -> tuple[float, float]:
    steps = answer.shares.get(part, np.zeros(answer.steps + 1))[1:]
    return float(steps[:FIRST].mean()), float(steps[-max(1, len(steps) // 4) :].mean())


def _statement(claim: str, quantity: str, sign: Any, limit: float, limit_from: str, unit: str, values: Sequence[float]) -> Statement:
    missing = "" if values else f"no answer has {LONG} decode steps: ask for something longer, or raise --max-new-tokens"
    return Statement("1", claim, quantity, sign, limit, limit_from, unit, "answers", tuple(values), missing)


def _with_pictures(answers: Sequence[Answer]) -> list[Statement]:
    remote, falls, beyond, image = [], [], [], []
    for one in answers:
        far = [kept for kept in (_kept(one, "system"), _kept(one, "image")) if kept is not None]
        near = _kept(one, "instruction")
        image.append(100 * _ends(one, "image")[1])
        if far:
            remote.append(max(far))
        if near is not None:
            falls.append(near)
        if far and near is not None:
            beyond.append(near - min(far))
    return [
        _statement(
            "Attention on the system prompt and on the image declines gradually as the answer grows.",
            f"{KEPT}, of system or image whichever keeps more",
            "<",
            100,
            "it declines",
            "%",
            remote,
        ),
        _statement("Attention on the instruction falls sharply.", f"{KEPT}, of the instruction", "<", HALF, HALF_FROM, "%", falls),
        _statement(
            "Attention on the instruction falls further than on the system prompt and on the image.",
            f"{KEPT}: instruction's minus that of system or image whichever keeps less",
            "<",
            0,
            "it falls further than both",
            "points",
            beyond,
        ),
        _statement(
            "The image, far from the end, receives a substantial part of the attention throughout the answer.",
            "the image's share of the attention in the last quarter of the answer",
            ">=",
            SUBSTANTIAL,
            "ours, the paper gives no number",
            "%",
            image,
        ),
    ]


def _text_only(answers: Sequence[Answer]) -> list[Statement]:
    found = [kept for kept in (_kept(one, "instruction") for one in answers) if kept is not None]
    return [
        _statement(
            "A language model's attention on text decays rapidly, as on the text of a vision-language model (the paper: Llama 2).",
            f"{KEPT}, of the instruction",
            "<",
            HALF,
            HALF_FROM,
            "%",
            found,
        )
    ]
