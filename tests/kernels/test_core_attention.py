"""What every implementation of core_attention must do, against the equation (kernels/core/reference.py) in float64."""

import pytest
import torch
from kernel_cases import GARBAGE, Case, Inputs, make
from pairwise import pairwise
from tolerance import assert_near_oracle
from torch import Tensor
from triton_here import COMPILED as ONE_WORKER
from triton_here import why_no_triton

from avl.kernels import core_attention
from avl.kernels.core import reference

COMPILED = torch.cuda.is_available()
LOW = torch.float16  # bfloat16 arithmetic is wrong in Triton's interpreter; on a GPU it is tested too


@pytest.fixture(params=["reference", "numba", pytest.param("triton", marks=ONE_WORKER)])
def impl(request: pytest.FixtureRequest) -> str:
    if request.param == "triton" and (reason := why_no_triton()):
        pytest.skip(reason)
    return request.param


CASES = [
    Case(1, 1, 1, 1, 1, 32),
    Case(1, 6, 6, 640, 250, 32, "tokens"),
    Case(1, 2, 2, 63, 63, 64, "tokens", LOW),
    Case(2, 4, 4, 100, 17, 80, "heads"),
    Case(2, 4, 4, 111, 100, 128, "tokens", LOW, lengths=(100, 63)),
    Case(3, 3, 3, 63, 33, 96, "flat", lengths=(1, 0, 33)),
    Case(1, 2, 2, 40, 20, 256, "strided"),
    Case(2, 5, 5, 111, 63, 32, "tokens", per_head=True, lengths=(63, 7), index_dtype=torch.int32),
    Case(2, 4, 2, 63, 17, 64, "heads"),
    Case(1, 8, 2, 111, 100, 128, "tokens", LOW),
    Case(2, 4, 1, 100, 63, 80, "tokens", lengths=(63, 31)),
    Case(3, 8, 4, 63, 33, 32, "flat", LOW, lengths=(33, 1, 0), index_dtype=torch.int32),
    Case(2, 6, 2, 63, 31, 48, "heads", per_head=True, lengths=(31, 5)),
    Case(1, 40, 2, 40, 33, 32, "strided"),
    Case(2, 3, 1, 37, 20, 256, "tokens"),
    Case(1, 70, 1, 40, 20, 16, "tokens"),
]
if COMPILED:
    CASES += [
        Case(1, 32, 32, 3009, 993, 128, "tokens", torch.bfloat16),
        Case(4, 32, 8, 3009, 993, 128, "tokens", torch.bfloat16, lengths=(993, 800, 1, 0), index_dtype=torch.int32),
        Case(64, 32, 32, 705, 287, 128, "tokens", torch.bfloat16, index_dtype=torch.int32),
        Case(2, 40, 40, 705, 287, 128, "heads", torch.float16),
        Case(2, 32, 8, 705, 287, 80, "flat", torch.bfloat16, per_head=True, lengths=(287, 99)),
    ]


