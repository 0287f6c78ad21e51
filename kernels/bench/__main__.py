"""Benchmark of the kernels: `python -m avl.kernels.bench [--quick] [--json FILE]`.

Microseconds and GB/s of one decode call over batch, beside the copy, triad and read-only bandwidth of the same run, and beside what
else could be called: attention over the whole cache, slice-then-attend (the paper's Figure 8), FlashInfer and SGLang where installed.
How to read the tables: kernels/README.md. Without a GPU it runs at small sizes, and those times say nothing about a GPU.
"""

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

import torch

from avl.kernels import resolve_impl
from avl.kernels.bench.attention import bench, find_ratios, show, show_ratios
from avl.kernels.bench.baselines import baselines
from avl.kernels.bench.cases import CPU_SHAPES, GPU_SHAPES, Data
from avl.kernels.bench.layer import bench_layer, show_layer
from avl.kernels.bench.timing import measure_bandwidth


def machine(device: torch.device, impl: str) -> dict[str, object]:
    """Return the device, the versions and the implementation, for the head of the report."""
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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
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
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its tables and the whole result as one line of JSON."""
    parser = build_parser()
    options = parser.parse_args(argv)

    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    impl = resolve_impl(device, options.impl)
    if options.tune and impl != "triton":
        parser.error("--tune times tilings of the Triton kernels, but the implementation is the PyTorch path; it needs a GPU")
    dtype = getattr(torch, options.dtype or ("bfloat16" if gpu else "float32"))
    batches = options.batch or ((1, 2) if not gpu else (1, 16) if options.quick else (1, 8, 16, 32, 64))
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

    found = baselines(device, impl, options.tune)
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

    show_ratios(ratios)
    result = {
        "schema": "avl.kernels.bench/1",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evidence": "gpu" if gpu else "none: CPU, small sizes",
        "machine": facts,
        "dtype": str(dtype)[6:],
        "layout": options.layout,
        "repeats": repeats,
        "bandwidth_gb_s": bandwidth,
        "shapes": [shape.to_json() for shape in shapes],
        "rows": rows,
        "layer_rows": layer_rows,
        "ratios": ratios,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
