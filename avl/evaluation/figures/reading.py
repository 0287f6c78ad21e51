"""Figure 8: the time of one layer's attention that reads 30 % of the cache: all of it, the 30 % sliced out first, the 30 % in place."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avl import charts
from avl.evaluation.figures.made import CannotMakeError, Figure
from avl.evaluation.figures.statements import Statement, quartiles
from avl.kernels import core_attention, numba_trouble, resolve_impl, triton_trouble
from avl.kernels.bench.attention import check, exact_output
from avl.kernels.bench.baselines import Baseline, ours, sdpa, sdpa_over_all
from avl.kernels.bench.cases import GPU_SHAPES, Data, Shape, kv_bytes
from avl.kernels.bench.timing import Call, Timer, alternate
from avl.telemetry import free_bytes

READ = 30
"""Percent of the cache that is read."""
SHAPES = tuple(
    replace(shape, core=round(READ * shape.slots / 100)) for shape in GPU_SHAPES if shape.name in ("llava-1.5-7b", "llava-1.6-7b")
)
PAPERS = SHAPES[-1].name
"""The sizes that the paper's Figure 8 has: LLaVA-1.6-7B."""
BATCHES = {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8, 16, 32)}
ROUNDS = 15
TARGET_S = {"cpu": 0.02, "cuda": 0.01}
"""Seconds for which a call is repeated in each round."""
COLD_BYTES = 128 << 20
"""Bytes that pass between two reads of the same one, at least: in a step, the weights do."""
FASTER = "by torch or the kernel, whichever is faster"
ARMS = {"full": ("full, torch", "full, kernel"), "slice": ("slice, torch", "slice, kernel"), "in place": ("in place",)}
"""What is compared -> the ways in which it is timed; the fastest stands for it, so that nothing is compared with a slow one."""
WORDS = {"full": "full attention", "slice": "slice, then attend", "in place": "in place"}


@dataclass(frozen=True)
class Timed:
    """Times of one shape and batch. ``us``: way -> microseconds of each round, the ways in turns."""

    shape: Shape
    batch: int
    us: dict[str, tuple[float, ...]]

    def fastest(self, arm: str) -> str:
        """Return the way of an arm with the lowest median."""
        return min(ARMS[arm], key=lambda way: statistics.median(self.us[way]))

    def times(self, arm: str) -> tuple[float, ...]:
        """Return the times of an arm's fastest way."""
        return self.us[self.fastest(arm)]

    def ratios(self, top: str, bottom: str) -> list[float]:
        """Return the time of one arm over that of another, by round."""
        return [one / other for one, other in zip(self.times(top), self.times(bottom), strict=True)]


def check_kernel(device: torch.device, dtype: torch.dtype) -> None:
    """Raise CannotMakeError where no kernel reads the cache in place."""
    if resolve_impl(device, dtype=dtype, head_size=SHAPES[0].size) == "reference":
        found = triton_trouble(device, dtype, SHAPES[0].size) if device.type == "cuda" else numba_trouble(dtype)
        raise CannotMakeError(
            f"no kernel reads the cache in place on this {device.type} in {_name(dtype)} ({found or 'unsupported dtype'})"
        )


def sliced(attend: Callable[[Tensor, Tensor, Tensor], Tensor], space: Tensor) -> Callable[[Data, int], Call]:
    """Return a builder of calls that copy the core out of a token-major cache into ``space [2, B * n, G, D]``, and attend to the copy.

    The space is kept between calls: fresh memory for each would cost page faults that no slicing needs.
    """

    def build(data: Data, copy: int) -> Call:
        shape, batch = data.shape, data.batch
        slots = data.index["scattered"][copy]
        assert slots is not None
        flat = (slots.long() + torch.arange(batch, device=slots.device).unsqueeze(1) * shape.slots).flatten()

        def pick(storage: Tensor, to: Tensor) -> Tensor:
            torch.index_select(storage.transpose(1, 2).flatten(0, 1), 0, flat, out=to)
            return to.view(batch, shape.core, shape.kv_heads, shape.size).transpose(1, 2)

        return lambda: attend(data.query[copy], pick(data.key[copy], space[0]), pick(data.value[copy], space[1]))

    return build


