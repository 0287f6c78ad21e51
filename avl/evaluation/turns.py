"""How right later answers of a conversation are on what a first question has left: ``avl eval --turns 3``.

Every policy continues its own conversations ("kept"), and beside every later answer the same conversation is read again as a fresh prompt
under the same policy ("re-read"). Both have the same history, so that they differ in what eviction at earlier questions has cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avl.engine.conversation import Conversation
from avl.evaluation.evaluate import MAX_NEW_TOKENS, OTHERS, Measured, answer
from avl.evaluation.memory import batches, dialog_workload
from avl.evaluation.rows import Row, Rows, paired, today
from avl.evaluation.tasks import Dialog, Sample, score
from avl.policies import Full, Policy
from avl.trace import End, Error, Prefill, Start, Step

TABLE = ("full", "avl", "avl:S=45,C=30,K=3,P=90,T=60,spread=33", *OTHERS)
"""The rows of the whole table: of A-VL those with the paper's five parameters."""

KEPT, REREAD, FIRST = "kept", "re-read", "first"


def name(turn: int, way: str = KEPT) -> str:
    """Return the name of a turn's scores: "turn 1", "turn 2", "turn 2 re-read", …"""
    return f"turn {turn}" + (" re-read" if way == REREAD else "")


@dataclass
class _Way:
    """Sums of one way of answering: the first question, later ones on the cache, or later ones read again."""

    fed: list[int] = field(default_factory=list)  # tokens of each first pass
    ms: list[float] = field(default_factory=list)  # of each first pass
    stored: int = 0  # tokens of all layers, summed over decode steps
    read: int = 0
    full: int = 0  # of a full cache, likewise


