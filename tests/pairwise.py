"""Parameters of a test by a covering set: every pair of values of any two parameters by default, the whole product in the slow tier."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def covering_set(choices: list[list[Any]]) -> list[tuple[Any, ...]]:
    """Return rows, one value of each list of ``choices`` a row, such that any two values of two lists meet in a row.

    Greedy and deterministic: the row that brings most new pairs, the first of them in the order of the product, until no pair is missing.
    """

    def pairs(row: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}

    product = list(itertools.product(*(range(len(values)) for values in choices)))
    missing, rows = set().union(*map(pairs, product)), []
    while missing:
        best = max(product, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append(best)
    return [tuple(values[place] for values, place in zip(choices, row, strict=True)) for row in sorted(rows)]


def pairwise(ids: Callable[[Any], str] = str, **choices: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test with three parameters or more; ``ids`` gives a value's part of the case's name.

    The cases outside the covering set are marked ``slow``.
    """
    lists = [list(values) for values in choices.values()]
    chosen = [tuple(map(id, row)) for row in covering_set(lists)]
    cases = [
        pytest.param(*row, id="-".join(map(ids, row)), marks=() if tuple(map(id, row)) in chosen else pytest.mark.slow)
        for row in itertools.product(*lists)
    ]
    return pytest.mark.parametrize(tuple(choices), cases)
