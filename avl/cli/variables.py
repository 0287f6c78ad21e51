"""Settings of the page by environment variables: ``AVL_`` and the name of the flag. Flags beat them, they beat defaults."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from avl.models.checkpoints import CHECKPOINTS

PREFIX = "AVL"


def variable(param: Any) -> str:
    """Return the variable of an option."""
    return f"{PREFIX}_{param.name.upper()}"


def given(ctx: Any) -> dict[str, str]:
    """Return the variables that a command's options came from, with their values."""
    if ctx.auto_envvar_prefix is None:
        return {}
    options = [param for param in ctx.command.params if getattr(ctx.get_parameter_source(param.name), "name", "") == "ENVIRONMENT"]
    return {variable(param): os.environ[variable(param)] for param in options}


def blamed(ctx: Any, error: Exception) -> Exception:
    """Return an error that names the variables whose values it speaks of, if it speaks of any; else the error itself."""
    names = [name for name, value in given(ctx).items() if value in str(error)]
    if not names:
        return error
    return type(error)(f"{error} ({' and '.join(names)} {'are' if len(names) > 1 else 'is'} set in the environment)")


def unknown(params: Sequence[Any], environment: Mapping[str, str] | None = None) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none."""
    known = [variable(param) for param in params]
    told = []
    for name in sorted(
        name for name in (os.environ if environment is None else environment) if name.startswith(f"{PREFIX}_") and name not in known
    ):
        close = difflib.get_close_matches(name, known, n=1)
        if close:
            told.append(f"{name} is set in the environment, but there is no such setting: {close[0]} may be meant")
    return told


def table(params: Sequence[Any]) -> str:
    """Return the settings of a command as a table in Markdown, as README.md shows them."""
    lines = ["| flag | variable | default | |", "|---|---|---|---|"]
    for param in params:
        if param.name == "help":
            continue
        flags = " ".join(f"`{flag}`" for flag in (*param.opts, *param.secondary_opts))
        about = param.help.replace(", ".join(CHECKPOINTS), "a short name")
        lines.append(f"| {flags} | `{variable(param)}` | {_default(param.default)} | {about} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)
