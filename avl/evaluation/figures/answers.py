"""Full attention's answers with their attention, each reduced at once to what the figures need: scores of a whole answer are large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from avl.cache.recorder import MODALITIES
from avl.engine.scheduler import stream
from avl.evaluation.figures.attention import held, image_scores, modality_shares, shared, top_share, tops
from avl.models.prompt import Question
from avl.policies import Full
from avl.trace import End, Error, Grid, Trace

LONG = 20
"""Decode steps from which an answer counts as long: the paper's Figure 5 has 20."""
PARTS = (50, 30)
"""Shares of the image tokens whose agreement is counted, in %, as in the paper's Figures 4 and 5."""
MASS = 0.8
POINTS = 51
"""Points of a curve of concentration: 0, 2, …, 100 % of the tokens."""


@dataclass(frozen=True)
class Asked:
    """A picture and a question about it; ``name``: of the picture, for the data."""

    picture: Image.Image
    name: str
    question: str


@dataclass(frozen=True)
class Answer:
    """One answer's attention. A pass gives a token; pass 0 is the prompt's last query, the others are decode steps.

    Attributes:
        name: of the picture, "" where there is none.
        question: what was asked.
        text: the answer.
        shares: part of the context -> its share of the attention ``[passes]``, mean over layers (Figure 1).
        seen: what Figures 3 to 5 need; None where there are no image tokens.
    """

    name: str
    question: str
    text: str
    shares: dict[str, np.ndarray]
    seen: PictureAttention | None = None

    @property
    def steps(self) -> int:
        """Decode steps."""
        return len(next(iter(self.shares.values()))) - 1


@dataclass(frozen=True)
class PictureAttention:
    """Attention on the image tokens of one answer.

    Attributes:
        tokens: image tokens (N).
        grids: where they are in the picture.
        maps: scores ``[layers, N]``, mean over the passes.
        held: share of the attention that the most attended 0, 2, …, 100 % of the tokens hold, ``[layers, POINTS]``, mean over the passes.
        few: share of the tokens that hold 80 % of the attention, ``[layers]``, mean over the passes.
        layers: PPCI of each layer with the first, by p, ``[layers]``, mean over the passes (Figure 4).
        last: mean PPCI of the last layer with each of the first three, by p.
        steps: PPCI of each pass with the first of the same layer, by p, ``[passes, layers]`` (Figure 5).
    """

    tokens: int
    grids: tuple[Grid, ...]
    maps: np.ndarray
    held: np.ndarray
    few: np.ndarray
    layers: dict[int, np.ndarray]
    last: dict[int, float]
    steps: dict[int, np.ndarray]

    @classmethod
    def of(cls, scores: np.ndarray, grids: tuple[Grid, ...] = ()) -> PictureAttention:
        """Reduce scores ``[passes, layers, N]``."""
        n = scores.shape[-1]
        best = {p: tops(scores, p) for p in PARTS}
        cumulative = np.concatenate([np.zeros((*scores.shape[:2], 1)), held(scores)], axis=-1).mean(axis=0)
        places = np.linspace(0, n, POINTS)
        return cls(
            tokens=n,
            grids=grids,
            maps=scores.mean(axis=0).astype(np.float32),
            held=np.stack([np.interp(places, np.arange(n + 1), layer) for layer in cumulative]),
            few=top_share(scores, MASS).mean(axis=0),
            layers={p: shared(chosen, chosen[:, :1]).mean(axis=0) for p, chosen in best.items()},
            last={p: float(shared(chosen[:, :3], chosen[:, -1:]).mean()) for p, chosen in best.items()},
            steps={p: shared(chosen, chosen[:1]) for p, chosen in best.items()},
        )


def answered(trace: Trace, name: str = "") -> Answer:
    """Reduce a recorded run of full attention.

    Raises:
        ValueError: it has no scores, or failed.
    """
    for error in trace.of(Error):
        raise ValueError(f"{name or 'the answer'}: {error.message}")
    shares = dict(zip(MODALITIES, modality_shares(trace).T, strict=True))
    if not shares["between"].any():
        del shares["between"]
    picture = PictureAttention.of(image_scores(trace), trace.start.grids)
    return Answer(name, trace.start.question, trace.of(End)[0].text.strip(), shares, picture)


def record(model: Any, processor: Any, asked: Iterable[Asked], max_new_tokens: int) -> Iterator[Answer]:
    """Yield full attention's answers, recorded.

    Args:
        model: from ``avl.load``.
        processor: its processor.
        asked: pictures and questions.
        max_new_tokens: most tokens of each answer.

    Raises:
        ValueError: a picture or question does not fit the model, or a run failed.
    """
    for one in asked:
        events = stream(model, processor, one.picture, Question(one.question), Full(), max_new_tokens, scores=True)
        yield answered(Trace(list(events)), one.name)


def long_enough(answers: Iterable[Answer]) -> list[Answer]:
    """Return the answers with at least :data:`LONG` decode steps."""
    return [one for one in answers if one.steps >= LONG]
