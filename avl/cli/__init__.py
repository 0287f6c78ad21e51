"""The command line: ``avl COMMAND`` or ``python -m avl COMMAND``. Each command's module imports what it runs on when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import typer
from typer.main import get_command

from avl.cli import (
    bench,
    chat,
    compare,
    doctor,
    evaluation,
    figures,
    gpu_check,
    lengths,
    page,
    paper,
    record,
    space,
    sweep,
    train,
    tune,
    variables,
    what_if,
)
from avl.cli.options import Spread

HELP = {"help_option_names": ["-h", "--help"]}

BY_ENVIRONMENT = {"page": {"auto_envvar_prefix": variables.PREFIX}}
"""Commands whose options may come from the environment: a Space and a container start it without arguments."""

COMMANDS: dict[str, Callable[..., None]] = {
    "doctor": doctor.doctor,
    "compare": compare.compare,
    "chat": chat.chat,
    "sweep": sweep.sweep,
    "record": record.record,
    "page": page.page,
    "space": space.space,
    "bench": bench.bench,
    "what-if": what_if.what_if,
    "gpu-check": gpu_check.gpu_check,
    "eval": evaluation.evaluate,
    "eval-sweep": evaluation.sweep,
    "tune": tune.tune,
    "transfer": tune.transfer,
    "leaderboard": tune.leaderboard,
    "paper": paper.paper,
    "figures": figures.figures,
    "lengths": lengths.lengths,
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
        made.command(name, cls=Spread, context_settings=HELP | BY_ENVIRONMENT.get(name, {}))(COMMANDS[name])
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
    if only is None and arguments[0] == "sweep" and sweep.moved(arguments[1:]):
        print(f"sweep: {sweep.MOVED}", file=sys.stderr)
        return 2
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
