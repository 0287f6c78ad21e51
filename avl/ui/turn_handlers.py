"""Asking on: the handlers that queue a further question and hand its run's events on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from avl.engine.follow_up import FollowUpRequest
from avl.ui.errors import kind, sentence
from avl.ui.handlers import RunHandlers, buttons, kept, message
from avl.ui.runs import KeptRun, Runs
from avl.ui.turns import further
from avl.ui.visitors import visitor_of

log = logging.getLogger(__name__)


class TurnHandlers:
    """Asking on; the events are those of any run.

    Args:
        on_run: starts and reads runs.
        runs: where they are kept.
    """

    def __init__(self, on_run: RunHandlers, runs: Runs) -> None:
        self._on_run, self._runs = on_run, runs

    def _begin(self, wanted: Any, visitor: str | None) -> tuple[FollowUpRequest, KeptRun]:
        request, asked, meta = further(self._runs, wanted)
        self._on_run.limits.check_work(request)
        run = kept(request, meta, visitor)
        run.asked = asked
        return request, run

    async def ask(self, event: gr.EventData, visitor: gr.Request) -> AsyncIterator[list[Any]]:
        """Queue the question that the event describes (see :func:`further`) and hand the run's events on as they come."""
        following, transport = self._on_run.following, self._on_run.transport
        try:
            request, run = await asyncio.to_thread(self._begin, event._data, visitor_of(visitor))
            following.start(run, request, str(visitor.session_hash))
            del request  # the job holds the pictures, and gives them up with its end
            async with contextlib.aclosing(self._on_run.read(run, visitor)) as values:
                async for value in values:
                    yield value
        except Exception as error:  # a person sees a sentence, the log the rest
            if kind(error) not in ("input", "busy"):
                log.exception("the handler failed")
            transport.refused(error)
            yield [message(state="refused", message=sentence(error)), *buttons(running=False)]
