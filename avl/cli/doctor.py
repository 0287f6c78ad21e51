"""``avl doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False) -> None:
    """Say what a bug report needs: versions, driver, GPUs, what runs where and why, memory, model files, folders, settings without secrets.

    The exit status is 1 if anything needed is missing.
    """
    from avl.cli.diagnosis import findings

    rows = findings()
    missing = [what for state, what, _ in rows if state == "missing"]
    if as_json:
        told = [{"state": state, "what": what, "detail": detail} for state, what, detail in rows]
        print(json.dumps({"ready": not missing, "missing": missing, "findings": told}, indent=1, ensure_ascii=False))
    else:
        for state, what, detail in rows:
            print(f"{state:<8}{what:<28}{detail}")
        print()
        print(f"missing: {', '.join(missing)}" if missing else "ready: avl page starts the page on http://127.0.0.1:7860")
    if missing:
        raise typer.Exit(1)
