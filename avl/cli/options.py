"""Options that commands share, written once. A command names a group of them as one parameter, see :func:`grouped`.

Nothing heavy is imported here: ``--help`` has to be quick.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer.core import TyperCommand

from avl.cli import variables
from avl.models.checkpoints import CHECKPOINTS
from avl.policies import AVL, POLICIES, Param, Policy, cli_name, find_policy

if TYPE_CHECKING:
    from avl.engine.request import GenerationRequest

NONE = "none"
"""Stands for no value where a list may be empty."""


@dataclass(frozen=True)
class Source:
    """Which model, and where it runs."""

    model: Annotated[str, typer.Option(help=f"tiny (bundled), {', '.join(CHECKPOINTS)}, a Hub id or a local folder")] = "tiny"
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a Hub model")] = None
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1 or cpu")] = "auto"
    device_map: Annotated[
        str | None, typer.Option(help="auto, balanced, balanced_low_0 or sequential: spread over all GPUs, instead of --device")
    ] = None
    dtype: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32")] = "auto"

    def load(self) -> tuple[Any, Any]:
        """Return (model, processor), as ``avl.load``."""
        from avl.models.loading import load

        return load(self.model, device=self.device, dtype=self.dtype, revision=self.revision, device_map=self.device_map)


@dataclass(frozen=True)
class Asked:
    """One question about one or several pictures."""

    image: Annotated[list[Path], typer.Argument(help="one picture, or several")]
    question: Annotated[str, typer.Argument(help="a question about them")]
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of each answer")] = 96
    mode: Annotated[Literal["race", "isolated"], typer.Option(help="runs take turns, or one after the other")] = "race"
    batch: Annotated[int, typer.Option(help="the same request so many times at once")] = 1
    repeats: Annotated[int, typer.Option(help="run it so many times: times come with a spread")] = 1
    temperature: Annotated[float, typer.Option(help="of the sampling; 0 for greedy")] = 0.0
    top_p: Annotated[float, typer.Option(help="nucleus of the sampling")] = 1.0
    seed: Annotated[int | None, typer.Option(help="of the sampling")] = None

    def request(self, policies: Sequence[Policy], **recorded: Any) -> GenerationRequest:
        """Return the request, checked.

        Args:
            policies: one run each.
            recorded: what is to be found out afterwards: ``scores``, ``agreement``.

        Raises:
            ValueError: as ``GenerationRequest``.
        """
        from avl.engine.request import GenerationRequest
        from avl.models.prompt import Question

        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["question"] = Question(fields["question"])
        return GenerationRequest(images=tuple(fields.pop("image")), policies=tuple(policies), **(fields | recorded))


Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="also write the result to FILE")]

ADAPTIVE = AVL(S=45, C=30, K=3, P=90)
"""A-VL as the command line starts with it."""


def policy_names(policies: Collection[type[Policy]] = tuple(POLICIES.values())) -> str:
    """Return the names of policies for a help text."""
    return ", ".join(cli_name(policy) for policy in policies)


def policy_spec(text: str) -> str:
    """Check the name in ``name`` or ``name:PARAMETER=value,…``; the values are checked where the policy is made."""
    try:
        find_policy(text.partition(":")[0])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def policy_name(text: str) -> str:
    """Return the registered name that ``text`` means, or :data:`NONE`."""
    if text == NONE:
        return NONE
    try:
        return find_policy(text).name
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def chosen(names: Sequence[str]) -> list[str]:
    """Return the names without :data:`NONE`."""
    return [name for name in names if name != NONE]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Spread the groups among a command's parameters into options of their own.

    A parameter annotated with a dataclass of annotated options (:class:`Source`, :class:`Asked`) becomes those options. One annotated with
    a policy becomes an option for each of its parameters, and starts with the values of its default.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    options: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in own:
        made = _options(parameter)
        if made is not None:
            groups[parameter.name] = parameter.annotation, [one.name for one in made]
        options += [parameter] if made is None else made
    keyword = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]

    @functools.wraps(command)
    def spread_out(**values: Any) -> None:
        for name, (build, names) in groups.items():
            values[name] = build(**{one: values.pop(one) for one in names})
        command(**values)

    spread_out.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    spread_out.__annotations__ = {option.name: option.annotation for option in keyword}
    return spread_out


def _options(parameter: inspect.Parameter) -> list[inspect.Parameter] | None:
    """Return the options of a group, None where ``parameter`` is an option itself."""
    kind = parameter.annotation
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return None
    if issubclass(kind, Policy):
        return [_policy_option(one, getattr(parameter.default, one.name)) for one in kind.params()]
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(kind)
    ]


def _policy_option(param: Param, default: Any) -> inspect.Parameter:
    """One parameter of a policy as an option: ``-S`` for S, ``--update`` for update."""
    flag = f"-{param.name}" if len(param.name) == 1 else f"--{param.name}"

    def parse(value: Any) -> Any:
        if value == "off":
            return None
        try:
            return str(value) if param.choices else float(value) if param.unit == "%" else int(value)
        except ValueError:
            raise typer.BadParameter(f"{value!r} is not a number") from None

    help_text = f"{param.help}, {param.range}".replace("None for off", "off")
    option = typer.Option(
        flag,
        parser=parse,
        metavar="|".join(param.choices) or param.unit.upper(),
        help=help_text,
        show_default="off" if default is None else True,
    )
    return inspect.Parameter(param.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[Any, option])


class Spread(TyperCommand):
    """A command whose repeatable options take every value up to the next flag: ``--batch 1 8`` means ``--batch 1 --batch 8``.

    A flag without a value means :data:`NONE` where the option's metavar names that. A bad value of the environment is told with its
    variable's name.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {flag: NONE in (param.metavar or "") for param in self.params if getattr(param, "multiple", False) for flag in param.opts}
        try:
            return super().parse_args(ctx, spread(args, several))
        except typer.BadParameter as error:
            name = "" if error.param is None else variables.variable(error.param)
            if name not in variables.given(ctx):
                raise
            raise ValueError(f"{name}={os.environ[name]!r}: {error.message.rstrip('.')}") from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command. What it refuses is told with the variable that it came from."""
        for sentence in variables.unknown(self.params) if ctx.auto_envvar_prefix else []:
            print(f"{ctx.info_name}: {sentence}", file=sys.stderr)
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError) as error:
            if type(error) not in (ValueError, TypeError, OSError):
                raise
            raise variables.blamed(ctx, error) from None


def spread(args: Sequence[str], several: dict[str, bool]) -> list[str]:
    """Repeat a flag for each of the values that follow it.

    Args:
        args: the command's arguments.
        several: flags of the options that take several values -> whether no value at all means :data:`NONE`.

    Returns:
        The arguments with one value after each of those flags. What follows ``--`` stays as it is.
    """
    out: list[str] = []
    rest = list(args)
    while rest:
        flag = rest.pop(0)
        if flag == "--":
            return [*out, flag, *rest]
        if flag not in several:
            out.append(flag)
            continue
        values: list[str] = []
        while rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
        if values:
            out += [word for value in values for word in (flag, value)]
        else:
            out += [flag, NONE] if several[flag] else [flag]
    return out


def read_file(file: Path) -> bytes:
    """Return what a file holds. Raises OSError in one sentence where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        why = "there is no file" if isinstance(error, FileNotFoundError) else f"{(error.strerror or type(error).__name__).lower()}:"
        raise OSError(f"{why} {file}") from None
