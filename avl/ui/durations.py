"""How many seconds of a GPU to ask ZeroGPU for: a safe guess at first, then from the times of earlier runs of this server."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from avl import trace
from avl.engine.request import GenerationRequest
from avl.trace.sweeps import SweepPoint

MOST_SECONDS = 80
"""What a visitor without an account has: two minutes a day, of which the GPUs of 2026 take 1.5 for every second asked for."""

SPARE_SECONDS = 3.0
"""The run is ended so long before what was asked for is over: ZeroGPU kills what takes longer, and its visitor would lose all of it."""

REMEMBERED = 8  # runs
MARGIN = 1.5  # over the slowest of them

START, PROMPT, STEP, REST = 20.0, 1.0, 0.06, 2.0
"""The first guess, in seconds: a process with a 7B model, a prompt, a step, and what a run needs besides."""


@dataclass(frozen=True)
class Need:
    """What a run takes, in seconds of a GPU, and whether that is known from other runs or a guess."""

    seconds: float
    measured: bool

    @property
    def asked(self) -> int:
        """Seconds to ask for."""
        safe = self.seconds * (MARGIN if self.measured else 1) + SPARE_SECONDS
        return min(MOST_SECONDS, math.ceil(safe))


class Durations:
    """Times of this server's runs, by which the next one asks. Used by one thread."""

    def __init__(self) -> None:
        self._starts: deque[float] = deque(maxlen=REMEMBERED)
        self._prompts: deque[float] = deque(maxlen=REMEMBERED)
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._rests: deque[float] = deque(maxlen=REMEMBERED)

    def need(self, request: GenerationRequest) -> Need:
        """Return what a request takes if every answer is as long as it may be, in a process that has yet to start.

        Raises:
            ValueError: earlier runs show that it is more than may be asked for; one sentence.
        """
        measured = bool(self._prompts)
        passes = len(request.policies) * (request.repeats + request.scores) + request.forced_passes
        prompt = max(self._prompts, default=PROMPT) * request.batch
        step = max(self._steps, default=STEP) * request.batch**0.5
        start, rest = max(self._starts, default=START), max(self._rests, default=REST)
        need = Need(start + rest + passes * (prompt + request.max_new_tokens * step), measured)
        # medians, of what grows with the request: one slow start or run must not shut everybody out, who then could not show that it passed
        least = passes * (_middle(self._prompts) * request.batch + request.max_new_tokens * _middle(self._steps) * request.batch**0.5)
        if least + SPARE_SECONDS > MOST_SECONDS:
            raise ValueError(
                f"This would take about {least:.0f} s of ZeroGPU, {MOST_SECONDS - SPARE_SECONDS:.0f} s is the most here: lower the "
                "new tokens, the batch or the repeats, or take fewer policies or points."
            )
        return need

    def fell_short(self, need: Need) -> None:
        """Note that a run was not over after what it had asked for."""
        self._rests.append(need.seconds / 2)

    def started(self, seconds: float) -> None:
        """Note what a new process took until it was warm."""
        self._starts.append(seconds)

    def ran(self, request: GenerationRequest, events: Sequence[trace.Event], seconds: float) -> None:
        """Note the times of a run.

        Args:
            request: what ran.
            events: what came of it.
            seconds: how long it had the GPU, without the start of a new process.
        """
        ends = [event for event in events if isinstance(event, trace.End | SweepPoint)]
        if not ends:
            return
        self._prompts.append(max(end.ttft_ms for end in ends) / 1000 / request.batch)
        steps = [end.median_ms for end in ends if end.median_ms is not None]
        if steps:
            self._steps.append(max(steps) / 1000 / request.batch**0.5)
        clocks = [end.clock_ms for end in ends if isinstance(end, trace.End)]
        if clocks and request.repeats == 1 and not request.scores and not request.forced_passes:
            self._rests.append(max(0.0, seconds - math.fsum(clocks) / 1000))


def _middle(values: Iterable[float]) -> float:
    return statistics.median([*values] or [0.0])
