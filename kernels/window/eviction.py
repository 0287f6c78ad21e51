"""Which token of a window goes."""

import numpy as np
import torch
from torch import Tensor


def weakest(scores: Tensor, token_idx: Tensor, candidates: Tensor) -> Tensor:
    """Return the index [...] of the smallest score among `candidates` along the last dimension; ties go to the older token.

    Args:
        scores: float [..., C].
        token_idx: int64 [..., C], lower for older tokens.
        candidates: bool [..., C].
    """
    if scores.device.type == "cpu":  # the same in numpy, whose small operations cost a fraction of torch's
        values, may = scores.numpy(), candidates.numpy()
        smallest = np.where(may, values, np.inf)
        tied_here = (smallest == smallest.min(axis=-1, keepdims=True)) & may
        return torch.as_tensor(np.where(tied_here, token_idx.numpy(), np.iinfo(np.int64).max).argmin(axis=-1))
    masked = torch.where(candidates, scores, torch.inf)
    tied = masked == masked.amin(dim=-1, keepdim=True)
    return torch.where(tied & candidates, token_idx, torch.iinfo(token_idx.dtype).max).argmin(dim=-1)