def ask_all(model: Any, processor: Any, dialogs: Sequence[Dialog], policy: Policy) -> Row:
    """Hold all conversations under a policy, and score every answer, kept and re-read.

    Raises:
        RuntimeError: a run failed; says why.
    """
    began, load = time.monotonic(), os.getloadavg()[0]
    ways = {way: _Way() for way in (FIRST, KEPT, REREAD)}
    points: dict[str, list[float]] = {}
    same = 0
    for dialog in dialogs:
        with Conversation(model, processor, dialog.image, policy, max_new_tokens=MAX_NEW_TOKENS, mode="isolated") as chat:
            for turn, question in enumerate(dialog.questions, 1):
                later = turn > 1
                answers = _ask(chat, question.text, [ways[KEPT], ways[REREAD]] if later else [ways[FIRST]])
                same += later and answers[0] == answers[1]
                for way, text in zip((KEPT, REREAD), answers, strict=False):
                    points.setdefault(name(turn, way), []).append(round(score(question, text.strip()), 4))
    own = [ways[FIRST], ways[KEPT]]
    stored, read = (sum(getattr(way, what) for way in own) / max(1, sum(way.full for way in own)) for what in ("stored", "read"))
    used = {label: way for label, way in ways.items() if way.fed}
    more: dict[str, Any] = {
        "tokens fed": {label: round(float(np.mean(way.fed)), 1) for label, way in used.items()},
        "first pass ms": {label: quartiles(way.ms) for label, way in used.items()},
        "stored": {label: round(way.stored / max(1, way.full), 4) for label, way in used.items()},
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    if ways[KEPT].ms:
        more["first pass, kept of re-read"] = quartiles(np.divide(ways[KEPT].ms, ways[REREAD].ms), 4)
        more["same answer as re-read"] = round(same / len(ways[KEPT].ms), 4)
    scores = {label: tuple(found) for label, found in points.items()}
    seconds = round(time.monotonic() - began, 1)
    row = Row(policy.label, policy.to_dict(), scores, round(stored, 4), round(read, 4), seconds, today(), more)
    more["kept less re-read"] = {turn: " to ".join(f"{end:+.4f}" for end in ends) for turn, ends in lost(row).items()}
    return row


def _ask(chat: Conversation, question: str, ways: Sequence[_Way]) -> list[str]:
    """Ask the next question, once for each way, and return the answers."""
    start: Start | None = None
    texts = [""] * len(ways)
    for event in chat.stream(question, reread=len(ways) > 1):
        if isinstance(event, Start):
            start = event
        elif isinstance(event, Error):
            raise RuntimeError(event.message)
        elif isinstance(event, End):
            texts[event.arm] = event.text
        elif isinstance(event, Prefill | Step):
            assert start is not None
            way, prompt = ways[event.arm], start.n_image + start.text_tokens(event.arm)
            if isinstance(event, Prefill):
                way.ms.append(event.ms)
                way.fed.append(start.arms[event.arm].new_tokens or prompt)
            else:
                way.stored, way.read = way.stored + event.stored, way.read + event.read
                way.full += start.layers * (prompt + event.t)
    return texts


def quartiles(values: Any, digits: int = 2) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return [round(float(value), digits) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def lost(row: Row) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of a policy's score on what is kept, less its score after reading again, by later turn."""
    later = [turn for turn in row.points if f"{turn} re-read" in row.points]
    return {turn: paired(row.points[turn], row.points[f"{turn} re-read"]) for turn in later}


def turns_of(model: Any, processor: Any, dialogs: Sequence[Dialog], rows: Rows) -> Measured:
    """Return conversations with an attached model."""

    def measure(policy: Policy) -> Row:
        row = ask_all(model, processor, dialogs, policy)
        row.more["where full attention is right"] = {
            turn: {"questions": count, "score": round(value, 4)}
            for turn, (count, value) in where_right(row, rows.find(Full()) or row).items()
        }
        return row

    return Measured(rows, dialog_workload(model, processor, dialogs, MAX_NEW_TOKENS), measure)


def asked_first(model: Any, processor: Any, dialogs: Sequence[Dialog], batch: int = 16) -> dict[str, float]:
    """Return full attention's score of every turn's questions where each is the first one: what the model knows without a conversation."""
    found = {}
    for turn in range(1, len(dialogs[0].questions) + 1):
        samples = [Sample(one.image, one.questions[turn - 1]) for one in dialogs]
        total = 0.0
        for indices in batches(samples, batch):
            answers, _ = answer(model, processor, [samples[index] for index in indices], Full())
            total += sum(score(samples[index].question, text) for index, text in zip(indices, answers, strict=True))
        found[name(turn)] = round(total / len(samples), 4)
    return found


def where_right(row: Row, full: Row) -> dict[str, tuple[int, float]]:
    """Return, by turn and way, how many questions full attention's own conversation answers right, and the policy's score on these."""
    found = {}
    for turn, points in row.points.items():
        chosen = [mine for mine, its in zip(points, full.points[turn.removesuffix(" re-read")], strict=True) if its == 1]
        if chosen:
            found[turn] = len(chosen), sum(chosen) / len(chosen)
    return found


def table(rows: Sequence[Row], full: Row) -> str:
    """Return rows as lines of text.

    Of every turn the score and its share of full attention's; of later ones also the score after reading again, and the 95 % interval of
    kept less re-read in points. Then what is stored, the tokens that a later turn feeds, and the median ratio of its first pass's time to
    that of reading again.
    """
    turns = [turn for turn in full.points if not turn.endswith("re-read")]
    heads = "".join(f"{turn:>9}{'of full':>9}" + ("" if turn == name(1) else f"{'re-read':>9}{'kept-re-read':>16}") for turn in turns)
    lines = [f"{'policy':46}{heads}{'stored':>9}{'fed':>7}{'time':>7}"]
    for row in rows:
        scores, share, ends, more = row.scores, row.kept(full), lost(row), row.more
        line = f"{row.policy:46}"
        for turn in turns:
            line += f"{scores[turn]:9.1%}{share[turn]:9.1%}"
            if turn in ends:
                low, high = ends[turn]
                line += f"{scores[f'{turn} re-read']:9.1%}{f'{100 * low:+.1f} to {100 * high:+.1f}':>16}"
        fed, ratio = more["tokens fed"].get(KEPT, 0), more.get("first pass, kept of re-read", [0, 0, 0])[1]
        lines.append(f"{line}{row.stored:9.1%}{fed:7.0f}{ratio:7.2f}")
    return "\n".join(lines)
