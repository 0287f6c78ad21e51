"""What belongs to the Triton kernels of core attention alone: splits, tilings, repeatability, CUDA graphs."""

import dataclasses

import pytest
import torch
from kernel_cases import Case, make
from tolerance import assert_near_oracle
from triton_here import COMPILED, why_no_triton

from avl.kernels import core_attention
from avl.kernels.core.reference import attend as reference
from avl.kernels.layer.types import HeadNorms

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
    check(case, tiling=Tiling(vector_tile_bytes=2048, vector_heads=heads))


@pytest.mark.parametrize("case", [VECTOR, MATRIX], ids=str)
def test_attend_same_call_gives_the_same_bits(case: Case) -> None:
    inputs = make(case, DEVICE)
    first, second = (core_attention(*inputs.arguments(), scores=True, impl="triton") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("tile", [1024, 4096])
def test_attend_any_number_of_stages_gives_the_same_bits(tile: int) -> None:
    from avl.kernels.core.triton import Tiling, attend

    inputs = make(VECTOR, DEVICE)
    results = [
        attend(*inputs.arguments(), 0.125, (90, 100), False, splits=2, tiling=Tiling(stages=stages, vector_tile_bytes=tile))
        for stages in (1, 2, 3)
    ]
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("columns", [(0, 1), (15, 17), (31, 33), (63, 64), (64, 100), (99, 100)])
@pytest.mark.parametrize("case", [VECTOR, MATRIX], ids=str)
def test_logits_at_the_edges_of_tiles_are_stored(case: Case, columns: tuple[int, int]) -> None:
    """Tiles without a wanted column store nothing; the first and the last wanted column may be a tile's only one."""
    from avl.kernels.core.triton import Tiling, attend

    inputs = make(case, DEVICE)
    tiling = Tiling(vector_tile_bytes=4096, matrix_tile_bytes=4096)  # 16 columns
    _, all_scores = attend(*inputs.arguments(), 0.125, (0, 100), False, splits=3, tiling=tiling)
    _, scores = attend(*inputs.arguments(), 0.125, columns, False, splits=3, tiling=tiling)
    assert torch.equal(scores, all_scores[:, slice(*columns)])


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_attend_grouped_heads_without_matrix_units_give_the_same(per_head: bool, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before compute capability 8.0 every query head reads its KV head by itself; the heads of a program may be of two groups."""
    from avl.kernels.core import triton as core

    monkeypatch.setattr(core, "split_matrix_kernel", None)
    tiling = core.tiling_for((7, 5))._replace(vector_heads=heads, vector_tile_bytes=4096)
    check(dataclasses.replace(MATRIX, per_head=per_head), tiling=tiling)


@pytest.mark.parametrize("splits", [1, 2, 3, 7, 17])
@pytest.mark.parametrize("case", [VECTOR, MATRIX], ids=str)
def test_parts_of_a_row_differ_by_one_column(case: Case, splits: int) -> None:
    """With equal keys a part's log-sum-exp counts its columns."""
    from avl.kernels.core import triton as core

    query = torch.zeros(case.B, case.H, case.D, device=DEVICE)
    key = torch.zeros(case.B, case.G, case.L, case.D, device=DEVICE)
    length = torch.tensor(case.lengths, device=DEVICE)
    counts = []
    combine = core.combine_kernel

    class Caught:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                counts.append(arguments[5].exp2().round().int())  # p_lse
                return combine[grid](*arguments, **constants)

            return launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "combine_kernel", Caught())
        core.attend(query, key, key, None, length, 1.0, (0, 1), False, splits=splits)
    for b, count in enumerate(case.lengths):
        part = counts[0][b]
        assert (part.sum(-1) == count).all()
        assert (part.amax(-1) - part.amin(-1) <= 1).all()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)])
def test_tiling_for_any_gpu_fits_its_shared_memory(capability: tuple[int, int]) -> None:
    """One kB is the system's for every program; what is computed from lies there too. Registers: the slow tier compiles."""
    from avl.kernels.core.triton import tiling_for

    tiling = tiling_for(capability)
    shared = {(7, 5): 64, (8, 0): 164, (8, 7): 164, (9, 0): 228, (10, 0): 228, (10, 3): 228}.get(capability, 100) << 10
    assert tiling.vector_programs * ((tiling.stages - 1) * 2 * tiling.vector_tile_bytes + 1024) <= shared
    if tiling.matrix:
        assert tiling.matrix_programs * ((tiling.matrix_stages - 1) * 2 * tiling.matrix_tile_bytes + 6144 + 1024) <= shared
    assert (tiling.stages == 1) == (not tiling.matrix) == (capability < (8, 0))


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


# heads, KV heads, head size, dtype, parts, index, columns (of 60), sums, slots and sums per KV head, norms of heads
NEW = [
    (3, 3, 32, torch.float32, 1, False, (0, 60), True, False, False),
    (3, 3, 32, torch.float32, 3, True, None, True, False, False),
    (3, 3, 80, torch.float16, 3, True, (0, 60), True, False, True),
    (3, 3, 80, torch.float16, 1, True, None, False, False, False),
    (4, 4, 80, torch.float32, 3, False, (0, 40), False, False, True),
    (2, 2, 128, torch.float16, 3, False, None, True, True, False),
    (2, 2, 128, torch.float32, 3, True, (0, 60), True, True, True),
    (6, 2, 32, torch.float32, 3, True, (0, 60), True, True, True),
    (6, 2, 32, torch.float16, 1, False, (0, 40), False, False, True),
    (6, 2, 80, torch.float32, 1, True, None, True, False, False),
    (6, 2, 80, torch.float16, 3, False, (0, 60), True, True, False),
    (4, 2, 128, torch.float16, 3, False, None, False, False, True),
]
TWO_BLOCKS = (66, 1, 32, torch.float32, 2, True, (0, 60), True, False, False)  # of the matrix kernel; elsewhere 5 heads are as good
# heads that share no KV head run on the vector kernel in any case: one per program where little and where all is asked for, else two
NEW_WAYS = [
    *((*case, True) for case in (*NEW, TWO_BLOCKS) if case[0] != case[1] or case in (NEW[0], NEW[6])),
    *((*case, False) for case in (*NEW, (5, *TWO_BLOCKS[1:]))),
]


