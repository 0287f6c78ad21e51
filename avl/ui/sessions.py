"""What Gradio keeps of each visitor, bounded: no copies of requests and answers, and unread events only for a while.

Gradio writes the last value of every input and output into its state of a session, for links that restore a page, which this page makes
by itself; and it keeps events until somebody reads them. Both are replaced here, by names of the one version that requirements.txt pins.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState, StateHolder
from gradio.utils import LRUCache


class LeanSession(SessionState):
    """The ``gr.State`` and the components of a session, without the values that passed through them."""

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(blocks)
        self.config_values = {}

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Keep nothing."""

    def _update_config(self, key: int) -> None:
        """Keep nothing."""

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        self.config_values.clear()


class LeanSessions(StateHolder):
    """The sessions, the oldest of which is given up beyond ``capacity``."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = LeanSession(self.blocks)
        return super().__getitem__(session_id)


class Mailbox(asyncio.Queue):
    """A visitor's unread messages; knows how long the oldest one has waited."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)  # type: ignore[misc]
        self._since: deque[float] = deque()
        self.empty_since = time.monotonic()

    def _put(self, item: Any) -> None:
        super()._put(item)  # type: ignore[misc]
        self._since.append(time.monotonic())

    def _get(self) -> Any:
        self._since.popleft()
        if not self._since:
            self.empty_since = time.monotonic()
        return super()._get()  # type: ignore[misc]

    @property
    def age(self) -> float:
        """Seconds that the oldest message has waited, 0 without one."""
        return time.monotonic() - self._since[0] if self._since else 0.0


class Mailboxes(LRUCache):
    """Session -> :class:`Mailbox`, in the place of Gradio's own queues."""

    def __init__(self, sessions: int) -> None:
        super().__init__(sessions)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value if isinstance(value, Mailbox) else Mailbox())

    def age(self, session: str | None) -> float:
        """Seconds that the oldest message of a session has waited to be read, 0 without one."""
        box = self.get(session) if session is not None else None
        return box.age if box is not None else 0.0

    @property
    def unread(self) -> int:
        """Messages that nobody has read yet."""
        return sum(box.qsize() for box in self.values())

    def expired(self, seconds: float, busy: set[str]) -> list[str]:
        """Return the sessions with nothing to come whose oldest message has waited longer than ``seconds``, or that are long empty.

        Args:
            seconds: how long a message waits at most.
            busy: sessions with events that still run.
        """
        now = time.monotonic()
        return [
            session
            for session, box in self.items()
            if session not in busy and (box.age > seconds or (not box.qsize() and now - box.empty_since > 10 * seconds))
        ]


def install(app: Any, sessions: int) -> Mailboxes:
    """Put lean sessions and mailboxes in place, before the first request. Return the mailboxes.

    Args:
        app: Gradio's application.
        sessions: kept at most.
    """
    blocks = app.get_blocks()
    holder = LeanSessions()
    holder.set_blocks(blocks)
    holder.capacity = sessions
    app.state_holder = holder
    boxes = Mailboxes(sessions)
    blocks._queue.pending_messages_per_session = boxes
    return boxes


def sweep(app: Any, boxes: Mailboxes, seconds: float) -> None:
    """Give up mailboxes that nobody reads. Call it on the event loop."""
    queue = app.get_blocks()._queue
    busy = {event.session_hash for event in list(queue.event_ids_to_events.values())}
    for session in boxes.expired(seconds, busy):
        boxes.pop(session, None)
        queue.pending_event_ids_session.pop(session, None)
