"""How calls are cut on an H200, under a model of its time: no splits may leave the chip idle. Nothing here is measured.

The model. A call reads the bytes of K and V at 4.3 TB/s at most, in programs of which `slots` fit at once. A program

- starts: its query and length (0.4 us, they lie in the L2 cache), the first slots of its index (one memory latency, 0.8 us, where there is
  an index), the first tile (another latency);
- streams its part. The arithmetic of a tile takes 0.6 us (some 420 instructions a thread in both kernels, as compiled for Hopper, one every
  2.5 cycles). With `stages` - 1 buffers a tile's copy starts when the one that was in its buffer is computed, and latency and arithmetic
  later it is computed itself: so a tile takes (latency + arithmetic) / (stages - 1) or its arithmetic, whatever is more;
- ends: its lanes meet, the result is stored (0.5 us).

A multiprocessor takes 45 KB/us at most, 1.4 times its share of the memory (the L2 cache gives all of them 6 TB/s).

Full waves of programs do not stay in step, so starts and ends of some hide behind the streams of others, and such waves cost their
bytes. The first start, the last end and the last wave are exposed. The last wave costs the most of: its bytes, the tiles of its longest
part one after another, and the parts that the busiest multiprocessor has. Partial outputs are written and read once; the combine kernel,
where there is one, costs a launch (1.3 us), three latencies and its end.

`in_step` is the pessimist's variant: all programs of a wave start and end together, so that every wave pays for its start and end.
"""

import math
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from avl._paths import KERNELS
from avl.kernels.core.triton import count_splits, cut_work, tiling_for

BANDWIDTH = 4.3e6  # bytes per us
MULTIPROCESSORS = 132
LATENCY, BEGIN, END, LAUNCH, ARITHMETIC = 0.8, 0.4, 0.5, 1.3, 0.6  # us
PORT = 45e3  # bytes per us that one multiprocessor takes
TILING = tiling_for((9, 0))
BATCHES = (1, 8, 16, 32, 64)


class Layer(NamedTuple):
    heads: int
    kv_heads: int
    full: int  # tokens
    core: int


LAYERS = {
    "LLaVA-1.5-7B": Layer(32, 32, 705, 287),
    "LLaVA-1.5-13B": Layer(40, 40, 705, 301),
    "LLaVA-1.6-7B": Layer(32, 32, 3009, 993),
    "LLaVA-1.6-13B": Layer(40, 40, 3009, 993),
    "LLaVA-1.6-mistral-7B": Layer(32, 8, 3009, 993),
}
CELLS = [(name, batch, core) for name in LAYERS for batch in BATCHES for core in (False, True)]


class Call(NamedTuple):
    """One decode call in bfloat16 with a head size of 128, which reads `tokens` per row."""

    layer: Layer
    batch: int
    tokens: int
    indexed: bool

    @property
    def bytes(self) -> int:
        return self.batch * self.layer.kv_heads * self.tokens * 512

    @property
    def cut(self):
        return cut_work(self.batch, *self.layer[:2], 128, self.tokens, torch.bfloat16, self.indexed, TILING, MULTIPROCESSORS)

    @property
    def edge(self) -> float:
        """Microseconds that no cut avoids: the first start, the last end, and the combine kernel that makes the scores."""
        merge = LAUNCH + 3 * LATENCY + END if self.indexed else 0.0
        return BEGIN + LATENCY * (1 + self.indexed) + END + merge

    def us(self, splits: int, in_step: bool = False) -> float:
        """Microseconds that the call takes in `splits` parts."""
        cut = self.cut
        buffers = (TILING.stages if cut.vector else TILING.matrix_stages) - 1
        programs, slots = cut.programs * self.batch * splits, cut.fit * MULTIPROCESSORS
        waves = math.ceil(programs / slots)
        last = programs - (waves - 1) * slots
        tiles = math.ceil(math.ceil(self.tokens / splits) / cut.block_n)
        part = self.bytes / programs
        alone = (tiles - 1) * max((LATENCY + ARITHMETIC) / buffers, ARITHMETIC) + ARITHMETIC
        crowded = math.ceil(last / MULTIPROCESSORS) * part / PORT
        streams = (programs - last) * part / BANDWIDTH + max(last * part / BANDWIDTH, alone, crowded)
        merge = 0.0
        if splits > 1:
            merge = 2 * self.batch * self.layer.heads * splits * 516 / BANDWIDTH + (0.0 if self.indexed else LAUNCH + 3 * LATENCY + END)
        again = (waves - 1) * (BEGIN + LATENCY * (1 + self.indexed) + END) if in_step else 0.0
        return self.edge + streams + merge + again


