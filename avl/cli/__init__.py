"""The command line: ``avl COMMAND`` or ``python -m avl COMMAND``. Each command's module imports what it runs on when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer
from typer.main import get_command

from avl.cli import bench, compare, doctor, evaluation, figures, page, record, train
from avl.cli.options import Spread

HELP = {"help_option_names": ["-h", "--help"]}

COMMANDS: dict[str, Callable[..., None]] = {
    "doctor": doctor.doctor,
    "compare": compare.compare,
    "record": record.record,
    "page": page.page,
    "bench": bench.bench,
    "eval": evaluation.evaluate,
    "sweep": evaluation.sweep,
    "figures": figures.figures,
    "train-tiny": train.train_tiny,
}


def _application(commands: Sequence[str]) -> typer.Typer:
    made = typer.Typer(
        help="Adaptive attention (A-VL) for vision-language models.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=len(commands) > 1,
        context_settings=HELP,
    )
    for name in commands:
        made.command(name, cls=Spread, context_settings=HELP)(COMMANDS[name])
    return made


def main(argv: Sequence[str] | None = None, *, only: str | None = None, program: str = "avl") -> int:
    """Run one command.

    Args:
        argv: arguments, None for the process's own.
        only: a command to run without its name before its arguments.
        program: name to show in usage and errors.

    Returns:
        The exit status: 0, 1 after bad input or a run that failed, 2 after a wrong option.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if only is None and not arguments:
        arguments = ["--help"]
    command = get_command(_application([only] if only else list(COMMANDS)))
    try:
        command.main(args=arguments, prog_name=program)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except (ValueError, TypeError, OSError) as error:
        # bad input is a sentence for a person; anything else is a defect and keeps its traceback
        if type(error) not in (ValueError, TypeError, OSError):
            raise
        print(f"{program if only else arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0
