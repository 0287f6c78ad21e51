"""Sweeps on the page: the request that is checked, the handlers that queue it, and what the page's scripts ask about it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from avl import trace
from avl.engine.sweep import SweepRequest, sweep_request
from avl.models.prompt import Question
from avl.policies import Full, Policy, PromptShape
from avl.policies.cost import mean_cost
from avl.policies.plan import Plan, plan
from avl.trace.sweeps import Sweep, SweepStart
from avl.ui import settings as controls
from avl.ui.errors import kind, sentence
from avl.ui.handlers import Shown, buttons, message
from avl.ui.job import Job
from avl.ui.limits import Limits
from avl.ui.queue import ThreadTransport, batches
from avl.ui.runs import KeptRun, Runs
from avl.ui.settings import About
from avl.ui.visitors import visitor_of

log = logging.getLogger(__name__)


def plan_of(wanted: Any, about: About) -> Plan:
    """Plan what a visitor sent: ``{"policy": {"policy": "AVL", "S": 45, …}, "over": {"S": {"from": 5, "to": 60, "step": 5}}}``.

    Raises:
        ValueError: there is nothing that could run; one sentence.
    """
    if not isinstance(wanted, dict):
        raise ValueError("The sweep's settings are missing: reload the page.")
    base, over = controls.policy(wanted.get("policy")), wanted.get("over")

    def check(changed: Policy) -> None:
        controls.policy({"policy": changed.name, **{one.name: getattr(changed, one.name) for one in changed.params()}})
        changed.check_model(about.layers)

    if not isinstance(over, dict):
        raise ValueError('A sweep goes over one or two parameters, such as {"S": {"from": 5, "to": 60, "step": 5}}.')
    return plan(base, over, check)


def prepare_sweep(paths: Sequence[Any], question: Any, chosen: Any, wanted: Any, about: About) -> SweepRequest:
    """Check everything a visitor sent and build the request of a sweep, before anything runs.

    Args:
        paths: the pictures, in the order in which the question has them.
        question: what was typed.
        chosen: what was set; its arms, mode and scores are not used.
        wanted: see :func:`plan_of`, and ``repeats`` where these are not those of ``chosen``.
        about: the model that is asked.

    Raises:
        ValueError: one sentence.
    """
    points = plan_of(wanted, about)
    if not isinstance(chosen, dict):
        raise ValueError("The settings are missing: reload the page.")
    own = {"arms": [wanted["policy"]], "mode": "isolated", "scores": False}
    if "repeats" in wanted:
        own["repeats"] = wanted["repeats"]
    single = controls.prepare(paths, question, {**chosen, **own}, about)
    names = ("max_new_tokens", "batch", "temperature", "top_p", "seed", "repeats")
    return sweep_request(single.images, Question(single.question), points, **{name: getattr(single, name) for name in names})


class SweepStream:
    """One sweep as the values that its panel receives: batches of events, each with the number of those before it, as in ``Stream``."""

    def __init__(self, meta: dict[str, Any], sweeps: Runs, visitor: str | None) -> None:
        self.run, self._meta = KeptRun(trace.Trace(meta=meta), visitor), meta
        self._first = True
        sweeps.add(self.run)

    def batch(self, events: list[trace.Event], state: str, position: int) -> dict[str, Any]:
        """Return the next value."""
        first = len(self.run.trace.events)
        self.run.take(events)
        meta = {"meta": self._meta} if self._first else {}
        self._first = False
        return message(run=self.run.key, state=state, position=position, first=first, events=trace.events_json(events), **meta)

    def done(self) -> dict[str, Any]:
        """Return the last value, which says how many events there were."""
        self.close()
        return message(run=self.run.key, state="done", count=len(self.run.trace.events))

    def close(self) -> None:
        """Note that nothing follows, whether or not anybody hears the last value."""
        if not self.run.over:
            self.run.end("done")


class SweepHandlers:
    """The Sweep button. A sweep ends with the page that started it.

    Args:
        about: the model that is asked.
        sweeps: where sweeps are kept for downloads.
        transport: the worker thread with its queue.
        limits: how much one sweep may generate.

    Attributes:
        unread: tells for how many seconds a session's oldest message has waited to be read.
    """

    def __init__(self, about: About, sweeps: Runs, transport: ThreadTransport, limits: Limits) -> None:
        self._about, self._sweeps, self._transport, self._limits = about, sweeps, transport, limits
        self.unread: Callable[[str | None], float] = lambda session: 0.0

    def _begin(
        self, path: Any, more: Any, question: Any, chosen: Any, known: Any, wanted: Any, visitor: str | None
    ) -> tuple[SweepRequest, SweepStream]:
        request = prepare_sweep([one for one in (path, *(more or [])) if one], question, chosen, wanted, self._about)
        self._limits.check_work(request)
        shown = Shown.of(known)
        names = [str(shown.name or Path(str(path)).name), *(Path(str(one)).name for one in more or [])]
        meta = {"pictures": names, "picture_id": str(shown.id)}
        return request, SweepStream(meta, self._sweeps, visitor)

    async def run(
        self, path: Any, more: Any, question: Any, chosen: Any, known: Any, event: gr.EventData, visitor: gr.Request
    ) -> AsyncIterator[list[Any]]:
        """Queue the sweep that the event describes (see :func:`plan_of`) and hand its events on as they come."""
        transport = self._transport
        job: Job | None = None
        stream: SweepStream | None = None  # ended whatever happens
        try:
            request, told = await asyncio.to_thread(self._begin, path, more, question, chosen, known, event._data, visitor_of(visitor))
            stream = told
            job = transport.submit(request, str(visitor.session_hash), visitor_of(visitor))
            del request  # the job holds the pictures, and gives them up with its end
            yield [told.batch([], "queued", transport.position(job)), *buttons(running=True)]
            async for events in batches(transport, job, unread=lambda: self.unread(visitor.session_hash)):
                state = "stopping" if job.stop.is_set() and job.state != "done" else "running" if job.state == "done" else job.state
                yield [told.batch(events, state, transport.position(job)), gr.skip(), gr.skip()]
            yield [told.done(), *buttons(running=False)]
        except Exception as error:  # a person sees a sentence, the log the rest
            if kind(error) not in ("input", "busy"):
                log.exception("the handler failed")
            transport.refused(error)
            yield [message(state="refused", message=sentence(error)), *buttons(running=False)]
        finally:
            # may run on the event loop when a tab closes: it only sets a flag, the worker cleans up
            if job is not None:
                transport.leave(job)
            if stream is not None:
                stream.close()

    def stop(self, visitor: gr.Request) -> None:
        """End the visitor's sweep."""
        self._transport.stop(str(visitor.session_hash))


