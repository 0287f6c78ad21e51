"""A further question as a request: what servers and programs send, where a :class:`~avl.engine.conversation.Conversation` is an object.

A request of this kind carries the conversation so far as plain values, so it may be queued, sent to another process, and answered by a
server that has forgotten everything. :class:`FollowUps` runs both kinds of requests and holds the caches of the latest conversation until
the next run begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields
from typing import Any

from avl.engine.conversation import Conversation, Said
from avl.engine.request import GenerationRequest
from avl.models.families import describe
from avl.policies.base import shown
from avl.trace import Event, Prefill, Step, Trace

Run = Callable[[GenerationRequest, threading.Event], Iterator[Event]]
"""Run a request, polling the event at every step."""

KEPT_SECONDS = 600.0
"""How long caches wait for the next question."""

MAX_TURNS = 16
"""Questions of one conversation of a server."""


@dataclass(frozen=True, kw_only=True)
class FollowUpRequest(GenerationRequest):
    """A further question about the same pictures, under the same policies.

    Attributes:
        history: the turns before, the first one included.
        reread: whether every policy also answers from the whole conversation as a fresh prompt.
        conversation: names a conversation whose caches may be at hand; empty for none.

    Raises:
        ValueError: there is no turn before, or what only a first turn can do is asked for; one sentence.
    """

    history: tuple[Said, ...]
    reread: bool = True
    conversation: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.history:
            raise ValueError("there is no question before this one: ask a first question")
        if len(self.history) >= MAX_TURNS:
            raise ValueError(f"this conversation has {len(self.history)} questions, {MAX_TURNS} is the most here: begin another one")
        if self.batch != 1:
            raise ValueError(f"batch={self.batch} is not possible in a conversation, whose rows end apart: use 1")

    @property
    def forced_passes(self) -> int:
        """Answers that are made beside those of the policies: re-read ones, and earlier ones that build caches again, rounded up."""
        arms = len(self.policies)
        again = sum(len(answer) for said in self.history for answer in said.answers)
        return arms * (1 + self.scores) * self.reread + -(-again // self.max_new_tokens)


def options_of(request: GenerationRequest) -> dict[str, Any]:
    """Return the fields of a request that its further questions share: all but pictures, question, repeats and agreement."""
    own = ("images", "question", "repeats", "agreement")
    return {one.name: getattr(request, one.name) for one in fields(GenerationRequest) if one.name not in own}


def said_in(run: Trace) -> Said | None:
    """Return the turn that a run made, to go on from; None where an arm said nothing, or it has several rows."""
    start = run.start
    kept = [number for number, arm in enumerate(start.arms) if not arm.reread]
    answers = {number: [event.token for event in run if isinstance(event, Prefill | Step) and event.arm == number] for number in kept}
    if start.batch != 1 or not all(answers.values()):
        return None
    return Said(start.question, start.limit, tuple(tuple(answers[number]) for number in kept))


class FollowUps:
    """Runs requests, further questions too; call it as the page's ``Race``, in the thread that owns the device.

    The caches of the latest conversation stay until the next run begins, for :data:`KEPT_SECONDS` at most. Without them, as after another
    visitor's run, a conversation is built again from its tokens, which gives the same caches, and a Warning event tells it.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        run: runs any other request.
        seconds: how long caches wait; 0 where a process serves one call.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        run: Callable[[GenerationRequest, threading.Event], Iterator[Event]],
        seconds: float = KEPT_SECONDS,
    ) -> None:
        self._model, self._processor, self._run, self._seconds = model, processor, run, seconds
        self._lock = threading.Lock()
        self._held: tuple[str, Conversation] | None = None
        self._timer: threading.Timer | None = None

    def __call__(self, request: GenerationRequest, stop: threading.Event) -> Iterator[Event]:
        """Run a request, checked at once.

        Raises:
            ValueError: as :meth:`Conversation.stream`.
        """
        held = self._take()
        if not isinstance(request, FollowUpRequest):
            if held is not None:
                held[1].close()
            return self._run(request, stop)
        if held is not None and (not request.conversation or held[0] != request.conversation or held[1].history != request.history):
            held[1].close()
            held = None
        chat = held[1] if held is not None else self._resumed(request)
        options = {name: getattr(request, name) for name in _DIFFER}
        try:
            told = chat.stream(request.question, stop, reread=request.reread, **options)
        except BaseException:
            self._hold(request.conversation, chat)  # nothing has run: what was at hand still is
            raise
        return self._events(told, chat, request.conversation)

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values that wait for a question."""
        held = self._held
        return 0 if held is None else held[1].stored_bytes

    def _resumed(self, request: FollowUpRequest) -> Conversation:
        check_history(self._model, self._processor, request)
        options = options_of(request)
        policies = options.pop("policies")
        return Conversation.resumed(self._model, self._processor, list(request.images), policies, request.history, **options)

    def _events(self, told: Iterator[Event], chat: Conversation, name: str) -> Generator[Event, None, None]:
        try:
            yield from told
        finally:
            self._hold(name, chat)

    def _take(self) -> tuple[str, Conversation] | None:
        with self._lock:
            held, self._held = self._held, None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        return held

    def _hold(self, name: str, chat: Conversation) -> None:
        if not name or not self._seconds or not chat.stored_bytes:
            chat.close()
            return
        with self._lock:
            self._held = name, chat
            self._timer = threading.Timer(self._seconds, self._forget, (chat,))
            self._timer.daemon = True
            self._timer.start()

    def _forget(self, chat: Conversation) -> None:
        with self._lock:
            mine = self._held is not None and self._held[1] is chat
            if mine:
                self._held = None
        if mine:
            chat.close()


_DIFFER = ("max_new_tokens", "mode", "temperature", "top_p", "seed", "scores", "scores_bytes")


def check_history(model: Any, processor: Any, request: FollowUpRequest) -> None:
    """Refuse answers that the model cannot have given: on a GPU an unknown token ends the device for everybody.

    Raises:
        ValueError: a token is not in the vocabulary, or stands for a picture; or there are not as many answers as policies.
    """
    size, picture = int(model.get_input_embeddings().weight.shape[0]), describe(model).image_token_id
    for number, said in enumerate(request.history, 1):
        if len(said.answers) != len(request.policies):
            raise ValueError(f"turn {number} has answers of {len(said.answers)} policies, this question has {len(request.policies)}")
        for token in (token for answer in said.answers for token in answer):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size or token == picture:
                raise ValueError(f"turn {number} holds {shown(token)}, which is no token of an answer of this model")
