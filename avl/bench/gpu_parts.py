"""The parts of ``avl gpu-check``; as a program, one of them: ``python -m avl.bench.gpu_parts NAME FILE SECONDS``.

Without a GPU each runs in miniature, so that all of it is tried before the first machine with a GPU is there. Heavy libraries are imported
where they are used: a part that needs none should not wait for them.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avl.bench.gpu_check import NotHereError, Part, Record, carry_out, first_line

if TYPE_CHECKING:
    import torch

MINI_SCALE = 0.02
"""Of the models without a GPU."""

TESTS = Path(__file__).resolve().parents[2] / "tests" / "kernels"

CORE = "core attention, text scores"
"""The row of the kernels' table that others are compared with: what a core step of A-VL runs."""

PEERS = {"FlashInfer, page size 1": "flashinfer", "SGLang decode": "sglang.srt.layers.attention.triton_ops.decode_attention"}
"""Rows of other libraries -> the module that each needs."""

LARGEST_SECONDS = 60.0
"""The largest batch is not looked for in less time."""


def doctor(record: Record) -> None:
    """Say what is installed, and what will run where."""
    if _run(record, [sys.executable, "-m", "avl", "doctor"], lambda lines: record.keep(lines=lines)):
        raise RuntimeError(next((line for line in record.facts["lines"] if line.startswith("missing:")), "avl doctor failed"))


def self_check(record: Record) -> None:
    """Compare every kernel with its specification: each dtype, two head sizes, heads with keys of their own and in groups."""
    device = _device(record)
    import torch

    from avl.kernels.selfcheck import find_trouble

    sizes, dtypes = [128, 64], [torch.float16, torch.bfloat16, torch.float32]
    if device.type == "cpu":  # interpreted, slowly
        sizes, dtypes = [64], [torch.float16]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for dtype in dtypes:
            began = time.perf_counter()
            trouble = find_trouble(device, dtype, size)
            rows.append({"dtype": str(dtype)[6:], "head_size": size, "trouble": trouble, "seconds": time.perf_counter() - began})
            record.keep(rows=rows)


