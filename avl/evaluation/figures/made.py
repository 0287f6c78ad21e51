"""A figure as it is made: title, data, statements, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl.evaluation.figures.statements import Statement


class CannotMakeError(ValueError):
    """Why a figure cannot be made of what there is; a sentence without its full stop."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        number: the paper's.
        title: one line.
        description: what is drawn, for who cannot see it.
        data: everything that is drawn, as plain values.
        statements: what the paper says of it, and whether this run agrees.
        draw: writes the SVG; called with the path, the title and the description.
    """

    number: str
    title: str
    description: str
    data: dict[str, Any]
    statements: tuple[Statement, ...]
    draw: Callable[[Path, str, str], Path]
