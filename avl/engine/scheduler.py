"""stream() and race(): check a request, schedule the runs of its policies, and yield their events.

Knows neither Gradio nor threads. The runs of a race never overlap on the device.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Generator, Iterator
from typing import Any

import torch

from avl._compat import commit_hash
from avl.attention.attachment import attach
from avl.engine.decoder import refuse_offloaded
from avl.engine.devices import made_on
from avl.engine.failures import OUT_OF_MEMORY, out_of_memory
from avl.engine.generation import Settings
from avl.engine.not_finite import NotFiniteError
from avl.engine.request import GenerationRequest, check_stop
from avl.engine.runner import Job, Runner, attention
from avl.kernels import resolve_impl, triton_trouble
from avl.models.families import describe, image_grids
from avl.models.inputs import prepare, repeat
from avl.models.loading import model_name
from avl.models.prompt import Prompt, image_token_of, is_whole
from avl.policies import Policy, PromptShape
from avl.policies.base import shown
from avl.policies.cost import pruned_from, step_cost
from avl.telemetry import Meter, machine_card
from avl.trace import Arm, Error, Event, Start, Warning, pack_bits


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

    Raises:
        ValueError: bad input, or a generation setting that is refused; raised before anything runs, in one sentence.
        TypeError: the model's class is not supported, or the processor is none.
    """
    request = GenerationRequest(
        image, question, (policy,), max_new_tokens, batch=batch, temperature=temperature, top_p=top_p, seed=seed, scores=scores
    )
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
    facts = describe(model)
    if facts.image_token_id is None:
        raise TypeError(
            f"{facts.name} takes no pictures, and avl.stream and avl.race answer questions about pictures: pass an avl.make_cache of its "
            "inputs to model.generate"
        )
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_token", None) is None:
        raise TypeError(f"processor={shown(processor)} is not the processor of a LLaVA: pass the one that avl.load returned")
    refuse_offloaded(model)
    attach(model)
    inputs, prompt = prepare(model, processor, request.images, request.question)
    job = Job(model, processor, repeat(inputs, request.batch), request, Settings.of(model, processor.tokenizer, request))
    # these two allocate nothing, but raise before the run if anything does not fit
    caches = [job.make_cache(policy) for policy in request.policies]
    job.make_chooser()
    row = caches[0].rows[0]
    sizes = [image.size for image in request.images]
    implementation = resolve_impl(model.device, dtype=model.dtype, head_size=facts.head_dim)
    shape = caches[0].buckets[0].shape  # of row 0, the same under every policy
    start = Start(
        arms=tuple(_arm(policy, implementation, shape) for policy in request.policies),
        mode="single" if single else request.mode,
        question=request.question,
        prompt=prompt,
        model={
            "name": model_name(model),
            "class": facts.name,
            "revision": commit_hash(model.config),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "layers": facts.layers,
            "heads": facts.heads,
            "kv_heads": facts.kv_heads,
            "head_dim": facts.head_dim,
        },
        machine=machine_card(model.device),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        n_image=row.n_image,
        n_text=row.n_text,
        spans=row.spans,
        images=tuple(sizes),
        grids=image_grids(model.config, processor, sizes, inputs, row.n_image),
        layers=facts.layers,
        token_bytes=2 * facts.layers * facts.kv_heads * facts.head_dim * model.dtype.itemsize,
        batch=request.batch,
        limit=request.max_new_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
    )
    return made_on(model.device, _events(job, start, stop or threading.Event()))


def _arm(policy: Policy, implementation: str, shape: PromptShape) -> Arm:
    """Return what a trace says of a policy before it runs."""
    costs = [step_cost(policy, shape, t) for t in range(1, shape.max_new_tokens)]
    predicted = tuple((int(cost.stored), int(cost.read)) for cost in costs)
    covers = [policy.cover(layer, shape) for layer in range(shape.n_layers)]
    held = [pack_bits(cover.stored if cover else (), shape.n_image) for cover in covers]
    spread = tuple(held) if any(covers) else ()
    return Arm(policy.label, policy.to_dict(), implementation, policy.title, pruned_from(policy, shape), predicted, spread)


@torch.inference_mode()
def _events(job: Job, start: Start, stop: threading.Event) -> Generator[Event, None, None]:
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
    numbered = list(enumerate(request.policies))
    try:
        finished: list[Runner] = []
        for policies in _interleaved(numbered, start.mode):
            finished += yield from _race(job, policies, stop)
        for number in range(1, request.repeats):
            for policies in _interleaved(numbered[::-1] if number % 2 else numbered, start.mode):
                yield from _race_again(job, policies, stop, number)
        for runner in finished if request.scores else []:
            passes = attention(runner, stop)
            while not stop.is_set() and (event := next(passes, None)) is not None:
                yield event
    except NotFiniteError as error:
        yield Error(str(error), error.arm)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        yield Error(OUT_OF_MEMORY)


def _interleaved(policies: list[tuple[int, Policy]], mode: str) -> list[list[tuple[int, Policy]]]:
    """Return the numbered policies in groups whose runs interleave: all of them in a race, each alone in isolated mode."""
    return [[policy] for policy in policies] if mode == "isolated" else [policies]


def _race(job: Job, policies: list[tuple[int, Policy]], stop: threading.Event) -> Generator[Event, None, list[Runner]]:
    """Step one run per policy until all have ended; yield all events, and return the closed runs with their tokens and times."""
    meter = Meter(job.model.device)
    runners = [Runner(number, policy, job, meter) for number, policy in policies]
    waiting = list(runners)
    while waiting:
        # prompts first, in order; then the run with less accumulated time steps next, so that whichever leads here would also lead alone
        runner = min(waiting, key=lambda runner: (runner.tokens is not None, runner.clock_ms))
        if stop.is_set():
            yield from runner.stop()
        elif runner.tokens is None:
            yield from runner.prefill(stop)
        else:
            yield from runner.step()
        if runner.reason is not None:
            waiting.remove(runner)
    for runner in runners:
        runner.close()
    return runners


def _race_again(job: Job, policies: list[tuple[int, Policy]], stop: threading.Event, number: int) -> Iterator[Event]:
    """Repeat a race and yield one Repeat event per policy, none for runs that were stopped."""
    race = _race(job, policies, stop)
    while True:
        try:
            next(race)
        except StopIteration as end:
            runners = end.value
            break
    for runner in runners:
        if runner.reason != "stopped":
            yield runner.again(number)
