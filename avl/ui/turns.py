"""Further questions: what a run has to be known by to be asked on, and the checks of what pages and programs send.

Nothing but plain values is kept of a run that may be asked on: its pictures' files with their digests, its policies and settings, and the
tokens of the turns before. Whoever has a run's key may ask on, as whoever has it may see it and stop it; the new run counts as his.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avl import trace
from avl.engine.conversation import Said
from avl.engine.follow_up import MAX_TURNS, FollowUpRequest, options_of, said_in
from avl.engine.request import GenerationRequest
from avl.models.prompt import Question
from avl.ui import settings as controls
from avl.ui.runs import Runs

GONE = "The server no longer has this run: press Run to begin again."
NOT_OVER = "This run has not ended yet: wait for its answers, or stop it."
NO_ANSWER = "A policy has no answer yet in this run, so there is nothing to ask on: press Run to begin again."
ONE_ROW = "A conversation has one row: set the batch to 1 and press Run, then ask on."
MOST_SUGGESTED = 4
OTHER_PICTURE = "The server no longer has the pictures of this run: press Run with them again, then ask on."


@dataclass(frozen=True)
class Asked:
    """What was asked in a run, without its pictures' pixels.

    Attributes:
        paths: files of the pictures.
        digests: of what was in them.
        options: fields of the request that further questions share.
        history: the turns before this run.
        answers: right answers of questions that suit the pictures.
        conversation: names the conversation; as unguessable as a run's key.
    """

    paths: tuple[str, ...]
    digests: tuple[str, ...]
    options: dict[str, Any]
    history: tuple[Said, ...] = ()
    answers: dict[str, str] = field(default_factory=dict)
    conversation: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    @classmethod
    def of(cls, request: GenerationRequest, paths: Sequence[Any], answers: Any = None) -> Asked:
        """Return it for a first question about the pictures in ``paths``; ``answers`` are kept where they are a dict of texts."""
        files = tuple(str(path) for path in paths if path)
        known = answers if isinstance(answers, dict) and len(files) == 1 else {}
        right = {one: answer for one, answer in known.items() if isinstance(one, str) and isinstance(answer, str)}
        return cls(files, tuple(map(_digest, files)), options_of(request), answers=right)

    def meta(self, question: str) -> dict[str, Any]:
        """Return what a run's meta says of a question: its right answer, and what may be asked next, where that is known."""
        asked = {question, *(said.question for said in self.history)}
        then = [one for one in self.answers if one not in asked and not one.startswith("Describe")][:MOST_SUGGESTED]
        expected = {"expected": self.answers[question]} if question in self.answers else {}
        return {**expected, **({"then": then} if then else {})}


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def check_question(question: Any) -> Question:
    """Return what was typed as a question. Raise ValueError, one sentence, where it is none."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError("The question is empty: type what you want to know next.")
    if len(question) > controls.MAX_QUESTION:
        raise ValueError(f"The question is too long: {len(question)} characters, {controls.MAX_QUESTION} at most.")
    return Question(question.strip())


def further(runs: Runs, wanted: Any) -> tuple[FollowUpRequest, Asked, dict[str, Any]]:
    """Check what a page sent, ``{"run", "question", "reread"}``.

    Returns:
        The request, what the new run is known by, and its meta.

    Raises:
        ValueError: it cannot be asked; one sentence.
    """
    wanted = wanted if isinstance(wanted, dict) else {}
    question, reread = check_question(wanted.get("question")), wanted.get("reread", True)
    if not isinstance(reread, bool):
        raise ValueError("reread must be true or false.")
    run = runs.find(wanted.get("run"))
    if run is None or run.asked is None:
        raise ValueError(GONE)
    if not run.over:
        raise ValueError(NOT_OVER)
    asked: Asked = run.asked
    if asked.options["batch"] != 1:
        raise ValueError(ONE_ROW)
    said = said_in(run.trace) if run.began else None
    if said is None:
        raise ValueError(NO_ANSWER)
    if "" in asked.digests or tuple(map(_digest, asked.paths)) != asked.digests:
        raise ValueError(OTHER_PICTURE)
    # what was typed is text, whatever is in it
    history = (*asked.history, Said(Question(said.question), said.max_new_tokens, said.answers))
    files: Any = asked.paths
    request = FollowUpRequest(
        images=files, question=question, history=history, reread=reread, conversation=asked.conversation, **asked.options
    )
    meta: dict[str, Any] = {name: run.trace.meta[name] for name in ("pictures", "picture_id", "link") if name in run.trace.meta}
    after = replace(asked, history=history)
    return request, after, {**meta, "repeats": 1, **after.meta(question)}


def history_of(sent: Any) -> tuple[Said, ...]:
    """Return the history that a program sent: a list of ``{"question", "max_new_tokens", "answers": [[token, …], …]}``.

    Raises:
        ValueError: it is something else; one sentence.
    """
    if not isinstance(sent, list) or not sent:
        raise ValueError("history must be the list that /compare or /ask_on gave last.")
    return tuple(_said(number, one) for number, one in enumerate(sent[: MAX_TURNS + 1], 1))


def _said(number: int, one: Any) -> Said:
    answers = one.get("answers") if isinstance(one, dict) else None
    known = isinstance(answers, list) and 1 <= len(answers) <= controls.MAX_ARMS
    if not known or not all(isinstance(answer, list) and answer for answer in answers or []):
        raise ValueError(f"Turn {number} of the history needs answers: of every policy, the tokens that it generated.")
    limit = controls.number(one, "max_new_tokens", 1, controls.MAX_HISTORY)
    for answer in answers or []:
        if len(answer) > limit or not all(isinstance(token, int) and not isinstance(token, bool) for token in answer):
            raise ValueError(f"Each answer of turn {number} is a list of at most {limit} token numbers.")
    return Said(check_question(one.get("question")), limit, tuple(tuple(answer) for answer in answers or []))


def told_history(history: Sequence[Said], run: trace.Trace) -> list[dict[str, Any]] | None:
    """Return the history after a run, to be sent with the next question; None where there is nothing to go on from."""
    try:
        said = said_in(run)
    except ValueError:  # it never began
        return None
    if said is None:
        return None
    return [
        {"question": str(one.question), "max_new_tokens": one.max_new_tokens, "answers": [list(answer) for answer in one.answers]}
        for one in (*history, said)
    ]
