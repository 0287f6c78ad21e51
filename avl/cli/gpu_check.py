"""``avl gpu-check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def gpu_check(
    out: Annotated[Path, typer.Option(metavar="DIR", help="where each part's result is written as soon as it is known")],
    minutes: Annotated[float, typer.Option(help="time of the whole check", min=0)] = 9,
    parts: Annotated[list[str] | None, typer.Option(metavar="PART...", help="only these; default: all")] = None,
) -> None:
    """Check a machine with a GPU in one go: installation, kernels, tests, times, each against its target.

    Each part runs in a process of its own with a share of the time; one that hangs, crashes or runs out of memory is recorded as such, and
    the next one runs. Ctrl-C leaves what is done. Without a GPU everything runs in miniature. The exit status is 1 if a part did not end
    by itself; a missed target is no failure.
    """
    from avl.bench.gpu_check import ENDED, run_parts, terminated_like_ctrl_c
    from avl.bench.gpu_parts import PARTS

    unknown = [name for name in parts or [] if name not in PARTS]
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}: use {', '.join(PARTS)}")
    chosen = [part for name, part in PARTS.items() if parts is None or name in parts]
    with terminated_like_ctrl_c():
        summary = run_parts(chosen, out, 60 * minutes, say=lambda line: print(line, flush=True))
    print(f"\n{(out / 'summary.md').read_text(encoding='utf-8')}")
    if not all(part["state"] in ENDED for part in summary["parts"]):
        raise typer.Exit(1)
