"""Times of core attention and its baselines, each checked against the specification first.

Part of `python -m avl.kernels.bench`. How to read the tables: kernels/README.md.
"""

import statistics

import torch
from torch import Tensor

from avl.kernels.bench.baselines import Baseline, SkippedError
from avl.kernels.bench.cases import Data, moved_bytes
from avl.kernels.bench.timing import Timer, alternate, one_line
from avl.kernels.core import reference


def exact_output(data: Data, reads: str) -> Tensor:
    """Return what attention over these slots of copy 0 must give, [B, H, D] in float32."""
    shape = data.shape
    return reference.attend(
        data.query[0].float(), data.key[0], data.value[0], data.index[reads][0], None, shape.size**-0.5, columns=None, by_group=False
    )[0]


def check(actual: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Raise SkippedError unless `actual`, computed from inputs of `dtype`, is `exact` but for its roundings."""
    error = float((actual.float().view_as(exact) - exact).norm() / exact.norm())
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    if not error <= limit:
        raise SkippedError(f"wrong result: relative error {error:.1e}")


def bench(data: Data, found: list[Baseline], device: torch.device, repeats: int, target_s: float) -> list[dict[str, object]]:
    """Return one row per baseline; a row without a time says why."""
    exact = {reads: exact_output(data, reads) for reads in data.index}
    timers: dict[str, Timer] = {}
    notes: dict[str, str] = {}
    for baseline in found:
        try:
            calls = [baseline.build(data, i) for i in range(data.copies)]
            check(calls[0](), exact[baseline.reads], data.dtype)
            timers[baseline.name] = Timer(calls, device, target_s)
        except SkippedError as reason:
            notes[baseline.name] = str(reason)
        except Exception as error:  # a peer that fails must not end the run
            notes[baseline.name] = one_line(error)
    times = alternate(timers, repeats)
    rows: list[dict[str, object]] = []
    for baseline in found:
        tokens = baseline.tokens(data.shape)
        row: dict[str, object] = {"shape": data.shape.name, "batch": data.batch, "name": baseline.name, "tokens": tokens}
        if baseline.name in notes:
            rows.append(row | {"us": None, "note": notes[baseline.name]})
            continue
        indexed, columns = baseline.reads != "all", baseline.columns(data.shape)
        size = moved_bytes(data.shape, data.batch, tokens, data.dtype, indexed, columns)
        taken = times[baseline.name]
        median = statistics.median(taken)
        rows.append(row | {"us": median, "us_min": min(taken), "us_max": max(taken), "bytes": size, "gb_s": size / median / 1e3})
    return rows


def show(data: Data, rows: list[dict[str, object]], copy_gb_s: float) -> None:
    """Print the rows of one shape and batch, beside the bandwidth of copying in the same run."""
    shape = data.shape
    print(
        f"\n{shape.name}: {shape.heads} heads, {shape.kv_heads} KV heads of {shape.size}; {shape.core} of {shape.slots} tokens; "
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
    ("full / core", "full", "core attention, text scores"),
    ("slice / core", "slice, then SDPA", "core attention, text scores"),
    ("FlashInfer / core", "FlashInfer, page size 1", "core attention, text scores"),
    ("SGLang / core", "SGLang decode", "core attention, text scores"),
    ("scattered / contiguous", "core attention", "core attention, contiguous index"),
    ("text scores / none", "core attention, text scores", "core attention"),
    ("all scores / none", "core attention, all scores", "core attention"),
)


def find_ratios(rows: list[dict[str, object]]) -> dict[str, float]:
    """Return the RATIOS that these rows of one shape and batch allow; "full" is the fastest of all full-attention rows."""
    us = {str(row["name"]): float(row["us"]) for row in rows if row["us"] is not None}  # type: ignore[arg-type]
    full = [value for name, value in us.items() if name.startswith("full: ") or name == "core attention over all slots"]
    if full:
        us["full"] = min(full)
    return {label: us[top] / us[bottom] for label, top, bottom in RATIOS if top in us and bottom in us}


def show_ratios(ratios: list[dict[str, object]]) -> None:
    """Print the ratios of all shapes and batches."""
    print("\nratios of median times; core = core attention with text scores; full = the fastest over all slots (Figure 8: full, slice)")
    labels = [label for label, _, _ in RATIOS]
    print(f"  {'':22}{'batch':>6}" + "".join(f"{label:>24}" for label in labels))
    for row in ratios:
        cells = (f"{row[label]:24.2f}" if label in row else f"{'-':>24}" for label in labels)
        print(f"  {row['shape']:22}{row['batch']:6}" + "".join(cells))
