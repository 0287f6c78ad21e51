"""stream() and race(): checks, the order of the arms, events. The one place where a request becomes a generation.

Knows neither Gradio nor threads. Arms of a race never overlap on the device.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch

from avl.attention.attachment import attach
from avl.cache.cache import make_cache
from avl.engine.runner import Request, Runner, attention
from avl.kernels import resolve_impl, triton_trouble
from avl.models.families import describe
from avl.models.grids import image_grids
from avl.models.images import open_image
from avl.models.inputs import prepare, repeat
from avl.models.loading import model_name
from avl.policies import Policy
from avl.telemetry import Meter, machine_card
from avl.trace import Arm, Error, Event, Start, Warning

MODES = ("race", "isolated")
MAX_REPEATS = 100


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
    """Answer one question under one policy, event by event (see avl/trace.py). The fast path; attaches the model if it is not.

    Args:
        model, processor: from ``avl.load``. image: a picture or a list of them (PIL, path, bytes, array).
        question: a plain question, or a whole prompt with image placeholders. policy: what to store and read.
        max_new_tokens: most tokens of the answer. temperature: 0 for greedy. top_p: in (0, 1]. seed: of the sampling.
        batch: the same request so many times at once; events speak of row 0. stop: set it, and the run ends before the next step.
        scores: after the answer feed it once more and record the attention of every pass (Scores events); no step takes longer for it.

    Raises:
        ValueError: bad input, one sentence, before anything runs. TypeError: an unsupported model.
    """
    return _run(model, processor, image, question, [policy], max_new_tokens, "single", batch, temperature, top_p, seed, stop, 1, scores)


def race(
    model: Any,
    processor: Any,
    images: Any,
    question: str,
    policies: Sequence[Policy],
    *,
    max_new_tokens: int = 64,
    mode: str = "race",
    batch: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: threading.Event | None = None,
    repeats: int = 1,
    scores: bool = False,
) -> Iterator[Event]:
    """Answer one question under several policies, one arm each, on a fair clock.

    ``mode``: "race": the arm with less accumulated compute time steps next, so that the faster one is ahead exactly as it would be alone;
    "isolated": one arm after the other, each one's cache freed before the next begins, so that memory readings belong to one arm.
    ``repeats``: run the same so many times, the arms in turned order every other time; the first time is told in full, each further one
    by a Repeat event per arm, so that times come with a spread. Everything else as :func:`stream`.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: use {' or '.join(MODES)}")
    if not policies:
        raise ValueError("there is nothing to compare: pass at least one policy")
    return _run(
        model, processor, images, question, list(policies), max_new_tokens, mode, batch, temperature, top_p, seed, stop, repeats, scores
    )


def _run(
    model: Any,
    processor: Any,
    images: Any,
    question: str,
    policies: list[Policy],
    max_new_tokens: int,
    mode: str,
    batch: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    stop: threading.Event | None,
    repeats: int,
    scores: bool,
) -> Iterator[Event]:
    """Check everything now, not at the first ``next``; then hand out the generator."""
    facts = describe(model)
    attach(model)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch!r} is out of range: it is a whole number of at least 1")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= MAX_REPEATS:
        raise ValueError(f"repeats={repeats!r} is out of range: it is a whole number from 1 to {MAX_REPEATS}")
    if not 0 <= temperature <= 10:
        raise ValueError(f"temperature={temperature!r} is out of range: 0 (greedy) to 10")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p!r} is out of range: above 0 and at most 1")
    pictures = [open_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
    inputs, prompt = prepare(model, processor, pictures, question)
    eos = model.generation_config.eos_token_id
    request = Request(
        model=model,
        processor=processor,
        inputs=repeat(inputs, batch),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        eos=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
    )
    # allocates nothing; raises before the run if anything does not fit
    caches = [make_cache(model, request.inputs, policy, max_new_tokens) for policy in policies]
    row = caches[0].rows[0]
    sizes = [picture.size for picture in pictures]
    kind = model.dtype.itemsize
    implementation = resolve_impl(model.device, dtype=model.dtype, head_size=facts.head_dim)
    start = Start(
        arms=tuple(Arm(policy.label, policy.to_dict(), implementation) for policy in policies),
        mode=mode,
        question=question,
        prompt=prompt,
        model={
            "name": model_name(model),
            "class": facts.name,
            "revision": getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "layers": facts.layers,
            "heads": facts.heads,
            "kv_heads": facts.kv_heads,
            "head_dim": facts.head_dim,
        },
        machine=machine_card(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        n_image=row.n_image,
        n_text=row.n_text,
        spans=row.spans,
        images=tuple(sizes),
        grids=image_grids(model, processor, sizes),
        layers=facts.layers,
        token_bytes=2 * facts.layers * facts.kv_heads * facts.head_dim * kind,
        batch=batch,
        limit=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    return _events(request, policies, start, stop or threading.Event(), repeats, scores)


@torch.inference_mode()
def _events(request: Request, policies: list[Policy], start: Start, stop: threading.Event, repeats: int, scores: bool) -> Iterator[Event]:
    yield start
    trouble = triton_trouble(request.model.device, request.model.dtype, start.model["head_dim"])
    if trouble is not None:
        yield Warning(f"decode steps run the torch reference, not our Triton kernels, which costs time: {trouble}")
    if start.batch > 1:
        yield Warning(f"the request runs {start.batch} times at once; text and sets are those of row 0, bytes those of all rows")
    arms = list(enumerate(policies))
    try:
        finished: list[Runner] = []
        for group in _groups(arms, start.mode):
            finished += yield from _race(request, group, stop)
        for number in range(1, repeats):
            for group in _groups(arms[::-1] if number % 2 else arms, start.mode):
                yield from _race_again(request, group, stop, number)
        for runner in finished if scores else []:
            passes = attention(runner)
            while not stop.is_set() and (event := next(passes, None)) is not None:
                yield event
    except torch.OutOfMemoryError:
        yield Error("the device ran out of memory: lower the batch, S, or max new tokens, or use a smaller image")


def _groups(arms: list[tuple[int, Policy]], mode: str) -> list[list[tuple[int, Policy]]]:
    """The arms that step in turns: all at once in a race, each alone in isolated mode."""
    return [[arm] for arm in arms] if mode == "isolated" else [arms]


def _race(request: Request, arms: list[tuple[int, Policy]], stop: threading.Event) -> Generator[Event, None, list[Runner]]:
    """Step the arms until all have ended; tells every event, and returns what is left of them: their tokens and times."""
    meter = Meter(request.model.device)
    runners = [
        Runner(number, policy, request, meter, make_cache(request.model, request.inputs, policy, request.max_new_tokens))
        for number, policy in arms
    ]
    waiting = list(runners)
    while waiting:
        # the arm that used less time is next: prompts in order first, then it is ahead exactly as it would be alone
        runner = min(waiting, key=lambda runner: (runner.tokens is not None, runner.clock_ms))
        if stop.is_set():
            yield from runner.stop()
        elif runner.tokens is None:
            yield from runner.prefill()
        else:
            yield from runner.step()
        if runner.reason is not None:
            waiting.remove(runner)
    for runner in runners:
        runner.free()
    return runners


def _race_again(request: Request, arms: list[tuple[int, Policy]], stop: threading.Event, number: int) -> Iterator[Event]:
    """The same once more, told by one event per arm; nothing of it where the run is stopped."""
    race = _race(request, arms, stop)
    while True:
        try:
            next(race)
        except StopIteration as end:
            runners = end.value
            break
    for runner in runners:
        if runner.reason != "stopped":
            yield runner.again(number)
