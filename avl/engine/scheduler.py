"""stream() and race(): check a request, schedule the runs of its policies, and yield their events.

Knows neither Gradio nor threads. The runs of a race never overlap on the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from avl.cache.layout import find_rows, ids_and_mask
from avl.engine.agreement import agreements
from avl.engine.devices import made_on
from avl.engine.failures import OUT_OF_MEMORY, out_of_memory
from avl.engine.generation import Settings
from avl.engine.lanes import Job, Lane
from avl.engine.not_finite import NotFiniteError
from avl.engine.request import GenerationRequest, check_stop
from avl.engine.runner import Runner, attention
from avl.engine.start import make_arm, make_start, ready
from avl.kernels import resolve_impl, triton_trouble
from avl.models.families import describe
from avl.models.inputs import prepare, repeat
from avl.models.prompt import Prompt, image_token_of, is_whole
from avl.policies import Policy, PromptShape, labels
from avl.policies.base import shown, whole
from avl.policies.cost import allocated_tokens
from avl.telemetry import Meter, free_bytes
from avl.trace import Error, Event, Start, Warning, listed_tokens


def stream(
    model: Any,
    processor: Any,
    image: Any,
    question: str,
    policy: Policy,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch: int = 1,
    stop: threading.Event | None = None,
    scores: bool = False,
    agreement: bool = False,
) -> Iterator[Event]:
    """Answer one question under one policy and yield the events of avl/trace; attaches the model if needed.

    Tokens are chosen as ``model.generate(max_new_tokens=..., do_sample=temperature > 0, temperature=..., top_p=...)`` chooses them. These
    arguments win over ``model.generation_config``: its ``do_sample``, ``temperature`` and ``top_p`` are not used. All else that it states
    is obeyed, and a Warning event says so: penalties, forbidden and forced tokens, lengths, ends, and, when sampling, ``top_k``, which
    transformers takes as 50 where the config is silent (0: no limit). What cannot be obeyed, such as beams, is refused.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        image: an image or a list of images (PIL, path, bytes, array).
        question: a plain question, or a whole prompt with image placeholders (``avl.Prompt`` says so, else a Warning tells it).
        policy: what to store and read.
        max_new_tokens: most tokens of the answer.
        temperature: of the sampling, 0 for greedy.
        top_p: probability mass of the nucleus to sample from, in (0, 1].
        seed: of the sampling, 0 to 2**64 - 1; None for a random one.
        batch: number of copies that run at once; events describe row 0.
        stop: when set, the run ends before its next step.
        scores: replay the answer afterwards and record the attention of every pass (Scores events); timings are unaffected.
        agreement: compare with full attention on full attention's answer afterwards (an Agreement event); timings are unaffected.

    Raises:
        ValueError: bad input, or a generation setting that is refused; raised before anything runs, in one sentence.
        TypeError: the model's class is not supported, or the processor is none.
    """
    more: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "scores": scores, "agreement": agreement}
    request = GenerationRequest(image, question, (policy,), max_new_tokens, batch=batch, **more)
    return run(model, processor, request, stop, single=True)


def race(
    model: Any,
    processor: Any,
    images: Any,
    question: str,
    policies: Any,
    *,
    stop: threading.Event | None = None,
    **options: Any,
) -> Iterator[Event]:
    """Answer one question under several policies, one separately timed run each, and yield the events of avl/trace.

    Generation settings count as in :func:`stream`.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        images: an image or a list of images (PIL, path, bytes, array).
        question: a plain question, or a whole prompt with image placeholders (``avl.Prompt`` says so, else a Warning tells it).
        policies: what to store and read, one run each; one policy counts as a list of one.
        stop: when set, the runs end before their next step.
        options: the other fields of :class:`GenerationRequest`: max_new_tokens, mode, batch, temperature, …

    Raises:
        ValueError: bad input; raised before anything runs, in one sentence.
        TypeError: the model's class is not supported.
    """
    return run(model, processor, GenerationRequest(images, question, policies, **options), stop)


def run(
    model: Any, processor: Any, request: GenerationRequest, stop: threading.Event | None = None, *, single: bool = False
) -> Iterator[Event]:
    """Run a request and yield its events. Checks everything immediately, not at the first ``next``.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        request: what to run.
        stop: when set, the runs end before their next step.
        single: whether the trace shows a single generation, not a race.

    Raises:
        ValueError: the request does not fit the model; in one sentence.
        TypeError: the model's class is not supported.
    """
    if not isinstance(request, GenerationRequest):
        raise TypeError(f"request={shown(request)} is not an avl.engine.request.GenerationRequest")
    check_stop(stop)
    facts = ready(model, processor)
    inputs, prompt = prepare(model, processor, request.images, request.question)
    job = Job(model, processor, repeat(inputs, request.batch), request, Settings.of(model, processor.tokenizer, request))
    # these two allocate nothing, but raise before the run if anything does not fit
    caches = [job.make_cache(policy) for policy in request.policies]
    job.make_chooser()
    row = caches[0].rows[0]
    implementation = resolve_impl(model.device, dtype=model.dtype, head_size=facts.head_dim)
    shape = caches[0].buckets[0].shape  # of row 0, the same under every policy
    named = zip(request.policies, labels(request.policies), strict=True)
    arms = tuple(make_arm(policy, label, implementation, shape) for policy, label in named)
    ids = inputs["input_ids"][0, row.pad :].tolist()
    start = make_start(model, processor, request, inputs, prompt, row, ids, arms, single=single)
    lanes = [Lane(number, policy, job) for number, policy in enumerate(request.policies)]
    return made_on(model.device, events_of(job, start, stop or threading.Event(), lambda: _at_once(lanes)))


def prompt_shape(model: Any, processor: Any, images: Any, question: str, max_new_tokens: int = 64) -> PromptShape:
    """Return the sizes of a prompt, for ``avl.at_equal_memory`` and the cost model; runs nothing.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        images: an image or a list of images (PIL, path, bytes, array).
        question: a plain question, or a whole prompt with image placeholders.
        max_new_tokens: most tokens of the answer.

    Raises:
        ValueError: an image cannot be used, or the prompt does not fit the model; in one sentence.
        TypeError: the model's class is not supported.
    """
    inputs, _ = prepare(model, processor, images, question)
    facts = describe(model)
    row = find_rows(*ids_and_mask(inputs), facts.image_token_id)[0]
    return PromptShape(row.n_image, row.n_text, whole("max_new_tokens", max_new_tokens, 1), facts.layers)


@torch.inference_mode()
def events_of(
    job: Job, start: Start, stop: threading.Event, begin: Callable[[], Generator[Event, None, list[Lane]]]
) -> Generator[Event, None, None]:
    """Yield the events of a request.

    Args:
        job: the request and its model.
        start: the first event.
        stop: when set, all runs end before their next step.
        begin: returns what runs, nothing if it was stopped, after any events of its own.
    """
    yield start
    trouble = triton_trouble(job.model.device, job.model.dtype, start.model["head_dim"])
    if trouble is not None:
        yield Warning(f"decode steps run the torch reference, not our Triton kernels, which costs time: {trouble}")
    if start.batch > 1:
        yield Warning(f"the request runs {start.batch} times at once; text and sets are those of the first row, bytes those of all rows")
    if not isinstance(start.question, Prompt) and is_whole(start.question, image_token_of(job.processor)):
        yield Warning(
            "the question has image placeholders, so it is the whole prompt and no chat template goes around it; "
            "avl.Prompt says so without this warning"
        )
    if job.settings.stated:
        yield Warning(f"the model's generation config applies: {', '.join(job.settings.stated)}")
    request = job.request
    crowded = _crowded(start, request.policies, free_bytes(job.model.device)) if start.turn == 1 else None
    if crowded is not None:
        yield Warning(crowded)
    try:
        lanes = yield from begin()
        if not lanes:
            return
        finished: list[Runner] = []
        for some in _interleaved(lanes, start.mode):
            finished += yield from _race(some, stop)
        for number in range(1, request.repeats):
            again = [replace(lane, keeps=None) for lane in lanes]
            for some in _interleaved(again[::-1] if number % 2 else again, start.mode):
                yield from _race_again(some, stop, number)
        longest = max(len(runner.fed) for runner in finished)
        listed = listed_tokens(start.n_image, start.layers, longest, len(finished), request.scores_bytes)
        for runner in finished if request.scores else []:
            passes = attention(runner, listed, stop)
            while not stop.is_set() and (event := next(passes, None)) is not None:
                yield event
        if request.agreement:
            yield from agreements(job, finished, stop)
    except NotFiniteError as error:
        yield Error(str(error), error.arm)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        yield Error(OUT_OF_MEMORY)


def _at_once(lanes: list[Lane]) -> Generator[Event, None, list[Lane]]:
    """Return ``lanes`` as :func:`events_of` takes them."""
    yield from ()
    return lanes


def _crowded(start: Start, policies: tuple[Policy, ...], free: int) -> str | None:
    """Return what to say where the caches of a race, which are all held until its end, need more than ``free`` bytes together."""
    shape = PromptShape(start.n_image, start.n_text, start.limit, start.layers)
    needs = [start.batch * allocated_tokens(policy, shape) * start.token_bytes // start.layers for policy in policies]
    if start.mode != "race" or len(needs) < 2 or sum(needs) <= free:
        return None
    return (
        f"the runs of a race hold their caches together, {sum(needs) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: mode 'isolated' "
        f"holds one at a time, {max(needs) / 1e9:.1f} GB at most"
    )


def _interleaved(lanes: Sequence[Lane], mode: str) -> list[list[Lane]]:
    """Return the runs in groups that interleave: all of them in a race, each alone in isolated mode."""
    return [[lane] for lane in lanes] if mode == "isolated" else [list(lanes)]


def _race(lanes: Sequence[Lane], stop: threading.Event) -> Generator[Event, None, list[Runner]]:
    """Step one run per lane until all have ended; yield all events, and return the closed runs with their tokens and times."""
    meter = Meter(lanes[0].job.model.device)
    runners = [Runner(lane, meter) for lane in lanes]
    waiting = list(runners)
    try:
        while waiting:
            # prompts first, in order; then the run with less accumulated time, so that whichever leads here would also lead alone
            runner = min(waiting, key=lambda runner: (runner.tokens is not None, runner.clock_ms))
            if stop.is_set():
                yield from runner.stop()
            elif runner.tokens is None:
                yield from runner.prefill(stop)
            else:
                yield from runner.step()
            if runner.reason is not None:
                waiting.remove(runner)
    finally:
        for runner in runners:
            runner.close()
    return runners


def _race_again(lanes: Sequence[Lane], stop: threading.Event, number: int) -> Iterator[Event]:
    """Repeat a race and yield one Repeat event per policy, none for runs that were stopped."""
    race = _race(lanes, stop)
    while True:
        try:
            next(race)
        except StopIteration as end:
            runners = end.value
            break
    for runner in runners:
        if runner.reason != "stopped":
            yield runner.again(number)
