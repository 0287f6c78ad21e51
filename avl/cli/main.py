"""``python -m avl``: one line per command; each command's own module parses its options."""

from __future__ import annotations

import importlib
import sys

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("avl.cli.doctor", "what is installed here, and what will run where"),
    "compare": ("avl.cli.compare", "answer one question under two policies in the terminal; --out keeps a report"),
    "record": ("avl.cli.record", "keep a run as a trace, with its attention, for the page to open with"),
    "bench": ("avl.bench.benchmark", "time, memory and roofline of full attention, eviction only and A-VL, in one harness"),
    "eval": ("avl.evaluation.evaluate", "score the policies on held-out samples of the bundled model"),
    "sweep": ("avl.evaluation.sweep", "score A-VL over S and draw the curve"),
    "train-tiny": ("avl.tiny.recipe.train", "train the bundled model again"),
}
"""Command -> (module with ``main(argv) -> int | None``, one line of help)."""


def usage() -> str:
    """The help text."""
    lines = [f"  {name:<11} {line}" for name, (_, line) in COMMANDS.items()]
    return "usage: python -m avl COMMAND [options]   (COMMAND --help tells the options)\n\n" + "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the process's exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"there is no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    try:
        return module.main(rest) or 0
    except (ValueError, TypeError, OSError) as error:
        # bad input is a sentence for a person; anything else is a defect and keeps its traceback
        if type(error) not in (ValueError, TypeError, OSError):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 1
