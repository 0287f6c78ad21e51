"""The equation of core attention itself, and the PyTorch path against it."""

import dataclasses
from types import ModuleType

import pytest
import torch
from kernel_cases import Case, Inputs, lay_out, make
from tolerance import assert_near_oracle
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from avl.kernels.core import cpu, reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# odd sizes: single rows, whose `length` is sliced off, and ragged batches, where it is a mask; every way in which slots are read
CASES = [
    Case(1, 1, 1, 1, 1, 1),
    Case(1, 8, 8, 111, 63, 32, "tokens"),
    Case(1, 6, 2, 100, 63, 33, "heads", lengths=(31,)),
    Case(1, 5, 5, 63, 63, 17, "tokens", lengths=(0,)),
    Case(1, 6, 3, 63, 31, 48, "strided", per_head=True, lengths=(7,), index_dtype=torch.int32),
    Case(3, 7, 7, 111, 100, 80, "tokens", lengths=(100, 0, 63)),
    Case(3, 8, 4, 63, 33, 32, "flat", lengths=(33, 1, 0), index_dtype=torch.int32),
    Case(2, 4, 1, 63, 17, 63, "heads"),
    Case(2, 6, 2, 63, 31, 100, "strided", lengths=(1, 30)),
    Case(3, 9, 3, 37, 37, 16, "heads", per_head=True, lengths=(5, 37, 0)),
]


def as_dense(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, selected keys and values with KV heads repeated, and the mask [B, 1, 1, N] of what is read; unread entries hold 0."""
    query, key, value, index, length = inputs.arguments()
    case = inputs.case
    read = torch.arange(case.N) < (torch.full((case.B,), case.N) if length is None else length)[:, None]
    slots = (index if case.per_head else index[:, None]).expand(case.B, case.G, case.N).long().masked_fill(~read[:, None], 0)
    rows, heads = torch.arange(case.B)[:, None, None], torch.arange(case.G)[:, None]
    gone = ~read[:, None, :, None]
    key, value = (tensor[rows, heads, slots].masked_fill(gone, 0).repeat_interleave(case.H // case.G, 1) for tensor in (key, value))
    return query, key, value, read[:, None, None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_output_equals_sdpa_of_the_selected_slots(case: Case) -> None:
    inputs = make(case).doubled()
    out, _ = reference.attend(*inputs.arguments(), 0.3, None, case.per_head)
    query, key, value, read = as_dense(inputs)
    expected = scaled_dot_product_attention(query[:, :, None], key, value, attn_mask=read, scale=0.3)[:, :, 0]
    expected[~read.flatten(1).any(1)] = 0  # rows that read nothing
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_scores_equal_normalized_exponentials(case: Case) -> None:
    inputs = make(case).doubled()
    sums = torch.ones((case.B, case.G, 1) if case.per_head else (case.B, 1), dtype=torch.float64)
    _, scores = reference.attend(*inputs.arguments(), 0.3, (0, case.N), case.per_head, sums)
    query, key, _, read = as_dense(inputs)
    powers = torch.einsum("bhd,bhnd->bhn", 0.3 * query, key).exp() * read[:, 0]
    weights = powers / powers.sum(-1, keepdim=True).clamp(min=1e-300)
    expected = weights.view(case.B, case.G, -1, case.N).mean(2) if case.per_head else weights.mean(1)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sums, 1 + expected[..., -1:], rtol=1e-10, atol=1e-12)
    _, part = reference.attend(*inputs.arguments(), 0.3, (case.N // 3, case.N // 2), case.per_head)
    assert torch.equal(part, scores[..., case.N // 3 : case.N // 2])
    assert reference.attend(*inputs.arguments(), 0.3, None, case.per_head)[1] is None


def make_poisoned(case: Case, reads: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Arguments of a case; what lies behind `length` is poison.

    "garbage": entries that are no slot. "nan": entries that name slots which hold NaN, where any are left. "all": no index, and NaN in
    every slot behind the length.
    """
    inputs = make(case)
    lengths = case.lengths or (case.L if reads == "all" else case.N,) * case.B
    if reads == "garbage":
        return inputs.arguments()
    if reads == "nan":
        for b, count in enumerate(lengths):
            for g in range(case.G):
                index = inputs.index[b, g] if case.per_head else inputs.index[b]
                unread = inputs.key[b, g, :, 0].isnan().nonzero().flatten()
                if len(unread):
                    index[count:] = unread[0]
        return inputs.arguments()
    stored = torch.randn(2, case.B, case.G, case.L, case.D, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    for b, count in enumerate(lengths):
        stored[:, b, :, count:] = torch.nan
    layout = "tokens" if case.layout == "flat" else case.layout  # rows of one buffer would share the poison
    return inputs.query, lay_out(stored[0], layout), lay_out(stored[1], layout), None, inputs.length


@pytest.mark.parametrize("reads", ["garbage", "nan", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_any_case_equals_the_reference(case: Case, dtype: torch.dtype, reads: str) -> None:
    query, key, value, index, length = make_poisoned(dataclasses.replace(case, dtype=dtype), reads)
    width = case.L if index is None else case.N
    by_group = case.per_head if index is not None else case.G < case.H
    last = max(1, width // 2)
    before = torch.rand((case.B, case.G, last) if by_group else (case.B, last), generator=torch.Generator().manual_seed(2))

    def attend(path: ModuleType, dtype: torch.dtype, columns: tuple[int, int] | None, adds: bool) -> list[Tensor | None]:
        sums = before.to(torch.promote_types(dtype, torch.float32), copy=True) if adds else None
        tensors = (tensor.to(dtype) for tensor in (query, key, value))
        return [*path.attend(*tensors, index, length, case.D**-0.5, columns, by_group, sums), sums]

    for columns, adds in ((None, False), ((0, width), False), ((width // 3, width // 2), False), (None, True), ((0, width), True)):
        exact, eager = (attend(reference, kind, columns, adds) for kind in (torch.float64, dtype))
        actual = attend(cpu, dtype, columns, adds)
        for mine, its, theirs in zip(actual, eager, exact, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs.numel():
                assert mine.dtype == its.dtype
                assert_near_oracle(mine, theirs, its, (case.D, width, case.H))
        for b, count in enumerate(case.lengths or ()):
            assert count or (actual[0][b] == 0).all()
