"""One recorded run in tables, and where its answer parts from another's: ``avl figures TRACE.json``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from avl.cache.recorder import MODALITIES
from avl.evaluation.figures.attention import image_scores, layer_concordance, modality_shares, sparsity, step_concordance
from avl.trace import End, Trace


@dataclass(frozen=True)
class Divergence:
    """Where two answers part. ``common``: tokens of the shared prefix; ``same``: the answers are equal."""

    common: int
    same: bool
    first: tuple[int | None, int | None]


def divergence(trace: Trace, arms: tuple[int, int] = (0, 1)) -> Divergence:
    """Compare the answers of two arms of one trace. Raises ValueError where one of them has not ended."""
    answers = []
    for arm in arms:
        ends = trace.of(End, arm)
        if not ends:
            raise ValueError(f"arm {arm} of this trace has not ended: there is nothing to compare yet")
        answers.append(ends[0].tokens)
    one, two = answers
    common = next((place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    parted = tuple(answer[common] if common < len(answer) else None for answer in answers)
    return Divergence(common=common, same=one == two, first=(parted[0], parted[1]))


def summary(trace: Trace, arm: int = 0, p: float = 50, mass: float = 80) -> dict[str, Any]:
    """Return what the figures show of one arm, as plain numbers.

    Args:
        trace: recorded with ``scores=True``.
        arm: whose attention.
        p: share of the tokens whose agreement is counted, in %.
        mass: share of the attention whose fewest holders are counted, in %.

    Raises:
        ValueError: the trace holds no scores of that arm, or p or mass is out of range.
    """
    if not 0 < mass <= 100:
        raise ValueError(f"mass={mass!r} is out of range: above 0 and at most 100 percent")
    scores = image_scores(trace, arm)
    other = _other(trace, arm)
    return {
        "arm": trace.start.arms[arm].label,
        "p": p,
        "mass": mass,
        "passes": len(scores),
        "image_tokens": scores.shape[2],
        "modality_shares": {name: column.round(4).tolist() for name, column in zip(MODALITIES, modality_shares(trace, arm).T, strict=True)},
        "most_attended": np.argsort(-scores[0], axis=1, kind="stable")[:, :5].tolist(),
        "layer_concordance": layer_concordance(trace, p, arm).round(4).tolist(),
        "step_concordance": step_concordance(trace, p, arm).mean(axis=0).round(4).tolist(),
        "sparsity": sparsity(trace, mass / 100, arm).mean(axis=0).round(4).tolist(),
        "other": None if other is None else trace.start.arms[other].label,
        "divergence": None if other is None else asdict(divergence(trace, (arm, other))),
    }


def _other(trace: Trace, arm: int) -> int | None:
    """Return the arm whose answer that of ``arm`` is compared with: full attention's, else the first other one that ended."""
    ended = {end.arm for end in trace.of(End)}
    others = sorted(ended - {arm}, key=lambda one: (trace.start.arms[one].policy.get("name") != "Full", one))
    return others[0] if others and arm in ended else None


def tables(result: dict[str, Any]) -> Iterator[Table | str]:
    """Show a :func:`summary` as tables for a terminal."""
    yield f"{result['arm']}: {result['passes']} passes over {result['image_tokens']} image tokens"
    yield ""
    shares = Table(title="Attention by part of the prompt, mean over layers (Figure 1)", title_justify="left")
    for heading in ("part", "prompt", "mean", "last step"):
        shares.add_column(heading, justify="left" if heading == "part" else "right")
    for name, column in result["modality_shares"].items():
        shares.add_row(name, *(f"{value:.1%}" for value in (column[0], sum(column) / len(column), column[-1])))
    yield shares
    layers = Table(title="Image tokens, layer by layer, mean over passes", title_justify="left")
    heads = (
        "layer",
        "most attended (Figure 3)",
        f"top {result['p']:g} % shared with layer 0 (Figure 4)",
        f"top {result['p']:g} % shared with the prompt (Figure 5)",
        f"tokens that hold {result['mass']:g} %",
    )
    for heading in heads:
        layers.add_column(heading, justify="right")
    columns = result["most_attended"], result["layer_concordance"], result["step_concordance"], result["sparsity"]
    for layer, (top, first, prompt, few) in enumerate(zip(*columns, strict=True)):
        layers.add_row(str(layer), str(top[0]), f"{first:.1%}", f"{prompt:.1%}", f"{few:.1%}")
    yield layers
    parted = result["divergence"]
    if parted is not None:
        same = "the same" if parted["same"] else f"the same for {parted['common']} tokens"
        yield f"The answer is {same} as under {result['other']}."