def specified(inputs: Inputs, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Output and all scores as the equation gives them, in the precision of the inputs."""
    case = inputs.case
    scale = case.D**-0.5 if scale is None else scale
    out, scores = reference.attend(*inputs.arguments(), scale, (0, case.N), case.per_head)
    assert scores is not None
    return out, scores


@pytest.mark.parametrize("case", CASES, ids=str)
def test_core_attention_any_case_equals_the_equation(case: Case, impl: str, device: torch.device) -> None:
    inputs = make(case, device)
    out, scores = core_attention(*inputs.arguments(), scores=True, impl=impl)
    exact_out, exact_scores = specified(inputs.doubled())
    eager_out, eager_scores = specified(inputs)
    assert out.dtype == case.dtype
    assert scores.dtype == torch.float32
    assert scores.shape == inputs.index.shape
    assert_near_oracle(out, exact_out, eager_out, (case.D, case.N))
    assert_near_oracle(scores, exact_scores, eager_scores, (case.D, case.N, case.H))


@pytest.mark.parametrize("case", [CASES[4], CASES[5], CASES[7], CASES[11], CASES[12]], ids=str)
def test_scores_of_ragged_rows_sum_to_one_and_are_zero_behind_length(case: Case, impl: str, device: torch.device) -> None:
    inputs = make(case, device)
    out, scores = core_attention(*inputs.arguments(), scores=True, impl=impl)
    for b, count in enumerate(case.lengths):
        total = scores[b].sum(-1)
        torch.testing.assert_close(total, torch.full_like(total, float(count > 0)), rtol=0, atol=1e-5)
        assert (scores[b, ..., count:] == 0).all()
        if count == 0:
            assert (out[b] == 0).all()


@pytest.mark.parametrize("columns", [(0, 5), (3, 17), (29, 33), (4, 4)])
@pytest.mark.parametrize("case", [CASES[5], CASES[11]], ids=str)
def test_scores_of_a_range_are_that_part_of_all_scores(case: Case, columns, impl: str, device: torch.device) -> None:
    inputs = make(case, device)
    out, scores = core_attention(*inputs.arguments(), scores=True, impl=impl)
    out_part, part = core_attention(*inputs.arguments(), scores=columns, impl=impl)
    assert torch.equal(out, out_part)
    torch.testing.assert_close(part, scores[..., columns[0] : columns[1]], rtol=1e-6, atol=1e-8)


@pairwise(case=[CASES[5], CASES[11], CASES[13]], by_group=[False, True], asked=[False, True, "part"], width=[1, 9, 33])
def test_sums_of_any_width_take_the_scores_of_the_last_columns(
    case: Case, by_group, asked, width: int, impl: str, device: torch.device
) -> None:
    inputs = make(case, device)
    _, all_scores = core_attention(*inputs.arguments(), scores=True, group_scores=by_group, impl=impl)
    leading = (case.B, case.G) if by_group else (case.B,)
    # a part of a larger tensor, as a window's free slots leave it; what is not named stays
    storage = torch.randn(*leading, case.N + 4, generator=torch.Generator().manual_seed(3)).to(device)
    sums, before = storage[..., :width], storage.clone()
    columns = (case.N - width, case.N) if asked == "part" else asked
    out, scores = core_attention(*inputs.arguments(), scores=columns, group_scores=by_group, sums=sums, impl=impl)
    newest = all_scores[..., case.N - width :]
    torch.testing.assert_close(sums, before[..., :width] + newest, rtol=1e-5, atol=1e-6)
    assert torch.equal(storage[..., width:], before[..., width:])
    plain, _ = core_attention(*inputs.arguments(), impl=impl)
    torch.testing.assert_close(out, plain, rtol=1e-6, atol=1e-7)
    if asked is False:
        assert scores is None
    else:
        torch.testing.assert_close(scores, newest if asked == "part" else all_scores, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", [CASES[5], CASES[8], CASES[11]], ids=str)
def test_group_scores_with_a_shared_index_are_those_of_an_index_per_head(case: Case, impl: str, device: torch.device) -> None:
    inputs = make(case, device)
    out, scores = core_attention(*inputs.arguments(), scores=True, group_scores=True, impl=impl)
    shared = inputs.index
    inputs.index = shared.unsqueeze(1).expand(-1, case.G, -1)
    per_head_out, per_head = core_attention(*inputs.arguments(), scores=True, impl=impl)
    torch.testing.assert_close(per_head_out, out, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(per_head, scores, rtol=1e-5, atol=1e-7)
    inputs.index = shared
    torch.testing.assert_close(core_attention(*inputs.arguments(), scores=True, impl=impl)[1], scores.mean(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("lengths", [None, (40,), (0,)])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_core_attention_without_index_reads_all_slots_up_to_length(kv_heads: int, lengths, impl: str, device: torch.device) -> None:
    case = Case(1, 4, kv_heads, 63, 63, 64, "tokens")
    inputs = make(case, device)
    inputs.index = torch.arange(63, device=device)[None]
    length = None if lengths is None else torch.tensor(lengths, device=device)
    expected = core_attention(inputs.query, inputs.key, inputs.value, inputs.index, length, scores=True, impl=impl)
    actual = core_attention(inputs.query, inputs.key, inputs.value, None, length, scores=True, impl=impl)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_core_attention_without_index_masks_ragged_rows(impl: str, device: torch.device) -> None:
    inputs = make(Case(2, 4, 4, 63, 63, 32, "tokens"), device)
    inputs.value[1, :, 20:] = torch.nan
    length = torch.tensor([63, 20], device=device)
    out, scores = core_attention(inputs.query, inputs.key, inputs.value, None, length, scores=True, impl=impl)
    alone, alone_scores = core_attention(inputs.query[1:], inputs.key[1:, :, :20], inputs.value[1:, :, :20], None, scores=True, impl=impl)
    torch.testing.assert_close(out[1:], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores[1:, :20], alone_scores, rtol=1e-5, atol=1e-6)


def test_core_attention_query_of_four_dimensions_gives_four(impl: str, device: torch.device) -> None:
    inputs = make(CASES[3], device)
    out, none = core_attention(*inputs.arguments(), impl=impl)
    four, _ = core_attention(inputs.query.unsqueeze(2), *inputs.arguments()[1:], impl=impl)
    assert none is None
    assert four.shape == (2, 4, 1, 80)
    assert torch.equal(four.squeeze(2), out)


@pytest.mark.parametrize("case", [CASES[3], CASES[8]], ids=str)
def test_core_attention_permuted_slots_give_the_same(case: Case, impl: str, device: torch.device) -> None:
    inputs = make(case, device)
    out, scores = core_attention(*inputs.arguments(), scores=True, impl=impl)
    order = torch.randperm(case.N, device=device)
    inputs.index = inputs.index[:, order]
    moved, moved_scores = core_attention(*inputs.arguments(), scores=True, impl=impl)
    torch.testing.assert_close(moved, out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved_scores, scores[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [CASES[5], CASES[11], CASES[12]], ids=str)
def test_core_attention_row_alone_gives_the_same(case: Case, impl: str, device: torch.device) -> None:
    inputs = make(case, device)
    out, scores = core_attention(*inputs.arguments(), scores=True, impl=impl)
    for b in range(case.B):
        alone = (tensor[b : b + 1] for tensor in inputs.arguments())
        row, row_scores = core_attention(*alone, scores=True, impl=impl)
        close = {"rtol": 4 * torch.finfo(case.dtype).eps, "atol": 4 * torch.finfo(case.dtype).eps}
        torch.testing.assert_close(row, out[b : b + 1], **close)
        torch.testing.assert_close(row_scores, scores[b : b + 1], rtol=1e-5, atol=1e-6)


def test_core_attention_permuted_heads_give_permuted_outputs(impl: str, device: torch.device) -> None:
    inputs = make(CASES[4], device)
    out, scores = core_attention(*inputs.arguments(), scores=True, impl=impl)
    order = torch.tensor([2, 0, 3, 1], device=device)
    moved, moved_scores = core_attention(
        inputs.query[:, order], inputs.key[:, order], inputs.value[:, order], inputs.index, inputs.length, scores=True, impl=impl
    )
    torch.testing.assert_close(moved, out[:, order], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(moved_scores, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_core_attention_large_logits_do_not_overflow(kv_heads: int, impl: str, device: torch.device) -> None:
    """One key dominates, then all count alike: an online softmax without its maximum would overflow."""
    case = Case(2, 4, kv_heads, 63, 33, 32)
    inputs = make(case, device)
    for scale in (50.0, 0.0):
        out, scores = core_attention(*inputs.arguments(), scale=scale, scores=True, impl=impl)
        exact_out, exact_scores = specified(inputs.doubled(), scale)
        # a logit of size a carries an error of a * eps, and so does, relatively, its weight
        atol = 200 * torch.finfo(torch.float32).eps * max(1.0, scale * 30)
        torch.testing.assert_close(out.double(), exact_out, rtol=0, atol=atol)
        torch.testing.assert_close(scores.double(), exact_scores, rtol=0, atol=atol)


def test_core_attention_garbage_behind_length_is_never_read(impl: str, device: torch.device) -> None:
    """The same call with harmless entries behind `length` gives the same bits."""
    inputs = make(CASES[4], device)
    assert (inputs.index == GARBAGE).any()
    harmless = make(CASES[4], device, garbage=False)
    for a, b in zip(
        core_attention(*inputs.arguments(), scores=True, impl=impl),
        core_attention(*harmless.arguments(), scores=True, impl=impl),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_core_attention_nan_in_a_selected_slot_is_not_hidden(impl: str, device: torch.device) -> None:
    """The other tests rely on NaN showing up where it is read."""
    for case in (CASES[3], CASES[8]):
        inputs = make(case, device)
        inputs.value[0, 0, inputs.index[0, 3]] = torch.nan
        out, _ = core_attention(*inputs.arguments(), impl=impl)
        assert out[0, 0].isnan().all()
        assert out[1].isfinite().all()


def test_core_attention_inputs_are_left_alone(impl: str, device: torch.device) -> None:
    inputs = make(CASES[11], device)
    before = [tensor.clone() for tensor in inputs.arguments()]
    core_attention(*inputs.arguments(), scores=True, impl=impl)
    for tensor, copy in zip(inputs.arguments(), before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)
