"""Core attention in plain torch: the oracle of the kernels, and what the library runs on a CPU.

The specification, for one row b of the batch and one query head h of KV group g = h // (H / G)::

    slots  = index[b, :length[b]]                       # or index[b, g, :length[b]]
    weight = softmax(scale * key[b, g, slots] @ query[b, h])
    out[b, h]    = weight @ value[b, g, slots]          # zeros when length[b] = 0
    scores[b, j] = mean over h of weight_h[j]           # per KV group when the index is per KV head

float64 inputs are computed in float64 throughout, everything else in float32: a low-precision input is cast up after its slots were
read, so nothing that is not selected is touched.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor | None,
    length: Tensor | None,
    scale: float,
    columns: tuple[int, int] | None,
    by_group: bool,
    sums: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend with one query per row to the slots in `index` (paper: section 4.3, Figure 8).

    Arguments are those of `avl.kernels.core_attention`, already validated, with these fixed forms:

    - `query` [B, H, D]; `key`, `value` [B, G, L, D], any strides; `index` [B, n], [B, G, n] or None; `length` [B] or None.
    - `columns`: the range of index columns whose scores are wanted, or None for no scores.
    - `by_group`: average scores over the query heads of each KV group, not over all; always so with an index [B, G, n].
    - `sums`: [B, W'], or [B, G, W'] by group: the scores of the last W' columns are added to it, or None.

    Returns `out` [B, H, D] in the dtype of `query`, and scores [B, W] (or [B, G, W]) in float32 (float64 for float64 inputs).
    """
    batch, heads, size = query.shape
    groups = key.shape[1]
    width = key.shape[2] if index is None else index.shape[-1]
    count = width
    valid = None
    if length is not None:
        if batch == 1 and length.device.type == "cpu":
            # a slice reads less and costs less than a mask; on a GPU it would be a host synchronisation
            count = min(max(int(length), 0), width)
            if count == 0:
                return _nothing(query, groups if by_group else None, columns)
            if count < width and index is not None:
                index = index[..., :count]
        else:
            valid = torch.arange(width, device=query.device) < length.unsqueeze(1)  # [B, n]
            if index is not None:
                # entries behind `length` may be anything, out of range too: read slot 0 there and mask what comes back
                index = index.masked_fill(~(valid if index.dim() == 2 else valid.unsqueeze(1)), 0)

    if index is None and columns is None and sums is None and valid is None:
        # full attention whose weights nobody asks for is what torch does best; a group's queries are a sequence without a mask
        if count < width:
            key, value = key[:, :, :count], value[:, :, :count]
        q = query.reshape(batch, groups, heads // groups, size)
        return F.scaled_dot_product_attention(q, key, value, scale=scale).reshape(batch, heads, size), None

    q = query.reshape(batch * groups, heads // groups, size)
    if batch == 1 and (index is None or index.dim() == 2):
        # the usual call of a small model on a CPU, where every operation counts
        k, v = key[0], value[0]  # [G, L, D]
        if index is not None:
            k, v = _read_row(k, index[0]), _read_row(v, index[0])
        elif count < width:
            k, v = k[:, :count], v[:, :count]
    else:
        k = _read(key, index, count)
        v = _read(value, index, count)
    if q.dtype.itemsize < 4:
        q, k, v = q.float(), k.float(), v.float()

    logits = torch.bmm(q * scale, k.transpose(1, 2))  # [B·G, H/G, n]
    if valid is None:
        weights = logits.softmax(-1)
    else:
        gone = ~valid
        blank = gone.view(batch, 1, 1, count)
        logits = logits.view(batch, groups, -1, count).masked_fill(blank, -torch.inf)
        # the second mask is for rows of length 0, whose softmax is NaN; the third keeps a NaN in an unread slot out of 0 · NaN
        weights = logits.softmax(-1).masked_fill(blank, 0).view(batch * groups, -1, count)
        v = v.reshape(batch, groups, count, size).masked_fill(blank.view(batch, 1, count, 1), 0).view(-1, count, size)
    out = torch.bmm(weights, v).view(batch, heads, size)
    if out.dtype != query.dtype:
        out = out.to(query.dtype)
    if columns is None and sums is None:
        return out, None

    weights = weights.detach()  # scores decide, they are no part of what is computed
    if by_group:
        scores = weights.view(batch, groups, -1, count)
    else:
        scores = weights.view(batch, heads, count)
    if columns is None:
        assert sums is not None
        newest = scores[..., width - sums.shape[-1] :]
        if by_group:
            sums[..., : newest.shape[-1]] += newest.mean(2)
        else:  # mean and sum in one call
            if newest.shape[-1] < sums.shape[-1]:
                sums = sums[:, : newest.shape[-1]]
            sums.unsqueeze(1).baddbmm_(_mean(batch, heads, newest.dtype, newest.device), newest)
        return out, None
    start, stop = columns
    scores = scores[..., start:stop].mean(-2)
    if sums is not None:  # columns behind `length` were sliced away: their weight is 0
        newest = scores[..., width - sums.shape[-1] - start :]
        sums[..., : newest.shape[-1]] += newest
    missing = stop - start - scores.shape[-1]
    return out, F.pad(scores, (0, missing)) if missing else scores


@functools.lru_cache(maxsize=16)
def _mean(batch: int, heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[B, 1, H] whose product with [B, H, n] is the mean over heads."""
    with torch.inference_mode(False):
        return torch.full((), 1 / heads, dtype=dtype, device=device).expand(batch, 1, heads)


def _read_row(storage: Tensor, slots: Tensor) -> Tensor:
    """The selected rows of one row's `storage` [G, L, D] as [G, n, D]."""
    if storage.stride(0) > storage.stride(1):
        return storage.index_select(1, slots)
    # token-major: index_select is fastest when the selected dimension is the outer one
    return storage.transpose(0, 1).index_select(0, slots).transpose(0, 1)


def _read(storage: Tensor, index: Tensor | None, count: int) -> Tensor:
    """The selected rows of `storage` [B, G, L, D] as [B·G, count, D]."""
    batch, groups, _, size = storage.shape
    if index is None:
        return storage[:, :, :count].reshape(batch * groups, count, size)
    index = (index.unsqueeze(1) if index.dim() == 2 else index).long()  # [B, 1 or G, n]
    device = storage.device
    b = torch.arange(batch, device=device).view(batch, 1, 1)
    g = torch.arange(groups, device=device).view(1, groups, 1)
    strides = storage.stride()
    if strides[3] == 1 and all(stride % size == 0 for stride in strides[:3]):
        # every [D] vector starts at a multiple of D: see the storage as one matrix of vectors, ten times faster than the general case
        rows = 1 + sum((length - 1) * stride for length, stride in zip(storage.shape[:3], strides[:3], strict=True)) // size
        flat = b * (strides[0] // size) + g * (strides[1] // size) + index * (strides[2] // size)
        return storage.as_strided((rows, size), (size, 1)).index_select(0, flat.view(-1)).view(batch * groups, count, size)
    return storage[b, g, index].view(batch * groups, count, size)


def _nothing(query: Tensor, groups: int | None, columns: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
    """The result of a batch of one row that reads no slot at all: zeros."""
    out = torch.zeros_like(query)
    if columns is None:
        return out, None
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    width = columns[1] - columns[0]
    return out, torch.zeros((1, width) if groups is None else (1, groups, width), dtype=dtype, device=query.device)
