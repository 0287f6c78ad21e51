"""The settings that a tuner tries: values for each parameter of A-VL, without those that cannot be and those that are alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avl.policies import AVL
from avl.policies.base import shown
from avl.policies.plan import parse_over

FIRST = ("S", "C", "K", "spread")
"""Parameters of the first stage. ``spread`` is not the paper's."""
SECOND = ("P", "T")
"""Parameters of the second stage, tried at the best of the first."""

DEFAULT = "S=20:60:10 C=10,20,30 K=1,3,5 P=80,90,none T=50,60,none"


@dataclass(frozen=True)
class Grid:
    """Values by parameter.

    Attributes:
        axes: parameter -> its values in the order given; None is off.
    """

    axes: Mapping[str, tuple[float | None, ...]]

    @property
    def text(self) -> str:
        """The grid as it is written, ranges spelled out."""
        return " ".join(f"{name}={','.join('none' if v is None else f'{v:g}' for v in values)}" for name, values in self.axes.items())

    def first(self) -> tuple[list[AVL], int, int]:
        """Return the settings of the first stage, how many combinations cannot be (C or spread above S), and how many are like another.

        Alike are C = S and C off (both read all that is stored), every C at K=1 (each step is an update), and every K where C is off.
        """
        found: dict[AVL, None] = {}
        combinations = [dict(values) for values in self._product(FIRST)]
        fitting = [values for values in combinations if fits(values)]
        for values in fitting:
            found[alike(AVL(**values), self.axes.get("K", (3,)))] = None
        return list(found), len(combinations) - len(fitting), len(fitting) - len(found)

    def second(self, best: AVL) -> list[AVL]:
        """Return the settings of the second stage: P and T of the grid at the best setting of the first."""
        return [best.changed(**dict(values)) for values in self._product(SECOND)]

    def _product(self, names: Sequence[str]) -> Iterable[Any]:
        varied = [name for name in names if name in self.axes]
        return (zip(varied, values, strict=True) for values in itertools.product(*(self.axes[name] for name in varied)))


def fits(values: Mapping[str, Any]) -> bool:
    """Return whether C and spread are at most S."""
    return all(values.get(name) is None or values[name] <= values["S"] for name in ("C", "spread"))


def alike(policy: AVL, intervals: Sequence[Any]) -> AVL:
    """Return the setting that stands for all those which store and read the same tokens at every step.

    Args:
        policy: any setting.
        intervals: values of K in the grid; where no core is chosen the first one is kept.
    """
    if policy.C is None or policy.C == policy.S or (policy.K == 1 and policy.update == "every"):
        return policy.changed(C=None, K=intervals[0])
    return policy


def parse_grid(texts: Iterable[str]) -> Grid:
    """Parse ``S=20:60:10 C=10,20,none``: ranges with both ends, or values by commas, where ``none`` is off.

    Args:
        texts: one or several, each with one or several parameters.

    Raises:
        ValueError: a parameter is unknown, out of range or given twice, S is missing, or no combination can be; one sentence.
    """
    words = [word for text in texts for word in text.split()]
    over = parse_over(_off(word) for word in words)
    params = {one.name: one for one in AVL.params()}
    for name, values in over.items():
        if name not in (*FIRST, *SECOND):
            raise ValueError(f"the grid has {shown(name)}, which cannot be tuned: give values of {', '.join((*FIRST, *SECOND))}")
        for value in values:
            params[name].check(value)
        if len(set(values)) != len(values):
            raise ValueError(f"the grid gives a value of {name} twice: {', '.join('none' if v is None else f'{v:g}' for v in values)}")
    if "S" not in over:
        raise ValueError("the grid has no S, the share of image tokens that is stored: give its values, such as S=20:60:10")
    grid = Grid({name: tuple(values) for name, values in over.items()})
    if not grid.first()[0]:
        raise ValueError(f"no setting of this grid can be, because C or spread is above S in all of them: {grid.text}")
    return grid


def _off(word: str) -> str:
    name, equals, rest = word.partition("=")
    return name + equals + ",".join("off" if part == "none" else part for part in rest.split(","))
