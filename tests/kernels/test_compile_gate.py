"""Every kernel that the engine launches for 7B and 13B models, compiled for seven kinds of GPU: no spill, and enough on its way.

Needs no GPU, and says nothing of time. kernels/README.md shows the table for one version of Triton; other versions must pass as well.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from avl._paths import KERNELS
from avl.kernels.core.triton import tiling_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="compiles by Triton's own tools for Linux"),
]

CAPABILITIES = tuple(map(int, os.environ.get("AVL_CAPABILITIES", "75 80 86 89 90 100 120").split()))
"""CI compiles all for the newest Triton, and one for the oldest."""
SHARED = {75: 64, 80: 164, 90: 228, 100: 228}  # kB of a multiprocessor, else 100
THREADS = {75: 1024, 80: 2048, 90: 2048, 100: 2048}  # else 1536
KINDS = {  # of split kernels: has an index, keeps logits
    "all slots": (False, False),
    "all slots, scores": (False, True),
    "core slots": (True, False),
    "core slots, scores": (True, True),
}


def programs_that_fit(row: dict[str, Any]) -> int:
    """Programs of a kernel on one multiprocessor: 64 K registers, given out by 256 a warp; 1 kB of shared memory each is the system's."""
    capability, warps = row["capability"], row["warps"]
    registers = -(-row["registers"] * 32 // 256) * 256 * warps
    shared = row["shared"] + (1024 if capability >= 80 else 0)
    by_shared = SHARED.get(capability, 100) * 1024 // shared if shared else 32
    return min(65536 // registers, by_shared, THREADS.get(capability, 1536) // (32 * warps))


def on_their_way(row: dict[str, Any]) -> int:
    """Bytes of K and V that the programs of one multiprocessor wait for at most; 0 if they are loaded into registers."""
    tiling = tiling_for(divmod(row["capability"], 10))
    vector = row["kernel"] == "split_vector_kernel"
    tile, stages = (tiling.vector_tile_bytes, tiling.stages) if vector else (tiling.matrix_tile_bytes, tiling.matrix_stages)
    return programs_that_fit(row) * (stages - 1) * 2 * tile


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What compile_gate.py says; of several workers one asks it, and the others wait."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    result, asked = folder / "compile_gate.json", folder / "compile_gate.asked"
    try:
        asked.touch(exist_ok=False)
    except FileExistsError:
        until = time.monotonic() + 900
        while not result.exists():
            assert time.monotonic() < until, "another worker did not compile in time"
            time.sleep(0.5)
    else:
        try:
            found: Any = compile_all(tmp_path_factory)
        except Exception as error:  # the other workers must not wait for it
            found = f"{type(error).__name__}: {error}"
        part = result.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(result)
    rows = json.loads(result.read_text())
    assert isinstance(rows, list), rows
    assert {row["capability"] for row in rows} == set(CAPABILITIES)
    return rows


def compile_all(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Compile in two processes; the default of Triton's FP fusion is off, as later versions have it."""
    script = str(Path(__file__).with_name("compile_gate.py"))
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_DEFAULT_FP_FUSION": "0"}
    processes = []
    for part in (("90", "100", "80", "75"), ("120", "89", "86")):
        part = [name for name in part if int(name) in CAPABILITIES]
        cache = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
        command = [sys.executable, "-W", "ignore", script, *part]
        processes.append(subprocess.Popen(command, env=env | cache, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    rows = []
    for process in processes:
        out, err = process.communicate(timeout=900)
        if process.returncode != 0:
            raise RuntimeError(err[-3000:])
        rows += [json.loads(line) for line in out.splitlines()]
    return rows


def split_kernels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (row for row in rows if row["kernel"].startswith("split_"))


def test_no_kernel_spills_or_exceeds_shared_memory(compiled: list[dict[str, Any]]) -> None:
    for row in compiled:
        assert row["stack"] == row["local"] == 0, row
        assert programs_that_fit(row) >= 1, row
        assert row["fusion"], row


def test_keys_and_values_come_by_asynchronous_copies_of_16_bytes(compiled: list[dict[str, Any]]) -> None:
    """All stages but one before the loop, one in it, and nothing of a tile in smaller pieces; before 8.0 plain loads as wide."""
    kinds = set()
    for row in split_kernels(compiled):
        tiling = tiling_for(divmod(row["capability"], 10))
        vector = row["kernel"] == "split_vector_kernel"
        tile, stages = (tiling.vector_tile_bytes, tiling.stages) if vector else (tiling.matrix_tile_bytes, tiling.matrix_stages)
        wide = 2 * tile // (32 * row["warps"] * 16)  # a thread's pieces of K and V of one tile
        if row["capability"] < 80:
            assert vector, row
            assert row["copies16"] == 0, row
            assert row["loads16"] >= wide, row
        else:
            assert row["copies16"] == stages * wide, row
            assert row["loop_copies"] == 2 + row["indexed"], row
            assert row["shared"] >= (stages - 1) * 2 * tile, row
        kinds.add((row["capability"], vector, row["indexed"], row["scored"]))
    assert len(kinds) == len(KINDS) * (2 * len(CAPABILITIES) - (75 in CAPABILITIES))


def test_programs_that_splits_count_on_fit_and_have_enough_on_their_way(compiled: list[dict[str, Any]]) -> None:
    """64 kB per multiprocessor of an H100 or H200, where bandwidth x latency is 20 to 29 kB, and 48 kB elsewhere."""
    for row in split_kernels(compiled):
        tiling = tiling_for(divmod(row["capability"], 10))
        counted = tiling.vector_programs if row["kernel"] == "split_vector_kernel" else tiling.matrix_programs
        assert programs_that_fit(row) == counted, row
        if row["capability"] >= 80:
            assert on_their_way(row) >= (64_000 if row["capability"] == 90 else 48_000), row


def draw_table(rows: list[dict[str, Any]]) -> str:
    """The table of kernels/README.md: the most that any of the models takes."""
    heads = ["Triton " + triton.__version__, *(f"{capability / 10:.1f}" for capability in CAPABILITIES)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for kernel in ("split_vector_kernel", "split_matrix_kernel"):
        for kind, (indexed, scored) in KINDS.items():
            cells = [f"{kernel.split('_')[1]}, {kind}"]
            for capability in CAPABILITIES:
                wanted = (capability, kernel, indexed, scored)
                found = [row for row in rows if (row["capability"], row["kernel"], row["indexed"], row["scored"]) == wanted]
                if not found:
                    cells.append("–")
                    continue
                registers, shared = (max(row[name] for row in found) for name in ("registers", "shared"))
                way = min(map(on_their_way, found)) // 1024
                cells.append(f"{registers}, {shared / 1024:.0f}, {min(map(programs_that_fit, found))}" + (f", {way}" if way else ""))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_readme_shows_the_table(compiled: list[dict[str, Any]]) -> None:
    table = draw_table(compiled)
    print(table)
    readme = (KERNELS / "README.md").read_text(encoding="utf-8")
    if f"| Triton {triton.__version__} |" not in readme:
        pytest.skip(f"kernels/README.md shows the table of another version than {triton.__version__}")
    assert table in readme, f"kernels/README.md should have:\n{table}"
