"""Benchmark of core attention: `python -m avl.kernels.bench [--quick] [--json FILE]`.

Microseconds and GB/s of one decode call over batch, beside the copy, triad and read-only bandwidth of the same run, and beside what
else could be called: attention over the whole cache, slice-then-attend (the paper's Figure 8), FlashInfer and SGLang where installed.
How to read the tables: kernels/README.md. Without a GPU it runs at small sizes, and those times say nothing about a GPU.
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from avl.kernels import core_attention, resolve_impl
from avl.kernels.bench.baselines import Contender, Data, Shape, SkippedError, contenders, moved_bytes, score_columns
from avl.kernels.bench.layer import bench_layer, show_layer
from avl.kernels.bench.timing import Call, Timer, alternate, measure_bandwidth, one_line

GPU_SHAPES = (
    Shape("llava-1.5-7b", 32, 32, 128, 705, 114, 287),
    Shape("llava-1.6-7b", 32, 32, 128, 3009, 129, 993),
    Shape("llava-1.6-mistral-7b", 32, 8, 128, 3009, 129, 993),
)
CPU_SHAPES = (Shape("small", 6, 6, 32, 640, 64, 250), Shape("small-grouped", 8, 2, 64, 640, 64, 250))


def check(data: Data, contender: Contender, call: Call) -> None:
    """Raise SkippedError unless `call`, on copy 0, gives what the reference gives in float32."""
    index = None if contender.tokens == "full" else getattr(data, contender.index)[0]
    query, key, value = data.query[0].float(), data.key[0], data.value[0]
    expected = torch.cat(  # a few rows at a time: float32 copies of whole caches need not fit
        [core_attention(query[b : b + 1], key[b : b + 1].float(), value[b : b + 1].float(), index if index is None else index[b : b + 1],
                        impl="reference")[0] for b in range(data.batch)]
    )  # fmt: skip
    actual = call().float().view_as(expected)
    error = float((actual - expected).norm() / expected.norm())
    limit = 1e-4 if data.dtype == torch.float32 else 1e-2
    if not error <= limit:
        raise SkippedError(f"wrong result: relative error {error:.1e}")


def bench(data: Data, found: list[Contender], device: torch.device, repeats: int, target_s: float) -> list[dict[str, object]]:
    """One row per contender; a row without a time says why."""
    timers: dict[str, Timer] = {}
    notes: dict[str, str] = {}
    for contender in found:
        try:
            calls = [contender.build(data, i) for i in range(data.copies)]
            check(data, contender, calls[0])
            timers[contender.name] = Timer(calls, device, target_s)
        except SkippedError as reason:
            notes[contender.name] = str(reason)
        except Exception as error:  # a peer that fails must not end the run
            notes[contender.name] = one_line(error)
    times = alternate(timers, repeats)
    rows: list[dict[str, object]] = []
    for contender in found:
        row: dict[str, object] = {"shape": data.shape.name, "batch": data.batch, "name": contender.name}
        row["tokens"] = data.shape.slots if contender.tokens == "full" else data.shape.core
        if contender.name in notes:
            rows.append(row | {"us": None, "note": notes[contender.name]})
            continue
        tokens = data.shape.slots if contender.tokens == "full" else data.shape.core
        size = moved_bytes(data, tokens, contender.tokens != "full", score_columns(data, contender.scores))
        taken = times[contender.name]
        median = statistics.median(taken)
        rows.append(row | {"us": median, "us_min": min(taken), "us_max": max(taken), "bytes": size, "gb_s": size / median / 1e3})
    return rows


def show(data: Data, rows: list[dict[str, object]], copy_gb_s: float) -> None:
    shape = data.shape
    print(
        f"\n{shape.name}: {shape.heads} heads, {shape.groups} KV heads of {shape.size}; {shape.core} of {shape.slots} tokens; "
        f"batch {data.batch}; {str(data.dtype)[6:]}; {data.layout} layout; {data.copies} copies in rotation"
    )
    print(f"  {'':34}{'us':>10}{'min .. max':>20}{'GB/s':>9}{'of copy':>9}")
    for row in rows:
        us = row["us"]
        if us is None:
            print(f"  {row['name']:34}{row['note']}")
            continue
        spread = f"{row['us_min']:.1f} .. {row['us_max']:.1f}"
        print(f"  {row['name']:34}{us:10.1f}{spread:>20}{row['gb_s']:9.1f}{row['gb_s'] / copy_gb_s:9.2f}")  # type: ignore[operator]


RATIOS = (  # what the tables are read for: time of the first over time of the second
    ("full / core", ("full",), "core attention, text scores"),
    ("slice / core", ("slice, then SDPA",), "core attention, text scores"),
    ("FlashInfer / core", ("FlashInfer, page size 1",), "core attention, text scores"),
    ("SGLang / core", ("SGLang decode",), "core attention, text scores"),
    ("scattered / contiguous", ("core attention",), "core attention, contiguous index"),
    ("text scores / none", ("core attention, text scores",), "core attention"),
    ("all scores / none", ("core attention, all scores",), "core attention"),
)


def find_ratios(rows: list[dict[str, object]]) -> dict[str, float]:
    """The RATIOS that these rows of one shape and batch allow. "full" is the fastest of all full-attention rows."""
    us = {str(row["name"]): float(row["us"]) for row in rows if row["us"] is not None}  # type: ignore[arg-type]
    full = [value for name, value in us.items() if name.startswith("full: ") or name == "core attention over all slots"]
    if full:
        us["full"] = min(full)
    return {label: us[top] / us[bottom] for label, (top,), bottom in RATIOS if top in us and bottom in us}


def machine(device: torch.device, impl: str) -> dict[str, object]:
    triton = sys.modules.get("triton")
    facts: dict[str, object] = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None) if impl == "triton" else None,
        "implementation": impl,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device": properties.name, "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
        facts["l2_bytes"] = properties.L2_cache_size
        driver = Path("/proc/driver/nvidia/version")
        facts["driver"] = driver.read_text().splitlines()[0] if driver.exists() else None
    return facts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m avl.kernels.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer batches and repeats")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result to FILE")
    parser.add_argument("--impl", choices=("auto", "triton", "reference"), default="auto", help="which implementation is ours")
    parser.add_argument("--layout", choices=("tokens", "heads"), default="tokens", help="token-major or head-major cache")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes")
    parser.add_argument("--shape", nargs="+", help="names of shapes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch; more than one wait for each other at these sizes")
    parser.add_argument("--tune", action="store_true", help="also time other tilings of the Triton kernels")
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    impl = resolve_impl(device, options.impl)
    if options.tune and impl != "triton":
        parser.error("--tune times tilings of the Triton kernels, but the implementation is the reference; it needs a GPU")
    dtype = getattr(torch, options.dtype or ("bfloat16" if gpu else "float32"))
    batches = options.batch or ((1, 16) if options.quick else (1, 8, 16, 32, 64)) if gpu else options.batch or (1, 2)
    shapes = [shape for shape in (GPU_SHAPES if gpu else CPU_SHAPES) if not options.shape or shape.name in options.shape]
    if not shapes:
        parser.error(f"--shape {' '.join(options.shape)}: none of them is in the table of this device")
    repeats = 3 if options.quick else 5
    target_s = 0.02 if gpu else (0.005 if options.quick else 0.02)

    torch.set_grad_enabled(False)
    facts = machine(device, impl)
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))
    if not gpu:
        print("No GPU: small sizes on a CPU with the caches warm. These times show that the benchmark runs; they say nothing about a GPU.")
    bandwidth = measure_bandwidth(device, repeats, target_s)
    print("bandwidth in GB/s: " + ", ".join(f"{name} {value:.1f}" for name, value in bandwidth.items()))

    found = contenders(device, impl, options.tune)
    rows: list[dict[str, object]] = []
    layer_rows: list[dict[str, object]] = []
    ratios: list[dict[str, object]] = []
    for shape in shapes:
        for batch in batches:
            # twice the L2 cache, and twice 60 MB at least, passes between two reads of the same byte; a CPU stays warm
            data = Data(shape, batch, device, dtype, options.layout, 2 * max(60 << 20, int(str(facts.get("l2_bytes", 0)))) if gpu else 0)
            part = bench(data, found, device, repeats, target_s)
            show(data, part, bandwidth["copy"])
            rows += part
            beside = bench_layer(shape, batch, device, dtype, impl, repeats, target_s)
            show_layer(beside)
            layer_rows += beside
            ratios.append({"shape": shape.name, "batch": batch} | find_ratios(part))
            del data
            if gpu:
                torch.cuda.empty_cache()

    print("\nratios of median times; core = core attention with text scores; full = the fastest over all slots (Figure 8: full, slice)")
    labels = [label for label, _, _ in RATIOS]
    print(f"  {'':22}{'batch':>6}" + "".join(f"{label:>24}" for label in labels))
    for row in ratios:
        cells = (f"{row[label]:24.2f}" if label in row else f"{'-':>24}" for label in labels)
        print(f"  {row['shape']:22}{row['batch']:6}" + "".join(cells))

    result = {
        "schema": "avl.kernels.bench/1",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evidence": "gpu" if gpu else "none: CPU, small sizes",
        "machine": facts,
        "dtype": str(dtype)[6:],
        "layout": options.layout,
        "repeats": repeats,
        "bandwidth_gb_s": bandwidth,
        "shapes": [asdict(shape) for shape in shapes],
        "rows": rows,
        "layer_rows": layer_rows,
        "ratios": ratios,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
