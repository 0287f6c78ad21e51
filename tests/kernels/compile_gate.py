"""Compile every kernel that the engine launches for 7B and 13B models, for GPUs that are not here, and print what came of it as JSON.

Run as a script, in a process that does not interpret: `compile_gate.py 80 86 90`. One line per compiled kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton
from launches import DECODERS, Launch, attend_every_way, keep_windows, recorded, run_layer

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def usage(cubin: bytes) -> dict[str, int]:
    """Return registers, and bytes of stack and local memory, per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", said)
    assert found is not None, said
    return dict(zip(("registers", "stack", "local"), map(int, found.groups()), strict=True))


def loop_copies(ttgir: str) -> int:
    """Return how many asynchronous copies the loops start in each round."""
    return sum(body.count("async_copy_global_to_local") for body in re.findall(r"scf\.for .*?\n    } ", ttgir, re.DOTALL))


def facts(launch: Launch) -> dict[str, Any]:
    """Return what a kernel needs of a multiprocessor, and how it reads memory."""
    kernel = launch.compile()
    ptx = kernel.asm["ptx"]
    return {
        "kernel": launch.name,
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        **usage(kernel.asm["cubin"]),
        "copies16": len(re.findall(r"cp\.async\.cg\.shared\.global [^;]*, 0x10,", ptx)),
        "loads16": len(re.findall(r"ld\.global[.\w]*\.v4\.b32|ld\.global[.\w]*\.v2\.b64", ptx)),
        "loop_copies": loop_copies(kernel.asm["ttgir"]),
        "fusion": kernel.metadata.enable_fp_fusion,
    }


def main(capabilities: list[int]) -> None:
    for capability in capabilities:
        dtype = torch.float16 if capability < 80 else torch.bfloat16
        done: set[tuple[Any, ...]] = set()
        for name, decoder in DECODERS.items():
            for what in ("attention", "layer", "window"):
                with recorded(capability) as launches:
                    if what == "attention":
                        attend_every_way(decoder, dtype)
                    elif what == "layer":
                        run_layer(decoder, dtype)
                    else:
                        keep_windows()
                for launch in launches:
                    if launch.key in done:
                        continue
                    done.add(launch.key)
                    indexed = launch.numbers.get("p_index", 0) is not None
                    scored = launch.numbers.get("p_logits", 0) is not None
                    print(
                        json.dumps({"capability": capability, "model": name, "indexed": indexed, "scored": scored} | facts(launch)),
                        flush=True,
                    )


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