def sweep_functions(sweeps: Runs, about: About) -> list[Callable[[Any], Any]]:
    """Return the functions that the sweep's panel calls: ``sweep_plan``, ``sweep_missing`` and ``sweep_download``.

    Plain functions, because Gradio marks each with an attribute, which a method does not take.
    """

    def sweep_plan(wanted: Any) -> dict[str, Any]:
        """Return the points of a sweep and what each will store and read, before any run; ``{"error": sentence}`` where there are none."""
        try:
            return planned(wanted, about)
        except ValueError as error:
            return {"error": sentence(error)}

    def sweep_missing(wanted: Any) -> str | None:
        """Events of a sweep from a number on, as a batch has them, for a page that missed one."""
        kept = sweeps.get(wanted.get("run")) if isinstance(wanted, dict) else None
        first = wanted.get("first") if isinstance(wanted, dict) else None
        if kept is None or not isinstance(first, int) or isinstance(first, bool) or first < 0:
            return None
        return trace.events_json(kept.events[first:])

    def sweep_download(wanted: Any) -> str:
        """Return a sweep as CSV or JSON."""
        kept = sweeps.get(wanted.get("run")) if isinstance(wanted, dict) else None
        if kept is None or not any(isinstance(event, SweepStart) for event in kept.events):
            raise gr.Error("The server no longer has this sweep.", print_exception=False)
        found = Sweep()
        for event in list(kept.events):
            found.add(event)
        return found.to_json() if wanted.get("kind") == "json" else found.to_csv()

    return [sweep_plan, sweep_missing, sweep_download]


def planned(wanted: Any, about: About) -> dict[str, Any]:
    """Return what a sweep would run, with the cost model's shares of full attention; ``wanted`` as for :func:`plan_of`.

    ``prompt`` and ``max_new_tokens`` in it are those of the page's pictures and settings.

    Raises:
        ValueError: there is nothing that could run; one sentence.
    """
    points = plan_of(wanted, about)
    prompt = controls.sent_prompt(wanted.get("prompt"), about)
    tokens = controls.number(wanted, "max_new_tokens", 1, about.max_tokens, about.default_tokens)
    shape = PromptShape(prompt.n_image, prompt.n_text, tokens, about.layers)
    full = mean_cost(Full(), shape)
    told = []
    for point in points.points:
        cost = mean_cost(point.policy, shape)
        shares = {"stored_share": cost.stored / full.stored, "read_share": cost.read / full.read}
        told.append({"values": point.values, "label": point.policy.label, "lowered": list(point.lowered), **shares})
    return {
        "axes": [{"name": axis.name, "label": axis.label, "unit": axis.unit, "values": list(axis.values)} for axis in points.axes],
        "points": told,
        "skipped": [{"values": one.values, "reason": sentence(ValueError(one.reason))} for one in points.skipped],
        "full_bytes": full.stored * about.token_bytes / about.layers,
    }
