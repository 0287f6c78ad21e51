"""Measures one cell of the benchmark: a policy at a batch, transformers' own generate, the largest batch that fits.

The arms alternate, run by run on a GPU and step by step on a CPU, in an order that is reversed every time; a ratio is taken within each
such pair of runs.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from avl.attention.attachment import attach, detach
from avl.bench import roofline
from avl.cache.cache import make_cache
from avl.engine.cuda_graphs import GraphDecoder
from avl.engine.decoder import Decoder
from avl.engine.failures import out_of_memory
from avl.engine.timing import Clock, Marks
from avl.kernels import choose_product
from avl.kernels.bench.timing import Timer, measure_bandwidth, one_line
from avl.kernels.launch import on_device
from avl.models.families import causal_model
from avl.policies import Policy, PromptShape
from avl.policies.cost import mean_cost, step_cost, update_steps
from avl.telemetry import free_bytes, settle

Arms = dict[str, Policy]
Rows = list[dict[str, Any]]


@dataclass
class Subject:
    """What is measured: a model, the prompt's shape, ``make(batch)``, which gives the model's inputs, and whether steps are CUDA graphs."""

    model: Any
    name: str
    weights: str
    shape: PromptShape
    make: Callable[[int], dict[str, Any]]
    graphs: bool = False

    @property
    def sizes(self) -> roofline.Sizes:
        return roofline.Sizes.of(self.model.config, self.model.dtype.itemsize)

    @property
    def device(self) -> torch.device:
        return self.model.device


@dataclass
class Run:
    """One answer under one policy. ``times``: milliseconds of each decode step. Bytes: of keys and values, all rows and layers.

    ``prepare_ms``: what warming up and capturing took between the prompt and the first step; 0 without graphs.
    """

    ttft_ms: float
    prepare_ms: float
    kv_peak_bytes: int
    torch_peak_bytes: int | None
    stored_bytes: int
    read_bytes: int
    times: list[float] = field(default_factory=list)
    updates: list[bool] = field(default_factory=list)

    def of_kind(self, update: bool) -> list[float]:
        """Return the times of the update steps, or of the others."""
        return [ms for ms, is_update in zip(self.times, self.updates, strict=True) if is_update == update]

    @property
    def tpot_ms(self) -> float:
        """Median time of a step; of update steps and others apart, then weighted by their number: one median over both would hide the
        slower third of A-VL's steps, a mean would show what else the machine did."""
        parts = [part for part in (self.of_kind(True), self.of_kind(False)) if part]
        return sum(len(part) * statistics.median(part) for part in parts) / len(self.times)


class _Answer:
    """One answer in progress; the end of sequence is not looked for, so every arm does the same number of steps."""

    def __init__(self, subject: Subject, inputs: dict[str, Any], policy: Policy) -> None:
        """Run the prompt, and prepare what a first step needs."""
        self._device, self._policy = subject.device, policy
        cuda = self._device.type == "cuda"
        settle(self._device)
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._cache = make_cache(subject.model, inputs, policy, subject.shape.max_new_tokens)
        self._decoder = GraphDecoder(subject.model, self._cache) if subject.graphs else Decoder(subject.model, self._cache)
        clock = Clock(self._device)
        clock.start()
        self._tokens = self._decoder.prefill(inputs).argmax(dim=-1)
        self._ttft_ms = clock.stop()
        self._prepare_ms = 0.0
        if isinstance(self._decoder, GraphDecoder):
            self._decoder.prepare()
            if self._decoder.out_of_memory:
                raise torch.OutOfMemoryError(self._decoder.problem)
            if cuda and self._decoder.problem is not None:
                raise RuntimeError(f"CUDA graphs cannot be used here ({self._decoder.problem}): run the benchmark with --decode eager")
            self._prepare_ms = self._decoder.prepare_ms
        self._marks = Marks(self._device)

    def step(self) -> None:
        """One more token, fed back on the device: on a GPU nothing is read on the host."""
        self._marks.add()
        self._tokens = self._decoder.step(self._tokens).argmax(dim=-1)
        self._marks.add()

    def finish(self) -> Run:
        """Return what it took; waits for the device."""
        cache, times = self._cache, self._marks.gaps()[::2]
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
        updates = [self._policy.is_update(t) for t in range(1, len(times) + 1)]
        return Run(self._ttft_ms, self._prepare_ms, cache.peak_bytes, peak, cache.stored_bytes, cache.read_bytes, times, updates)


@torch.inference_mode()
def run(subject: Subject, inputs: dict[str, Any], arms: Sequence[Policy], steps: int) -> list[Run]:
    """One answer of ``steps`` decode steps under each policy, the arms stepping in turns, in an order that is reversed at every step."""
    with on_device(subject.device):
        answers = [_Answer(subject, inputs, policy) for policy in arms]
        for number in range(steps):
            for answer in answers[:: 1 if number % 2 == 0 else -1]:
                answer.step()
        return [answer.finish() for answer in answers]


