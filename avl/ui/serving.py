"""A program's request on its way through the queue: the same for every endpoint that streams."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from avl import trace
from avl.engine.request import GenerationRequest
from avl.ui.errors import kind, sentence
from avl.ui.job import Job
from avl.ui.queue import ThreadTransport, batches
from avl.ui.visitors import visitor_of

log = logging.getLogger(__name__)


async def served(
    transport: ThreadTransport,
    make: Callable[[], GenerationRequest],
    visitor: gr.Request | None,
    unread: Callable[[str | None], float],
) -> AsyncIterator[tuple[dict[str, Any], list[trace.Event]]]:
    """Check a request, queue it, and yield its state and events as they come; the state is never "done", which the caller says once.

    Args:
        transport: the queue.
        make: builds and checks the request; runs on a thread.
        visitor: who asks.
        unread: tells for how many seconds a session's oldest message has waited to be read.

    Raises:
        gr.Error: it was refused or failed; one sentence.
    """
    job: Job | None = None
    try:
        request = await asyncio.to_thread(make)
        transport.limits.check_work(request)
        job = transport.submit(request, f"api-{secrets.token_hex(8)}", visitor_of(visitor))
        del request  # the job holds the pictures, and gives them up with its end
        session = visitor.session_hash if visitor is not None else None
        errors: list[str] = []
        async for events in batches(transport, job, unread=lambda: unread(session)):
            errors += [event.message for event in events if isinstance(event, trace.Error)]
            yield {"state": "running" if job.state == "done" else job.state, "position": transport.position(job)}, events
        if errors:
            raise ValueError(errors[-1])
    except Exception as error:  # a person sees a sentence, the log the rest
        if kind(error) not in ("input", "busy"):
            log.exception("an endpoint failed")
        if job is None:
            transport.refused(error)
        raise gr.Error(sentence(error), print_exception=False) from None
    finally:
        if job is not None:
            transport.leave(job)
