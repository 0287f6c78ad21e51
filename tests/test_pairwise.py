"""The covering sets that stand for full products keep every pair, are small, and do not change from run to run."""

from __future__ import annotations

import itertools

import pytest
from pairwise import covering_set, pairwise


def pairs(rows):
    return {(i, row[i], j, row[j]) for row in rows for i, j in itertools.combinations(range(len(row)), 2)}


@pytest.mark.parametrize("sizes", [(2, 2, 2), (26, 3, 2), (3, 7, 3), (5, 2, 2, 2), (3, 2, 3, 3), (4, 4, 4, 4, 4), (3, 1, 2)], ids=str)
def test_covering_set_keeps_every_pair_with_few_rows(sizes):
    choices = [[f"{letter}{number}" for number in range(size)] for letter, size in zip("abcde", sizes, strict=False)]
    product, rows = list(itertools.product(*choices)), covering_set(choices)
    assert set(rows) <= set(product)
    assert pairs(rows) == pairs(product)
    largest, second = sorted(sizes)[-2:][::-1]
    assert largest * second <= len(rows) <= 1.7 * largest * second
    assert rows == covering_set(choices)


def test_pairwise_marks_what_the_covering_set_leaves_out_as_slow():
    cases = pairwise(letter="ab", number=(1, 2, 3), flag=(False, True)).args[1]
    kept = [case.values for case in cases if not case.marks]
    assert [case.values for case in cases] == list(itertools.product("ab", (1, 2, 3), (False, True)))
    assert kept == covering_set([["a", "b"], [1, 2, 3], [False, True]])
    assert {mark.name for case in cases for mark in case.marks} == {"slow"}
    assert cases[0].id == "a-1-False"