def _by_kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return core_attention(query, key, value, None, validate=False)[0]


@torch.inference_mode()
def measure(
    device: torch.device,
    dtype: torch.dtype,
    batches: Sequence[int] = (),
    rounds: int = ROUNDS,
    shapes: Sequence[Shape] = SHAPES,
    cold_bytes: int = COLD_BYTES,
    say: Callable[[str], None] = print,
) -> list[Timed]:
    """Time the arms, each checked against the specification first.

    Args:
        device: where.
        dtype: of queries, keys and values.
        batches: rows at once; a batch whose caches would take more than half of the free memory is left out, and said.
        rounds: times of each arm; the arms run in turns, in an order that is reversed every round.
        shapes: sizes of a layer and its cache.
        cold_bytes: bytes that pass between two reads of the same one.
        say: takes a line for each shape and batch.

    Raises:
        SkippedError: an arm's result is wrong.
    """
    found = []
    for shape in shapes:
        for batch in batches or BATCHES[device.type]:
            need = max(2 * kv_bytes(shape, batch, shape.slots, dtype), cold_bytes * shape.slots // shape.core)
            if need > free_bytes(device) / 2:
                say(f"{shape.name}, batch {batch} is left out: it needs {need / 1e9:.1f} GB")
                continue
            data = Data(shape, batch, device, dtype, "tokens", cold_bytes)
            exact = {reads: exact_output(data, reads) for reads in ("all", "scattered")}
            space = data.key[0].new_empty(2, batch * shape.core, shape.kv_heads, shape.size)
            ways = (
                Baseline("full, torch", sdpa_over_all(None), reads="all"),
                ours("full, kernel", "auto", reads="all"),
                Baseline("slice, torch", sliced(partial(sdpa, data), space)),
                Baseline("slice, kernel", sliced(_by_kernel, space)),
                ours("in place", "auto"),
            )
            timers = {}
            for way in ways:
                calls = [way.build(data, copy) for copy in range(data.copies)]
                check(calls[0](), exact[way.reads], dtype)
                timers[way.name] = Timer(calls, device, TARGET_S[device.type])
            done = Timed(shape, batch, {name: tuple(us) for name, us in alternate(timers, rounds).items()})
            middle = ", ".join(f"{words} {statistics.median(done.times(arm)):.0f} µs" for arm, words in WORDS.items())
            say(f"{shape.name}, batch {batch}: {middle}")
            found.append(done)
            del data, space, ways, timers
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def figure_8(timed: Sequence[Timed], device: torch.device, dtype: torch.dtype) -> Figure:
    """Return Figure 8 of measured times."""
    if not timed:
        raise CannotMakeError("Figure 8 needs the memory of one batch at least: pass smaller --batches")
    shapes = list({one.shape.name: one.shape for one in timed}.values())
    cells = [
        {
            "shape": one.shape.name,
            "batch": one.batch,
            "fastest": {arm: one.fastest(arm) for arm in ARMS},
            "us": {arm: quartiles(one.times(arm)) for arm in ARMS},
            "ratio_to_full": {name: quartiles(one.ratios(name, "full")) for name in ("slice", "in place")},
            "rounds_us": {name: [round(value, 2) for value in us] for name, us in one.us.items()},
        }
        for one in timed
    ]
    data = {
        "device": device.type,
        "dtype": _name(dtype),
        "implementation": resolve_impl(device, dtype=dtype, head_size=shapes[0].size),
        "read_percent": READ,
        "shapes": [{**shape.to_json(), "core": shape.core} for shape in shapes],
        "cells": cells,
    }
    measured = [one for one in timed if one.shape.name == PAPERS] or list(timed)
    name = measured[0].shape.name
    batches = ", ".join(str(one.batch) for one in measured)
    sizes = f"at the sizes of {name}, {measured[0].shape.slots} tokens, batches {batches}"

    def rounds(choose: Callable[[Sequence[float]], float], top: str, bottom: str) -> tuple[float, ...]:
        return tuple(map(choose, zip(*(one.ratios(top, bottom) for one in measured), strict=True)))

    def said(claim: str, quantity: str, sign: Any, why: str, values: tuple[float, ...]) -> Statement:
        return Statement("8", claim, f"{quantity}, {sizes}", sign, 1, why, "×", "rounds", values)

    statements = (
        said(
            "Slicing the core out of the cache first takes back what reading less saves.",
            f"time of slicing {READ} % out and attending to them / of full attention, each {FASTER}, of the batch where it is least",
            ">=",
            "it saves no time",
            rounds(min, "slice", "full"),
        ),
        said(
            "Reading the core in place is faster than attending to the whole cache.",
            f"time of reading {READ} % in place / of full attention, {FASTER}, of the batch where it is most",
            "<",
            "it saves time",
            rounds(max, "in place", "full"),
        ),
        said(
            "Reading the core in place is faster than slicing it out first.",
            f"time of reading {READ} % in place / of slicing them out and attending, {FASTER}, of the batch where it is most",
            "<",
            "it saves time",
            rounds(max, "in place", "slice"),
        ),
    )
    return Figure(
        "8",
        f"One layer's attention that reads {READ} % of the cache, {device.type}, {_name(dtype)}",
        "Bars by batch for full attention, slicing the core out first, and reading it in place, one panel for each size: median time, "
        f"quartiles as whiskers, and the time relative to full attention above. Full attention and slicing {FASTER}.",
        data,
        statements,
        lambda path, title, description: _draw(data, path, title, description),
    )


def _draw(data: dict[str, Any], path: Path, title: str, description: str) -> Path:
    shapes = data["shapes"]
    with charts.figure(2.4 + 4.9 * len(shapes), 4.9, len(shapes)) as (figure, panels):
        for panel, shape in zip(panels, shapes, strict=True):
            cells = [cell for cell in data["cells"] if cell["shape"] == shape["name"]]
            scale = 1e3 if max(cell["us"]["full"]["median"] for cell in cells) >= 3000 else 1
            top = max(us["q3"] for cell in cells for us in cell["us"].values()) / scale
            for place, (name, words) in enumerate(WORDS.items()):
                at = [number + (place - 1) * 0.27 for number in range(len(cells))]
                middle = [cell["us"][name]["median"] / scale for cell in cells]
                ends = [[abs(cell["us"][name][end] - cell["us"][name]["median"]) / scale for cell in cells] for end in ("q1", "q3")]
                panel.bar(
                    at,
                    middle,
                    0.25,
                    color=charts.PALETTE[place],
                    label=words,
                    yerr=ends,
                    error_kw={"elinewidth": 1.3, "ecolor": charts.INK},
                )
                if name != "full":
                    for x, cell, end in zip(at, cells, (cell["us"][name]["q3"] / scale for cell in cells), strict=True):
                        ratio = cell["ratio_to_full"][name]["median"]
                        panel.text(x, end + 0.015 * top, f"×{ratio:.2f}", ha="center", fontsize=7.5, color=charts.INK)
            panel.set(xlabel="rows at once (batch)", ylabel=f"{'milliseconds' if scale > 1 else 'microseconds'}", ylim=(0, 1.08 * top))
            panel.set_title(
                f"{shape['name']}: {shape['heads']} heads × {shape['size']}, {shape['core']} of {shape['slots']} tokens", fontsize=10
            )
            panel.set_xticks(range(len(cells)), [str(cell["batch"]) for cell in cells])
        figure.suptitle(title, x=0.012, ha="left", fontsize=12)
        charts.legend(figure, panels[0])
        return charts.save_svg(figure, path, title, description)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
