"""Rankings: who is best, who is weakest, and who wins a tie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avl.cache.ranking import among_best, best, ranking
from avl.kernels.window.eviction import weakest

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)
# few values, so that ties are common; those that integers of the same bits would order wrongly are among them
VALUES = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 0.25, -0.25, 1.0, -3.5, 3e38, -3e38, float("inf"), float("-inf")])


@QUICK
@given(values=st.lists(VALUES, min_size=1, max_size=40), count=st.integers(0, 40), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_best_are_the_largest_and_ties_go_to_the_lower_index(values, count, dtype):
    count = min(count, len(values))
    scores = torch.tensor([values, values[::-1]], dtype=dtype)[:, None]
    found = best(scores, count)
    assert found.dtype == torch.int64
    assert found.shape == (2, 1, count)
    for row, chosen in zip(scores[:, 0].tolist(), found[:, 0].tolist(), strict=True):
        assert chosen == sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:count])


@pytest.mark.parametrize("shape", [(577,), (8, 1, 261), (2, 3, 64)])
def test_best_is_the_head_of_the_ranking(shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))).round(decimals=2)
    for count in (1, shape[-1] // 3, shape[-1] - 1, shape[-1]):
        assert torch.equal(best(scores, count), ranking(scores)[..., :count].sort(dim=-1).values)
    transposed = scores.flip(-1)  # any strides
    assert torch.equal(best(transposed, 5), ranking(transposed)[..., :5].sort(dim=-1).values)


@QUICK
@given(
    values=st.lists(VALUES, min_size=1, max_size=40),
    random=st.randoms(use_true_random=False),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_ties_may_be_decided_by_something_else_than_the_index(values, random, dtype):
    ties = list(range(3, 3 + len(values)))
    random.shuffle(ties)
    count = random.randint(1, len(values))
    found = among_best(torch.tensor([values], dtype=dtype), count, torch.tensor([ties]))
    chosen = sorted(range(len(values)), key=lambda i: (-values[i], ties[i]))[:count]
    assert found.tolist() == [[i in chosen for i in range(len(values))]]


@QUICK
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_weakest_is_the_smallest_candidate_and_ties_go_to_the_lower_position(entries, random):
    order = list(range(len(entries)))
    random.shuffle(order)
    scores, candidates = ([entry[part] for entry in entries] for part in (0, 1))
    if not any(candidates):
        return
    found = int(weakest(torch.tensor(scores), torch.tensor(order), torch.tensor(candidates)))
    assert found == min((i for i, may in enumerate(candidates) if may), key=lambda i: (scores[i], order[i]))
