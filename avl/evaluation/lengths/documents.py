"""How right answers are behind a document that grows: the bundled model's questions, each after descriptions of other pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avl.evaluation.evaluate import answer
from avl.evaluation.memory import batches
from avl.evaluation.rows import paired
from avl.evaluation.tasks import Sample, held_out, score
from avl.policies import Full, Policy

LENGTHS = (0, 16, 64, 256, 1024)
"""Tokens of the document."""


@dataclass(frozen=True)
class Behind:
    """A policy's scores behind a document.

    Attributes:
        label: the policy's.
        document: tokens of it, about.
        points: the score of each sample, 0 to 1.
        stored: share of a full cache that is stored.
        read: share that is read.
    """

    label: str
    document: int
    points: tuple[float, ...]
    stored: float
    read: float

    def to_dict(self, full: Behind) -> dict[str, Any]:
        """Return plain values; ``difference`` is the 95 % interval of the paired difference to full attention."""
        low, high = paired(self.points, full.points)
        shares = {"stored": round(self.stored, 4), "read": round(self.read, 4)}
        own = {"policy": self.label, "document": self.document, "n": len(self.points), "score": round(float(np.mean(self.points)), 4)}
        return {**own, "difference": [round(low, 4), round(high, 4)], **shares}


def behind_documents(
    model: Any, processor: Any, policies: Sequence[Policy], lengths: Sequence[int] = LENGTHS, samples: int = 60, batch: int = 16
) -> list[Behind]:
    """Ask held-out questions behind documents of each length, under full attention and every policy.

    Args:
        model: the bundled model, attached.
        processor: its processor.
        policies: besides full attention.
        lengths: tokens of the document.
        samples: questions at each length, the same ones.
        batch: samples at a time.
    """
    asked = [one for one in held_out(10 * -(-samples // 7)) if one.question.task != "describe"][:samples]  # seven of ten are not
    texts = [one.question.answer for one in held_out(400, seed=2) if one.question.kind == "describe"]
    ids = [token for text in texts for token in processor.tokenizer(f"{text} ", add_special_tokens=False)["input_ids"]]
    found = []
    for length in lengths:
        document = processor.tokenizer.decode(ids[:length])
        longer = [_behind(document, one) for one in asked]
        for policy in (Full(), *policies):
            points, counts = [0.0] * len(longer), np.zeros(3)
            for places in batches(longer, batch):
                answers, told = answer(model, processor, [longer[place] for place in places], policy)
                counts += told
                for place, words in zip(places, answers, strict=True):
                    points[place] = score(longer[place].question, words)
            found.append(Behind(policy.label, length, tuple(points), *(float(count / max(1, counts[2])) for count in counts[:2])))
    return found


def _behind(document: str, sample: Sample) -> Sample:
    text = f"{document} {sample.question.text}".strip()
    return Sample(sample.image, dataclasses.replace(sample.question, text=text))
