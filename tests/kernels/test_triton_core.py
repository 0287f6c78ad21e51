"""What belongs to the Triton kernels of core attention alone: splits, tilings, repeatability, CUDA graphs."""

import dataclasses

import pytest
import torch
from kernel_cases import Case, make
from tolerance import assert_near_oracle
from triton_here import COMPILED, why_no_triton

from avl.kernels import core_attention
from avl.kernels.core.reference import attend as reference

REASON = why_no_triton()
pytestmark = [pytest.mark.skipif(REASON is not None, reason=REASON or ""), *COMPILED]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

VECTOR = Case(2, 3, 3, 111, 100, 64, "tokens", lengths=(100, 33))
MATRIX = Case(2, 6, 2, 111, 100, 64, "tokens", lengths=(100, 33))


def check(case: Case, **options) -> None:
    from avl.kernels.core.triton import attend

    inputs = make(case, DEVICE)
    scale = case.D**-0.5
    out, scores = attend(*inputs.arguments(), scale, (0, case.N), case.per_head, **options)
    exact, exact_scores = reference(*inputs.doubled().arguments(), scale, (0, case.N), case.per_head)
    eager, eager_scores = reference(*inputs.arguments(), scale, (0, case.N), case.per_head)
    assert_near_oracle(out, exact, eager, (case.D, case.N))
    assert_near_oracle(scores, exact_scores, eager_scores, (case.D, case.N, case.H))


@pytest.mark.parametrize("splits", [1, 2, 3, 17])
@pytest.mark.parametrize("case", [VECTOR, MATRIX], ids=str)
def test_attend_any_number_of_splits_gives_the_same(case: Case, splits: int) -> None:
    check(case, splits=splits)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("per_head", [False, True])
def test_attend_several_heads_per_program_give_the_same(heads: int, per_head: bool) -> None:
    from avl.kernels.core.triton import Tiling

    case = Case(2, 5, 5, 63, 40, 32, "tokens", per_head=per_head, lengths=(40, 9))
    check(case, tiling=Tiling(vector_tile=512, vector_heads=heads))


@pytest.mark.parametrize("case", [VECTOR, MATRIX], ids=str)
def test_attend_same_call_gives_the_same_bits(case: Case) -> None:
    inputs = make(case, DEVICE)
    first, second = (core_attention(*inputs.arguments(), scores=True, impl="triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("width", "programs", "block_n"), [(1, 32, 32), (287, 32, 32), (993, 32, 32), (993, 2048, 32), (3009, 8, 64), (10**5, 1, 16)]
)
def test_count_splits_fills_the_chip_and_leaves_none_empty(width: int, programs: int, block_n: int) -> None:
    from avl.kernels.core.triton import TILING, count_splits

    multiprocessors = 132
    splits = count_splits(width, programs, block_n, multiprocessors)
    tiles = -(-width // block_n)
    assert 1 <= splits <= min(tiles, TILING.max_splits)
    chunk = -(-tiles // splits) * block_n
    assert (splits - 1) * chunk < width <= splits * chunk
    idle = programs * splits < multiprocessors
    assert not idle or splits == min(tiles, TILING.max_splits)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize("case", [VECTOR, MATRIX], ids=str)
def test_attend_replayed_in_a_cuda_graph_sees_new_values(case: Case) -> None:
    """A replay sees new values in the same tensors, lengths included."""
    inputs = make(case, DEVICE)
    core_attention(*inputs.arguments(), scores=(0, 50), impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, scores = core_attention(*inputs.arguments(), scores=(0, 50), impl="triton")
    other = make(dataclasses.replace(case, lengths=(21, 100)), DEVICE, seed=1)
    for old, new in zip(inputs.arguments(), other.arguments(), strict=True):
        old.copy_(new)
    graph.replay()
    expected, expected_scores = core_attention(*other.arguments(), scores=(0, 50), impl="triton")
    assert torch.equal(out, expected)
    assert torch.equal(scores, expected_scores)
