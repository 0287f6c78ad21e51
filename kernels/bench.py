"""Benchmark of core attention: `python -m avl.kernels.bench [--quick] [--json FILE]`.

Microseconds and GB/s of one decode call over batch, beside the copy, triad and read-only bandwidth of the same run, and beside what
else could be called: attention over the whole cache, slice-then-attend (the paper's Figure 8), FlashInfer and SGLang where installed.
How to read the tables: kernels/README.md. Without a GPU it runs at small sizes, and those times say nothing about a GPU.
"""

import argparse
import datetime
import importlib.util
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avl.kernels import Impl, core_attention, resolve_impl

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Shape:
    """One layer of a model half-way through 128 new tokens, with A-VL at S=45 C=30."""

    name: str
    heads: int
    groups: int
    size: int
    slots: int  # tokens of the full cache: image + 35 system + 30 question + 64 generated; 1.5 has 576 image tokens, 1.6 up to 2880
    text: int  # text tokens that A-VL keeps; their scores are wanted at every step
    core: int  # tokens that a core step reads, text included


GPU_SHAPES = (
    Shape("llava-1.5-7b", 32, 32, 128, 705, 114, 287),
    Shape("llava-1.6-7b", 32, 32, 128, 3009, 129, 993),
    Shape("llava-1.6-mistral-7b", 32, 8, 128, 3009, 129, 993),
)
CPU_SHAPES = (Shape("small", 6, 6, 32, 640, 64, 250), Shape("small-grouped", 8, 2, 64, 640, 64, 250))


class SkippedError(Exception):
    """Why a contender has no number."""


class Data:
    """Caches, queries and indices of one shape and batch, in as many copies as it takes to read none from the L2 cache."""

    def __init__(self, shape: Shape, batch: int, device: torch.device, dtype: torch.dtype, layout: str, cold_bytes: int) -> None:
        self.shape, self.batch, self.dtype, self.layout = shape, batch, dtype, layout
        self.itemsize = dtype.itemsize
        read = kv_bytes(self, shape.core)
        self.copies = max(1, min(64, math.ceil(cold_bytes / read)))
        make = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=make, device=device, dtype=torch.float32).to(dtype)

        self.query = [normal(batch, shape.heads, shape.size) for _ in range(self.copies)]
        if layout == "tokens":
            size = (batch, shape.slots, shape.groups, shape.size)
            self.key, self.value = ([normal(*size).transpose(1, 2) for _ in range(self.copies)] for _ in range(2))
        else:
            size = (batch, shape.groups, shape.slots, shape.size)
            self.key, self.value = ([normal(*size) for _ in range(self.copies)] for _ in range(2))
        order = torch.rand(self.copies, batch, shape.slots, generator=make, device=device).argsort(-1)
        self.scattered = [index[:, : shape.core].int().contiguous() for index in order]
        start = (shape.slots - shape.core) // 2
        contiguous = torch.arange(start, start + shape.core, device=device, dtype=torch.int32)
        self.contiguous = [contiguous.expand(batch, -1).contiguous() for _ in range(self.copies)]


def kv_bytes(data: Data, tokens: int) -> int:
    """Bytes of K and V in `tokens` tokens of every row."""
    return 2 * data.batch * tokens * data.shape.groups * data.shape.size * data.itemsize


def moved_bytes(data: Data, tokens: int, indexed: bool = True, columns: int = 0) -> int:
    """Fewest bytes that one call must move: K, V, query, output, index, and the logits of the score columns, written and read."""
    shape = data.shape
    vectors = 2 * data.batch * shape.heads * shape.size * data.itemsize
    return kv_bytes(data, tokens) + vectors + (4 * data.batch * tokens if indexed else 0) + 8 * data.batch * shape.heads * columns


@dataclass
class Contender:
    """Something to time: `build(data, i)` gives a call on copy i; `tokens` is what it reads per row."""

    name: str
    build: Callable[[Data, int], Call]
    tokens: str = "core"  # or "full"
    scores: str = "none"  # or "text", "all"
    index: str = "scattered"  # or "contiguous"


def ours(name: str, impl: Impl, tokens: str = "core", scores: str = "none", index: str = "scattered") -> Contender:
    def build(data: Data, i: int) -> Call:
        slots = None if tokens == "full" else getattr(data, index)[i]
        columns = (0, score_columns(data, scores)) if scores != "none" else False
        query, key, value = data.query[i], data.key[i], data.value[i]
        return lambda: core_attention(query, key, value, slots, scores=columns, impl=impl, validate=False)[0]

    return Contender(name, build, tokens, scores, index)


