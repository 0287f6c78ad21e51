"""How far a kernel may be from the float64 oracle: derived from the dtype and the reductions, never tuned."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def assert_near_oracle(actual: Tensor, oracle: Tensor, eager: Tensor, reductions: Iterable[int]) -> None:
    """Assert that `actual` is no further from `oracle` than rounding explains.

    ``mean|actual - oracle| <= mean|eager - oracle| + r * mean|oracle|``, and the same with max, where
    ``r = eps(dtype of actual) + sum(sqrt(n) for n in reductions) * eps(float32)``: one rounding of the result, and the random walk of
    the float32 roundings in each reduction. In the max form the first term counts once per reduction.

    Args:
        actual: what is tested, of any shape and dtype.
        oracle: the reference run in float64 on the same inputs cast up.
        eager: the reference run in the dtype of the inputs: the allowance.
        reductions: lengths of the sums that lead to one element.
    """
    reductions = list(reductions)
    assert actual.shape == oracle.shape, f"shape {list(actual.shape)}, expected {list(oracle.shape)}"
    assert actual.isfinite().all(), "not finite"
    eps = torch.finfo(actual.dtype).eps
    walk = sum(math.sqrt(n) for n in reductions) * torch.finfo(torch.float32).eps
    wrong, allowed, size = (actual.double() - oracle).abs(), (eager.double() - oracle).abs(), oracle.abs()
    for name, relative, pick in (("mean", eps + walk, torch.mean), ("max", len(reductions) * eps + walk, torch.max)):
        error, limit = float(pick(wrong)), float(pick(allowed)) + relative * float(pick(size))
        assert error <= limit, f"{name} error {error:.3e} > {limit:.3e}"