def call(name: str, batch: int, core: bool) -> Call:
    layer = LAYERS[name]
    return Call(layer, batch, layer.core if core else layer.full, core)


def all_splits(call: Call) -> range:
    return range(1, TILING.max_splits + 1)


@pytest.mark.parametrize(("name", "batch", "core"), CELLS)
def test_splits_come_near_the_best_there_are(name: str, batch: int, core: bool) -> None:
    """97 % of what an exhaustive search finds under the same model, also if all programs of a wave stay in step."""
    asked = call(name, batch, core)
    chosen = asked.cut.splits
    assert min(map(asked.us, all_splits(asked))) >= 0.97 * asked.us(chosen)
    assert min(asked.us(splits, in_step=True) for splits in all_splits(asked)) >= 0.97 * asked.us(chosen, in_step=True)


def test_calls_bound_by_bandwidth_reach_it() -> None:
    """94 % of the memory's bandwidth over the whole call, where what no cut avoids (7 us with a combine kernel) is under 6 % of it."""
    calls = [call(*cell) for cell in CELLS]
    bound = [asked for asked in calls if max(asked.edge for asked in calls) <= 0.06 * asked.bytes / BANDWIDTH]
    assert len(bound) >= 10
    for asked in bound:
        assert asked.bytes / BANDWIDTH >= 0.94 * asked.us(asked.cut.splits), asked


@pytest.mark.parametrize("name", LAYERS)
def test_streaming_of_a_core_step_at_batch_1_is_shorter_by_its_bytes(name: str) -> None:
    """Within 80 %. Not the whole call: it waits longer than it streams, in both arms (kernels/README.md, "Tiling")."""
    full, core = call(name, 1, core=False), call(name, 1, core=True)
    fixed = core.edge - LATENCY  # full attention is cut too, so merged, but has no index to wait for
    streams = [asked.us(asked.cut.splits) - edge for asked, edge in ((full, fixed), (core, core.edge))]
    assert streams[0] / streams[1] >= 0.8 * full.bytes / core.bytes


@pytest.mark.parametrize(
    ("width", "programs", "block_n", "slots"),
    [
        (1, 32, 32, 528),
        (287, 32, 32, 528),
        (993, 32, 32, 528),
        (993, 2048, 32, 528),
        (3009, 8, 64, 396),
        (10**5, 1, 16, 660),
        (0, 4, 32, 4),
    ],
)
def test_count_splits_leaves_no_part_without_a_tile_and_no_slot_without_a_part(width: int, programs: int, block_n: int, slots: int) -> None:
    splits = count_splits(width, programs, block_n, slots)
    tiles = max(1, -(-width // block_n))
    assert 1 <= splits <= min(tiles, 128)
    if programs * min(tiles, 128) <= slots:
        assert splits == min(tiles, 128)
    elif programs < slots / 3:
        assert programs * splits > slots / 3 or splits == 128


def draw_table() -> str:
    """The table of kernels/README.md."""
    shown = (1, 16, 64)
    lines = ["| us by the model, full, core | " + " | ".join(f"batch {batch}" for batch in shown) + " |", "|---" * 4 + "|"]
    for name in LAYERS:
        cells = []
        for batch in shown:
            calls = [call(name, batch, core) for core in (False, True)]
            cells.append(", ".join(f"{asked.us(asked.cut.splits):.1f} ({asked.cut.splits})" for asked in calls))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_readme_shows_the_table() -> None:
    assert draw_table() in (KERNELS / "README.md").read_text(encoding="utf-8"), f"kernels/README.md should have:\n{draw_table()}"
