"""What the paper's figures 1, 3, 4 and 5 show, and where two answers part, from traces alone.

Needs a trace recorded with ``scores=True`` (one Scores event per pass), best of the full-attention arm: a policy's scores are 0 where it
reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from avl.cache.recorder import MODALITIES
from avl.policies.base import share
from avl.trace import End, Scores, Trace, unpack_scores


def top_share(scores: np.ndarray, mass: float = 0.8) -> float:
    """Share of the tokens, the most attended first, that together receive ``mass`` of the attention (the paper's sparsity statistic)."""
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if ordered.size == 0 or ordered.sum() <= 0:
        raise ValueError("top_share needs at least one positive score")
    return float(np.searchsorted(np.cumsum(ordered), mass * ordered.sum() * (1 - 1e-12)) + 1) / ordered.size


def ppci(first: np.ndarray, second: np.ndarray, p: float) -> float:
    """p-percentile concordance index of two score vectors ``[N]``: shared part of their top p % (Eq. 2). In [0, 1]."""
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"ppci compares two score vectors of one length, not {first.shape} and {second.shape}")
    count = share(p, first.size)
    if not 0 < count <= first.size:
        raise ValueError(f"p must be above 0 and at most 100, not {p!r}")
    tops = [set(np.argsort(-scores, kind="stable")[:count].tolist()) for scores in (first, second)]
    return len(tops[0] & tops[1]) / count


def _scores(trace: Trace, arm: int) -> list[Scores]:
    events = trace.of(Scores, arm)
    if not events:
        raise ValueError(f"this trace holds no scores of arm {arm}: record it with scores=True")
    return events


def image_scores(trace: Trace, arm: int = 0) -> np.ndarray:
    """Scores over the image tokens, ``[passes, layers, N]``; pass 0 is the prompt's last query (Figure 3).

    Raises:
        ValueError: the trace holds no scores of that arm, or lists only the highest of each layer.
    """
    n = trace.start.n_image
    scores = np.stack([np.stack([unpack_scores(layer, n) for layer in event.image]) for event in _scores(trace, arm)])
    fewest = n - int(np.isnan(scores).sum(axis=2).max())
    if fewest < n:
        raise ValueError(
            f"this trace lists the {fewest} highest of {n} scores per layer, as the page records them, and these figures need all: record "
            "it with avl compare --scores --out FILE.json"
        )
    return scores


def modality_shares(trace: Trace, arm: int = 0) -> np.ndarray:
    """Attention on system, image, instruction, generated and in-between tokens per pass, mean over layers, ``[passes, 5]`` (Figure 1)."""
    rows = [[(*layer, 0.0)[:5] for layer in event.shares] for event in _scores(trace, arm) if event.shares is not None]
    if not rows:
        raise ValueError(f"the scores of arm {arm} come without shares of the modalities ({', '.join(MODALITIES)})")
    return np.asarray(rows).mean(axis=1)


def layer_concordance(trace: Trace, p: float, arm: int = 0) -> np.ndarray:
    """PPCI of every layer with the first, mean over the passes, ``[layers]`` (Figure 4)."""
    scores = image_scores(trace, arm)
    return np.array([[ppci(step[0], layer, p) for layer in step] for step in scores]).mean(axis=0)


def step_concordance(trace: Trace, p: float, arm: int = 0) -> np.ndarray:
    """PPCI of every pass with the first of the same layer, ``[passes, layers]`` (Figure 5)."""
    scores = image_scores(trace, arm)
    return np.array([[ppci(first, now, p) for first, now in zip(scores[0], step, strict=True)] for step in scores])


def sparsity(trace: Trace, mass: float = 0.8, arm: int = 0) -> np.ndarray:
    """Share of the image tokens that hold ``mass`` of the attention on the image, per pass and layer ``[passes, layers]``.

    The paper finds 22.88 % of the tokens with over 80 % of the attention (LLaVA-1.5-7B on OCRVQA).
    """
    return np.array([[top_share(layer, mass) for layer in step] for step in image_scores(trace, arm)])


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