class New:
    """A step's new token in rows of 40 image slots, of which an index reads 30 in any order, and a window of 30 slots."""

    def __init__(self, heads: int, kv_heads: int, size: int, dtype: torch.dtype, indexed: bool, per_head: bool, normed: bool) -> None:
        from avl.kernels.core.triton import NewToken

        draw = torch.Generator().manual_seed(heads + size)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw).to(DEVICE, dtype)

        batch, image, window = 3, 40, 30
        valid = torch.tensor([30, 1, 17])
        slot = (torch.rand(batch, kv_heads if per_head else 1, generator=draw) * valid[:, None]).long()
        slot[0, 0] = 29
        # a larger storage, and NaN in what is not to be read: the free slots, and the new token's until it is stored
        storages = [normal(batch + 1, image + window + 5, kv_heads, size) for _ in range(2)]
        self.storage = storages
        for storage in storages:
            for b in range(batch):
                storage[b + 1, image + int(valid[b]) :] = torch.nan
                for g in range(kv_heads):
                    storage[b + 1, image + int(slot[b, g if per_head else 0]), g] = torch.nan
        read, self.index = image, None
        if indexed:
            read = 30
            core = torch.stack([torch.randperm(image, generator=draw)[:read] for _ in range(batch)])
            self.index = torch.cat([core, torch.arange(image, image + window).expand(batch, -1)], dim=1).int().to(DEVICE)
        self.columns = read + window
        self.length = (read + valid).to(DEVICE)
        self.qkv = normal(batch, (heads + 2 * kv_heads) * size)
        norms = HeadNorms(normal(size), normal(size), 1e-3) if normed else None
        self.token = NewToken(*normal(batch, 2, size).unbind(1), norms, slot.to(DEVICE), read, image)

    def by_head(self, storages: list[torch.Tensor]) -> list[torch.Tensor]:
        """Keys and values [B, G, L, D]."""
        return [storage[1:, : 70 if self.index is None else None].transpose(1, 2) for storage in storages]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "dtype", "splits", "indexed", "columns", "summed", "per_head", "normed", "matrix"), NEW_WAYS
)
def test_attend_new_equals_storing_and_then_attending(
    heads, kv_heads, size, dtype, splits, indexed, columns, summed, per_head, normed, matrix
) -> None:
    """Also where grouped heads run on the vector kernel, two of them per program. What is stored has the same bits."""
    from avl.kernels.core.triton import Tiling, attend, attend_new
    from avl.kernels.layer.triton import rotate_and_store

    case = New(heads, kv_heads, size, dtype, indexed, per_head, normed)
    tiling = Tiling(vector_tile_bytes=2048, matrix_tile_bytes=4096) if matrix else Tiling(2048, 2, matrix=False)
    if columns is not None:
        columns = (columns[0], case.columns if columns[1] == 60 else columns[1])
    rest = case.index, case.length, size**-0.5, columns, per_head
    shape = (3, kv_heads, 30) if per_head else (3, 30)
    found = []
    for fused in (False, True):
        storages = [storage.clone() for storage in case.storage]
        sums = torch.ones(shape, device=DEVICE) if summed else None
        new, stored = case.token, case.by_head(storages)
        if fused:
            out, scores = attend_new(case.qkv, new, *stored, *rest, sums, splits=splits, tiling=tiling)
        else:
            key, value = (tensor.transpose(1, 2) for tensor in stored)
            query = rotate_and_store(case.qkv, new.cos, new.sin, key, value, new.slot, new.first_slot, new.norms)
            out, scores = attend(query, *stored, *rest, sums, splits=splits, tiling=tiling)
        found.append((storages, out, scores, sums))
    (storages, *expected), (others, *actual) = found
    # a compiler may add a norm's squares in another order, and in float32 choose another product of two to fuse with their sum
    same_bits = DEVICE == "cpu" or (dtype == torch.float16 and not normed)
    for one, two in zip(storages, others, strict=True):
        bound = 0 if same_bits else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(one, two, rtol=bound, atol=bound, equal_nan=True)
    for one, two in zip(expected, actual, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            assert not one.isnan().any()
            # another order of sums, and grouped heads round the token's weight in one of the two
            assert float((one.double() - two.double()).norm()) <= 2 * torch.finfo(one.dtype).eps * float(one.double().norm()) + 1e-6


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attend_new_same_call_gives_the_same_bits(kv_heads: int) -> None:
    from avl.kernels.core.triton import attend_new

    case = New(4, kv_heads, 32, torch.float32, True, False, False)
    first, second = (
        attend_new(case.qkv, case.token, *case.by_head(case.storage), case.index, case.length, 0.2, (0, 60), False, splits=2)
        for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