def kernel_tests(record: Record) -> None:
    """Run the kernels' tests, compiled for this device."""
    device = _device(record)
    if not TESTS.is_dir():
        raise NotHereError("the tests are not in this installation, only in a checkout")
    if importlib.util.find_spec("pytest") is None:
        raise NotHereError("pytest is not installed (tests/requirements.txt)")
    gpu = device.type == "cuda"
    arguments = [
        str(TESTS) if gpu else str(TESTS / "test_kernel_files.py"),
        "-m",
        "not slow",
        "-v",
        "--no-header",
        "--color=no",
        "--tb=short",
    ]
    if importlib.util.find_spec("xdist") is not None:  # most of their time is compilation
        arguments += ["-n", str(min(8, max(1, (os.cpu_count() or 1) // 2))) if gpu else "0"]
    record.keep(counts={}, failures=[])

    def count(lines: list[str]) -> None:
        record.keep(**read_pytest(lines))

    status = _run(record, [sys.executable, "-m", "pytest", *arguments], count, cwd=TESTS.parents[1])
    if status not in (0, 1) or not any(record.facts["counts"].values()):  # 1: some tests failed
        raise RuntimeError(f"pytest ended with status {status}, see the log")


def read_pytest(lines: list[str]) -> dict[str, Any]:
    """Return how many tests passed, failed and were skipped so far, and the names of those that failed, from the lines of ``-v``."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures: list[str] = []
    kinds = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped", "XFAIL": "skipped", "XPASS": "passed"}
    for line in lines:
        found = re.search(rf"\b({'|'.join(kinds)})\b", line)
        if found is None or "%]" not in line:
            continue
        counts[kinds[found[1]]] += 1
        name = re.search(r"\S+\.py::\S+", line)
        if kinds[found[1]] == "failed" and name is not None and len(failures) < 50:
            failures.append(name[0])
    return {"counts": counts, "failures": failures}


def bandwidth(record: Record) -> None:
    """Time copy, triad and read of memory far larger than any cache."""
    device = _device(record)
    from avl.kernels.bench.timing import measure_bandwidth

    gpu = device.type == "cuda"
    record.keep(gb_s=measure_bandwidth(device, 5 if gpu else 1, 0.02 if gpu else 0.001))


def kernels(record: Record) -> None:
    """Time one layer's decode attention beside whatever else could be called."""
    device = _device(record)
    from avl.kernels.bench.cases import CPU_SHAPES, GPU_SHAPES

    long, short, grouped = (GPU_SHAPES[place] for place in (1, 0, 2))
    if device.type == "cpu":
        shapes = [(CPU_SHAPES[1], 1)]
    else:
        shapes = [(shape, batch) for batch in (32, 1, 8) for shape in (long, short, grouped)]
    _attention_cells(record, device, shapes)


def engine(name: str, record: Record) -> None:
    """Measure the engine on one model of random weights: steps, prompts, memory, and the largest batch."""
    device = _device(record)
    from avl.bench import benchmark, measure, roofline
    from avl.kernels import resolve_impl, triton_trouble
    from avl.models.families import describe

    gpu = device.type == "cuda"
    subject = benchmark.made(name, 128 if gpu else 6, scale=1.0 if gpu else MINI_SCALE, device=str(device), dtype=_dtype(device))
    kind = {"dtype": subject.model.dtype, "head_size": describe(subject.model).head_dim}
    arms = benchmark.parse_arms(["full", "evict", "avl", "prune"], subject)
    free = measure.free_bytes(subject.device)
    largest = {arm: {"predicted": roofline.largest_batch(subject.sizes, arms[arm], subject.shape, free)} for arm in ("full", "avl")}
    record.keep(
        model=name,
        weights=subject.weights,
        dtype=str(subject.model.dtype)[6:],
        implementation=resolve_impl(subject.device, **kind),
        kernel_trouble=triton_trouble(subject.device, *kind.values()),
        layers=benchmark.layers(subject),
        decode="graphs" if subject.graphs else "eager",
        rows=[],
        skipped=[],
        troubles=[],
        largest={arm: size | {"confirmed": None, "tokens_per_s": None} for arm, size in largest.items()},
    )
    bandwidth, rates = measure.measure_rates(subject, (1, 8, 32) if gpu else (1, 2), quick=True)
    record.keep(bandwidth=bandwidth)
    for batch in (1, 8, 32) if gpu else (1, 2):
        # with P only the prompt differs, which one row shows
        wanted = {arm: policy for arm, policy in arms.items() if arm != "prune" or batch == 1}
        compare = partial(measure.compare, subject, wanted, batch, 3 if gpu else 1, rates)
        done = _engine_rows(record, compare, batch)
        if not done and subject.graphs:
            subject.graphs = False
            record.keep(decode=f"eager from batch {batch} on, which failed with CUDA graphs")
            _engine_rows(record, compare, batch)
    for arm in ("full", "avl") if gpu else ():
        if record.left() > LARGEST_SECONDS:
            try:
                record.facts["largest"][arm] = measure.largest(subject, arms[arm])
            except Exception as error:
                record.facts["largest"][arm]["error"] = first_line(error)
            record.keep()


def _engine_rows(record: Record, compare: Callable[[], tuple[list[Any], list[Any]]], batch: int) -> bool:
    """Keep the rows of one batch, or why there are none; return whether it needs no other try."""
    import torch

    from avl.engine.failures import out_of_memory

    lost = False
    try:
        rows, skipped = compare()
        record.facts["rows"] += rows
        record.facts["skipped"] += skipped
    except Exception as error:  # the other batches may do
        if out_of_memory(error):
            record.facts["skipped"].append({"batch": batch, "arm": "all", "reason": first_line(error)})
        else:
            record.facts["troubles"].append({"batch": batch, "error": first_line(error)})
            lost = True
    record.keep()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return not lost


def references(record: Record) -> None:
    """Time transformers' own generate, full attention, on the model with the longer pictures."""
    device = _device(record)
    from avl.bench import benchmark, measure

    name, gpu = "llava-1.6-7b", device.type == "cuda"
    subject = benchmark.made(name, 32 if gpu else 5, scale=1.0 if gpu else MINI_SCALE, device=str(device), dtype=_dtype(device))
    record.keep(model=name, entries=[])
    # last the one that compiles: it takes long, and keeps memory
    for batch, static in ((1, False), (32, False), (8, False), (1, True)) if gpu else ((1, False), (1, True)):
        record.facts["entries"].append(measure.reference(subject, batch, static, 2 if gpu else 1))
        record.keep()


def turing(record: Record) -> None:
    """Try float16 on sm_75, which has neither bfloat16 nor asynchronous copies, and spills in the kernel for grouped heads."""
    device = _device(record)
    import torch

    from avl.kernels.bench.cases import GPU_SHAPES
    from avl.kernels.selfcheck import find_trouble

    if device.type == "cpu":
        raise NotHereError("not this device: there is no GPU")
    capability = torch.cuda.get_device_capability(device)
    if capability != (7, 5):
        raise NotHereError(f"not this device: its compute capability is {capability[0]}.{capability[1]}")
    record.keep(troubles={size: find_trouble(device, torch.float16, size) for size in (128, 64)})
    _attention_cells(record, device, [(GPU_SHAPES[place], batch) for batch in (1, 8) for place in (0, 2)])


def _device(record: Record) -> torch.device:
    """Return where the parts run, and keep what it is."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
        torch.set_num_threads(1)  # more wait for each other at these sizes
    from avl.telemetry import machine_card

    torch.set_grad_enabled(False)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    facts: dict[str, Any] = {"evidence": "gpu" if device.type == "cuda" else "cpu", "machine": machine_card(device)}
    if device.type == "cuda":
        facts["compute_capability"] = list(torch.cuda.get_device_capability(device))
    record.keep(**facts)
    return device


def _dtype(device: torch.device) -> str:
    """Return the 16-bit dtype that a GPU multiplies fast, float32 on a CPU."""
    import torch

    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def _attention_cells(record: Record, device: torch.device, shapes: list[tuple[Any, int]]) -> None:
    """Time decode attention and its peers for shapes at batches, and keep each table.

    Other libraries come last: they may compile for minutes, or not work here.
    """
    import torch

    from avl.kernels import resolve_impl, triton_trouble
    from avl.kernels.bench.attention import bench, find_ratios
    from avl.kernels.bench.baselines import Baseline, SkippedError, baselines, installed
    from avl.kernels.bench.cases import Data
    from avl.kernels.bench.layer import bench_layer
    from avl.kernels.bench.timing import measure_bandwidth

    gpu = device.type == "cuda"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[_dtype(device)]
    trouble = triton_trouble(device, dtype, 128)
    impl = resolve_impl(device, dtype=dtype, head_size=128)
    repeats, target_s = (5, 0.02) if gpu else (1, 0.001)
    copy = measure_bandwidth(device, repeats, target_s)["copy"]
    cells: list[dict[str, Any]] = []
    record.keep(dtype=_dtype(device), implementation=impl, kernel_trouble=trouble, copy_gb_s=copy, cells=cells)
    cold = 2 * max(60 << 20, torch.cuda.get_device_properties(device).L2_cache_size) if gpu else 0
    found = baselines(device, impl, False)

    def add(cell: dict[str, Any], shape: Any, wanted: list[Baseline]) -> None:
        try:
            rows = bench(Data(shape, cell["batch"], device, dtype, "tokens", cold), wanted, device, repeats, target_s)
            known = {row["name"] for row in cell["rows"]}
            cell["rows"] += [row for row in rows if row["name"] not in known]
            cell["ratios"] = find_ratios(rows) | cell["ratios"]
        except Exception as error:  # the other cells may do
            cell["error"] = first_line(error)
        if gpu:
            torch.cuda.empty_cache()
        record.keep()

    for shape, batch in shapes:
        cells.append({"shape": shape.name, "batch": batch, "copy_gb_s": copy, "rows": [], "ratios": {}, "layer_rows": []})
        add(cells[-1], shape, [one for one in found if one.name not in PEERS])
        for row in cells[-1]["rows"]:
            if row["name"] == CORE and row["us"] is not None:
                cells[-1]["ratios"]["core / copy"] = row["gb_s"] / copy
    if gpu:
        for cell, (shape, batch) in zip(cells, shapes, strict=True):
            try:
                cell["layer_rows"] = bench_layer(shape, batch, device, dtype, impl, repeats, target_s)
            except Exception as error:
                cell["error"] = first_line(error)
            record.keep()
    peers: dict[str, str] = {}
    for name, module in PEERS.items():
        try:
            installed(module)
        except SkippedError as reason:
            peers[name] = str(reason)
            record.keep(peers=peers)
            continue
        record.keep(peers=peers | {name: "compared"})
        for cell, (shape, _) in zip(cells, shapes, strict=True):
            add(cell, shape, [one for one in found if one.name in (CORE, name)])
        peers[name] = "compared"


def _run(record: Record, command: list[str], take: Callable[[list[str]], None], cwd: Path | None = None) -> int:
    """Run a program, its output in the log too, and return its exit status.

    Args:
        record: of the part.
        command: the program and its arguments.
        take: is called with all lines so far, at most once a second, and at the end.
        cwd: where it runs.
    """
    lines: list[str] = []
    told = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=cwd) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
            if time.monotonic() - told > 1:
                told = time.monotonic()
                take(lines)
    take(lines)
    return process.returncode


PARTS = {
    part.name: part
    for part in (
        Part("doctor", "installation", 8, doctor),
        Part("self-check", "self-check of the kernels", 20, self_check),
        Part("tests", "tests of the kernels", 18, kernel_tests),
        Part("bandwidth", "bandwidth", 4, bandwidth),
        Part("kernels", "table of the kernels", 18, kernels),
        Part("engine-1.6", "engine, LLaVA-1.6-7B", 24, partial(engine, "llava-1.6-7b")),
        Part("engine-1.5", "engine, LLaVA-1.5-7B", 16, partial(engine, "llava-1.5-7b")),
        Part("references", "transformers' generate", 12, references),
        Part("sm_75", "float16 on sm_75", 4, turing),
    )
}
"""In order of value."""


def main(arguments: list[str]) -> None:
    """Carry out one part, and leave in its log where it was when its time was nearly up."""
    name, file, seconds = arguments[0], Path(arguments[1]), float(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.5, seconds - 1))
    carry_out(PARTS[name].work, Record(file, name, seconds))
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1:])
