"""``/metrics`` in the format of Prometheus: runs, the queue, time per token, KV cache, errors."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from avl import trace
from avl.trace.sweeps import SweepPoint
from avl.ui.errors import kind
from avl.ui.job import Job, Observer

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10)
RUN_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)


class Metrics(Observer):
    """Counters of one server, each in a registry of its own, so that several pages in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        self._runs = counter("avl_runs", "Runs by outcome: done, stopped, failed, refused", "outcome")
        self._errors = counter("avl_errors", "Errors by kind: input, busy, memory, device, internal", "kind")
        self._tokens = counter("avl_tokens", "Generated tokens of row 0 by policy", "policy")
        self._step = Histogram(
            "avl_step_seconds", "Time of a decode step by policy", ["policy"], buckets=STEP_SECONDS, registry=self.registry
        )
        self._first = Histogram(
            "avl_first_token_seconds", "Time to the first token by policy", ["policy"], buckets=RUN_SECONDS, registry=self.registry
        )
        self._took = Histogram("avl_run_seconds", "Time of a run, without its wait", buckets=RUN_SECONDS, registry=self.registry)
        self._stored = Gauge("avl_kv_stored_bytes", "KV cache of the last step by policy", ["policy"], registry=self.registry)
        self._policies: dict[str, list[str]] = {}

    def watch(self, load: Callable[[], tuple[int, int]], trouble: Callable[[], bool]) -> None:
        """Read the queue whenever somebody asks for the numbers.

        Args:
            load: returns (running, waiting).
            trouble: whether runs cannot be taken.
        """
        Gauge("avl_running", "Runs on the device", registry=self.registry).set_function(lambda: load()[0])
        Gauge("avl_waiting", "Runs in the queue", registry=self.registry).set_function(lambda: load()[1])
        Gauge("avl_ready", "1 where runs are taken", registry=self.registry).set_function(lambda: float(not trouble()))

    def refused(self, error: BaseException) -> None:
        self._runs.labels("refused").inc()
        self._errors.labels(kind(error)).inc()

    def failed(self, job: Job, error: BaseException) -> None:
        self._errors.labels(kind(error)).inc()

    def event(self, job: Job, event: trace.Event) -> None:
        if isinstance(event, trace.Start):
            self._policies[job.id] = [str(arm.policy["name"]) for arm in event.arms]
        elif isinstance(event, trace.Prefill | trace.Step):
            policy = self._policies[job.id][event.arm]
            self._tokens.labels(policy).inc()
            (self._step if isinstance(event, trace.Step) else self._first).labels(policy).observe(event.ms / 1000)
            self._stored.labels(policy).set(event.stored_bytes)
        elif isinstance(event, SweepPoint):
            if len(event.runs) == 1:  # later rows of the point repeat its answer
                self._tokens.labels(str(event.policy["name"])).inc(len(event.tokens))
        elif isinstance(event, trace.Error):
            self._errors.labels("memory" if "memory" in event.message else "internal").inc()

    def ended(self, job: Job) -> None:
        self._policies.pop(job.id, None)
        self._runs.labels(job.outcome or "failed").inc()
        if job.began is not None:
            self._took.observe(time.monotonic() - job.began)

    async def answer(self, _: Request) -> Response:
        """Answer ``/metrics``."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