def together(device: torch.device, arms: list[str]) -> list[list[str]]:
    """Group the policies that step in turns.

    Each alone on a GPU, whose steps are queued and whose memory is one policy's; all together on a CPU, whose speed drifts within a run.
    """
    return [[arm] for arm in arms] if device.type == "cuda" else [arms]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median, "q1": q1, "q3": q3}


def compare(subject: Subject, arms: Arms, batch: int, repeats: int, rates: roofline.Rates) -> tuple[Rows, Rows]:
    """Rows of one batch, and what was skipped with its reason."""
    skipped: Rows = []
    there: Arms = {}
    free = free_bytes(subject.device)
    for key, policy in arms.items():
        need = roofline.batch_bytes(subject.sizes, policy, subject.shape, batch)
        if need > free:
            reason = f"predicted to need {need / 1e9:.1f} GB beside the weights, {free / 1e9:.1f} GB are free"
            skipped.append({"batch": batch, "arm": key, "reason": reason})
        else:
            there[key] = policy
    if not there:
        return [], skipped
    try:
        inputs = subject.make(batch)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return [], [*skipped, *({"batch": batch, "arm": key, "reason": "its inputs ran out of memory"} for key in there)]
    steps = subject.shape.max_new_tokens - 1
    runs: dict[str, list[Run]] = {key: [] for key in there}
    for number in range(-1, repeats):  # number -1 warms up: libraries, kernels and the allocator's blocks
        order = list(there)[:: 1 if number % 2 == 0 else -1]
        for group in together(subject.device, order):
            try:
                done = run(subject, inputs, [there[key] for key in group], min(steps, 8) if number < 0 else steps)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                skipped += [{"batch": batch, "arm": key, "reason": "ran out of memory although it was predicted to fit"} for key in group]
                for key in group:
                    del there[key]
                continue
            if number >= 0:
                for key, one in zip(group, done, strict=True):
                    runs[key].append(one)
    base = next(iter(there), None)
    rows: Rows = []
    for key, policy in there.items():
        row = summary(subject, key, policy, batch, runs[key], rates)
        if base is not None and base != key:
            pairs = [one.tpot_ms / other.tpot_ms for one, other in zip(runs[base], runs[key], strict=True)]
            row["ratio"] = spread(pairs) | {"to": base}
            row["floor_ratio"] = rows[0]["floor_ms"] / row["floor_ms"]
        rows.append(row)
    return rows, skipped


def summary(subject: Subject, key: str, policy: Policy, batch: int, runs: list[Run], rates: roofline.Rates) -> dict[str, Any]:
    """Return the row of the result for the runs of one policy at one batch.

    Raises:
        RuntimeError: the cache stored or read another number of bytes than the cost model says.
    """
    sizes, shape = subject.sizes, subject.shape
    last = step_cost(policy, shape, len(runs[0].times))
    counted = (batch * last.stored * sizes.entry_bytes, batch * last.read * sizes.entry_bytes)
    for done in runs:
        if (done.stored_bytes, done.read_bytes) != counted:
            found = done.stored_bytes, done.read_bytes
            raise RuntimeError(f"{key}: the cache stored and read {found} bytes, the cost model says {counted}; no floor is right then")
    mean = mean_cost(policy, shape)
    tpot = spread([done.tpot_ms for done in runs])
    pooled = [ms for done in runs for ms in done.times]
    floor = roofline.floor_ms(sizes, mean, batch, rates)
    whole = runs[0].stored_bytes + batch * shape.length * sizes.entry_bytes
    row: dict[str, Any] = {
        "batch": batch,
        "arm": key,
        "ttft_ms": spread([done.ttft_ms for done in runs]),
        "prepare_ms": spread([done.prepare_ms for done in runs]),
        "tpot_ms": tpot,
        "step_mean_ms": statistics.fmean(pooled),
        "step_p99_ms": sorted(pooled)[min(len(pooled) - 1, int(0.99 * len(pooled)))],
        "tokens_per_s": 1e3 * batch / statistics.fmean(pooled),
        "stored_bytes": runs[0].stored_bytes,
        "read_bytes": batch * mean.read * sizes.entry_bytes,
        "kv_peak_bytes": runs[0].kv_peak_bytes,
        "kv_peak_ratio": runs[0].kv_peak_bytes / whole,
        "torch_peak_bytes": runs[0].torch_peak_bytes,
        "floor_ms": floor,
        "floor_share": floor / tpot["median"],
        "ratio": None,
    }
    for kind, steps in update_steps(policy, shape).items():
        row[f"{kind}_ms"] = spread([ms for done in runs for ms in done.of_kind(kind == "update")])
        row[f"{kind}_floor_ms"] = roofline.floor_ms(sizes, mean_cost(policy, shape, steps), batch, rates)
    return row