def score_columns(data: Data, scores: str) -> int:
    return {"none": 0, "text": data.shape.text, "all": data.shape.core}[scores]


def tuned(name: str, **fields: int) -> Contender:
    """Our kernel with other tilings (--tune)."""
    from avl.kernels.triton_core import Tiling, attend

    def build(data: Data, i: int) -> Call:
        columns, scale, tiling = (0, data.shape.text), data.shape.size**-0.5, Tiling(**fields)
        arguments = (data.query[i], data.key[i], data.value[i], data.scattered[i], None, scale, columns, False)
        return lambda: attend(*arguments, tiling=tiling)[0]

    return Contender(name, build, scores="text")


def sdpa(data: Data, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grouped = data.shape.heads != data.shape.groups
    return F.scaled_dot_product_attention(query.unsqueeze(2), key, value, enable_gqa=grouped).squeeze(2)


def sdpa_over_all(backend: str | None) -> Callable[[Data, int], Call]:
    def build(data: Data, i: int) -> Call:
        def call() -> Tensor:
            if backend is None:
                return sdpa(data, data.query[i], data.key[i], data.value[i])
            from torch.nn.attention import SDPBackend, sdpa_kernel

            with sdpa_kernel(getattr(SDPBackend, backend)):
                return sdpa(data, data.query[i], data.key[i], data.value[i])

        return call

    return build


def slice_then_sdpa(data: Data, i: int) -> Call:
    """What the paper compares its operator with: copy the selected tokens out of the cache, then attend to the copy."""
    shape, batch = data.shape, data.batch
    index = data.scattered[i].long()
    row = torch.arange(batch, device=index.device).unsqueeze(1)
    if data.layout == "tokens":
        flat = (index + row * shape.slots).flatten()

        def pick(storage: Tensor) -> Tensor:
            rows = storage.transpose(1, 2).flatten(0, 1).index_select(0, flat)
            return rows.view(batch, -1, shape.groups, shape.size).transpose(1, 2)
    else:
        group = torch.arange(batch * shape.groups, device=index.device).view(batch, shape.groups, 1)
        flat = (index.unsqueeze(1) + group * shape.slots).flatten()

        def pick(storage: Tensor) -> Tensor:
            return storage.flatten(0, 2).index_select(0, flat).view(batch, shape.groups, -1, shape.size)

    return lambda: sdpa(data, data.query[i], pick(data.key[i]), pick(data.value[i]))


def flat_pages(data: Data, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Copy i as one pool of tokens: keys and values [B * L, G, D], int32 row starts [B + 1] and token numbers."""
    if data.layout != "tokens":
        raise SkippedError("needs --layout tokens")
    shape, batch = data.shape, data.batch
    key, value = (storage[i].transpose(1, 2).flatten(0, 1) for storage in (data.key, data.value))
    row = torch.arange(batch, device=key.device, dtype=torch.int32).unsqueeze(1)
    starts = torch.arange(0, (batch + 1) * shape.core, shape.core, device=key.device, dtype=torch.int32)
    return key, value, starts, (data.scattered[i] + row * shape.slots).flatten()


def flashinfer_pages(data: Data, i: int) -> Call:
    flashinfer = installed("flashinfer")
    shape, query = data.shape, data.query[i]
    key, value, starts, pages = flat_pages(data, i)
    workspace = torch.zeros(64 << 20, dtype=torch.uint8, device=query.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    heads = (shape.heads, shape.groups, shape.size, 1)
    wrapper.plan(starts, pages, torch.ones_like(starts[1:]), *heads, q_data_type=data.dtype, kv_data_type=data.dtype)
    cache = (key.unsqueeze(1), value.unsqueeze(1))
    return lambda: wrapper.run(query, cache)


def sglang_decode(data: Data, i: int) -> Call:
    decode = installed("sglang.srt.layers.attention.triton_ops.decode_attention")
    shape, query = data.shape, data.query[i]
    key, value, starts, pages = flat_pages(data, i)
    most = 8
    splits = torch.full((data.batch,), most, dtype=torch.int32, device=query.device)
    part = torch.empty(data.batch, shape.heads, most, shape.size, dtype=torch.float32, device=query.device)
    lse = torch.empty(data.batch, shape.heads, most, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)

    def call() -> Tensor:
        buffers = (starts, pages, part, lse, splits, most)
        decode.decode_attention_fwd(query, key, value, out, *buffers, shape.size**-0.5, 1.0, 1.0)
        return out

    return call


def installed(module: str):
    """The module, or SkippedError: "not installed" if its package is absent, the error if it does not load."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise SkippedError("not installed")
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise SkippedError(one_line(error)) from error


def contenders(device: torch.device, impl: Impl, tune: bool) -> list[Contender]:
    found = [
        ours("core attention", impl),
        ours("core attention, contiguous index", impl, index="contiguous"),
        ours("core attention, text scores", impl, scores="text"),
        ours("core attention, all scores", impl, scores="all"),
        ours("core attention over all slots", impl, tokens="full"),
        Contender("full: SDPA", sdpa_over_all(None), tokens="full"),
    ]
    if device.type == "cuda":
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
            found.append(Contender(f"full: SDPA {backend.split('_')[0].lower()}", sdpa_over_all(backend), tokens="full"))
    found += [
        Contender("slice, then SDPA", slice_then_sdpa),
        Contender("FlashInfer, page size 1", flashinfer_pages),
        Contender("SGLang decode", sglang_decode),
    ]
    if tune:
        for fields in ({"vector_heads": 2}, {"vector_heads": 4}, {"vector_tile": 2048}, {"vector_tile": 8192}, {"warps": 2}, {"warps": 8}):
            found.append(tuned("tiling " + " ".join(f"{name}={value}" for name, value in fields.items()), **fields))
        for fields in ({"stages": 3}, {"matrix_tile_bytes": 8192}, {"matrix_tile_bytes": 32768}):
            found.append(tuned("tiling " + " ".join(f"{name}={value}" for name, value in fields.items()), **fields))
        for programs in (4, 16):
            found.append(tuned(f"tiling programs={programs}", programs_per_multiprocessor=programs))
    return found


class Timer:
    """Times a round of calls, each on its own copy of the data: CUDA graph replays on a GPU, a monotonic clock on a CPU."""

    def __init__(self, calls: list[Call], device: torch.device, target_s: float) -> None:
        self.calls, self.cuda = calls, device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        for call in calls:
            call()
        if self.cuda:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for call in calls:
                    call()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for call in calls:
                    call()
        self.rounds = 1
        self.rounds = max(1, math.ceil(target_s / max(self.seconds() * len(calls), 1e-9)))

    def round(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            for call in self.calls:
                call()

    def seconds(self) -> float:
        """Seconds per call, over `rounds` rounds."""
        self.round()  # so that the clock starts in the state in which a round ends
        if self.cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(self.rounds):
                self.round()
            end.record()
            end.synchronize()
            total = start.elapsed_time(end) / 1e3
        else:
            begin = time.perf_counter()
            for _ in range(self.rounds):
                self.round()
            total = time.perf_counter() - begin
        return total / self.rounds / len(self.calls)


def alternate(timers: dict[str, Timer], repeats: int) -> dict[str, list[float]]:
    """Microseconds per call of every timer, `repeats` times, in an order that is reversed every time."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    for _ in range(repeats):
        for name in names:
            times[name].append(timers[name].seconds() * 1e6)
        names.reverse()
    return times


def measure_bandwidth(device: torch.device, repeats: int, target_s: float) -> dict[str, float]:
    """GB/s of copy (2 bytes moved per byte copied), triad (3) and read (1), on random float32 data far larger than the L2 cache."""
    count = (1 << 28) if device.type == "cuda" else (1 << 22)
    source, other = torch.randn(count, device=device), torch.randn(count, device=device)
    target = torch.empty_like(source)
    probes: dict[str, tuple[Call, int]] = {
        "copy": (lambda: target.copy_(source), 2),
        "triad": (lambda: torch.add(source, other, alpha=3.0, out=target), 3),
        "read": (lambda: source.sum(), 1),
    }
    times = alternate({name: Timer([call], device, target_s) for name, (call, _) in probes.items()}, repeats)
    size = count * source.element_size()
    return {name: probes[name][1] * size / statistics.median(times[name]) / 1e3 for name in probes}


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


def one_line(error: Exception) -> str:
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:100]


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
    ratios: list[dict[str, object]] = []
    for shape in shapes:
        for batch in batches:
            # twice the L2 cache, and twice 60 MB at least, passes between two reads of the same byte; a CPU stays warm
            data = Data(shape, batch, device, dtype, options.layout, 2 * max(60 << 20, int(str(facts.get("l2_bytes", 0)))) if gpu else 0)
            part = bench(data, found, device, repeats, target_s)
            show(data, part, bandwidth["copy"])
            rows += part
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
        "ratios": ratios,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
