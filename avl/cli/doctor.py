"""``avl doctor``."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Say what is installed here: versions, GPU and NVML, Triton, model files, disk, and what will run where.

    The exit status is 1 if anything needed is missing.
    """
    from avl.cli.diagnosis import findings

    rows = findings()
    for state, what, detail in rows:
        print(f"{state:<8}{what:<28}{detail}")
    missing = [what for state, what, _ in rows if state == "missing"]
    print()
    print(f"missing: {', '.join(missing)}" if missing else "ready: avl page starts the page on http://127.0.0.1:7860")
    if missing:
        raise typer.Exit(1)