def largest(subject: Subject, policy: Policy) -> dict[str, Any]:
    """Find the largest batch that fits: predicted, and on a GPU tried around the prediction, with its tokens/s over a few steps."""
    settle(subject.device)
    predicted = roofline.largest_batch(subject.sizes, policy, subject.shape, free_bytes(subject.device))
    found: dict[str, Any] = {"predicted": predicted, "confirmed": None, "tokens_per_s": None}
    if subject.device.type != "cuda":
        return found
    fits, fails, batch = 0, 1 << 30, max(1, predicted)
    for _ in range(7):
        try:
            (done,) = run(subject, subject.make(batch), [policy], min(16, subject.shape.max_new_tokens - 1))
            fits = batch
            found |= {"confirmed": batch, "tokens_per_s": 1e3 * batch / statistics.fmean(done.times)}
        except Exception as error:
            if not out_of_memory(error):
                raise
            fails = batch
        batch = (fits + fails) // 2 if fits and fails < 1 << 30 else max(1, round(batch * (1.1 if fits else 0.85)))
        if batch in (fits, fails) or fits + 1 >= fails:
            break
    return found


@contextlib.contextmanager
def _stock(model: Any) -> Iterator[None]:
    """Lend the model as transformers made it, without an end of sequence; restored afterwards."""
    settings = causal_model(model).generation_config
    eos = settings.eos_token_id
    detach(model)
    settings.eos_token_id = None
    try:
        yield
    finally:
        settings.eos_token_id = eos
        attach(model)


@torch.inference_mode()
def reference(subject: Subject, batch: int, static: bool, repeats: int) -> dict[str, Any]:
    """`model.generate` of transformers itself: an outside reference, which no target and no ratio of the policies rests on.

    A stopping criterion that never stops marks the time after every token, so that prompt and steps are told apart within one call.
    """
    name = "HF generate, static cache" if static else "HF generate, DynamicCache"
    entry: dict[str, Any] = {"batch": batch, "name": name}
    extra = {"cache_implementation": "static"} if static else {}
    new = subject.shape.max_new_tokens

    def timed() -> list[float]:
        marks = Marks(subject.device)

        def note(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            marks.add()
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

        settle(subject.device)
        marks.add()
        subject.model.generate(**inputs, max_new_tokens=new, do_sample=False, use_cache=True, stopping_criteria=[note], **extra)
        return marks.gaps()

    try:
        inputs = subject.make(batch)
        with _stock(subject.model), on_device(subject.device):
            timed()  # warms up, and compiles where transformers compiles
            runs = [timed() for _ in range(repeats)]
    except Exception as error:  # a reference that fails must not end the run: the reason is its result
        return entry | {"tpot_ms": None, "note": one_line(error)}
    finally:
        settle(subject.device)
    return entry | {
        "ttft_ms": spread([gaps[0] for gaps in runs]),
        "tpot_ms": spread([statistics.median(gaps[1:]) for gaps in runs]),
    }


def measure_rates(subject: Subject, batches: Sequence[int], quick: bool) -> tuple[dict[str, float], roofline.Rates]:
    """Copy, triad and read bandwidth in GB/s and TFLOP/s of a large matrix product, on random data; the rates that floors are made of.

    On a CPU, arrays are as large as the model's weights, because caches may hold a small model's.
    """
    device, dtype, sizes = subject.device, subject.model.dtype, subject.sizes
    cuda = device.type == "cuda"
    with on_device(device):
        measured = measure_bandwidth(device, 2 if quick else 5, 0.02, None if cuda else min(sizes.weight_bytes, 1 << 28))
        flops = matrix_flops(device, dtype)
    products = {} if cuda else {batch: product_rate(sizes, batch, dtype, quick) for batch in batches}
    return measured | {"tflops": flops / 1e12}, roofline.Rates(measured["copy"] * 1e9, flops, products)


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second of a large matrix product on random data."""
    side = 8192 if device.type == "cuda" else 768
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    timer = Timer([lambda: left @ right], device, 0.05)
    return 2 * side**3 / statistics.median(timer.seconds() for _ in range(3))


@torch.inference_mode()
def product_rate(sizes: roofline.Sizes, batch: int, dtype: torch.dtype, quick: bool) -> float:
    """Return the bytes of weights per second of the engine's product of ``batch`` rows on a CPU, at the model's width.

    Weights alternate, as many as the model has or a GiB of them, so that caches hold what they would of the model.
    """
    bytes_each = sizes.hidden * sizes.ffn * dtype.itemsize
    weights = torch.randn(max(1, min(sizes.weight_bytes, 1 << 30) // bytes_each), sizes.ffn, sizes.hidden).to(dtype)
    x, multiply = torch.randn(batch, sizes.hidden).to(dtype), choose_product("cpu", batch, dtype=dtype)
    timer = Timer([functools.partial(multiply, x, weight, None) for weight in weights], torch.device("cpu"), 0.05)
    return bytes_each / statistics.median(timer.seconds() for _ in range(2 if quick else 5))
