"""Core attention in a few torch operations: what the library runs wherever neither Triton nor numba does.

Each case takes the fewest operations: at the size of the bundled model a decode step on a CPU is bound by their number. float64 inputs are
computed in float64 throughout, everything else in float32: a low-precision input is cast up after its slots were read, so nothing that is
not selected is touched.
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
    """Attend with one query per row to the slots in `index`; arguments and results are those of kernels/core/reference.py."""
    batch, heads, size = query.shape
    kv_heads = key.shape[1]
    width = key.shape[2] if index is None else index.shape[-1]
    count = width
    valid = None
    if length is not None:
        if batch == 1 and length.device.type == "cpu":
            # a slice reads less and costs less than a mask; on a GPU it would be a host synchronization
            count = min(max(int(length), 0), width)
            if count == 0:
                return _nothing(query, kv_heads if by_group else None, columns)
            if count < width and index is not None:
                index = index[..., :count]
        else:
            valid = torch.arange(width, device=query.device) < length.unsqueeze(1)  # [B, n]
            if index is not None:
                # entries behind `length` may be anything, out of range too: read slot 0 there and mask what comes back
                index = index.masked_fill(~(valid if index.dim() == 2 else valid.unsqueeze(1)), 0)

    if index is None and columns is None and sums is None and valid is None:
        # full attention without scores is what torch does best; the queries of a KV head are a sequence without a mask
        if count < width:
            key, value = key[:, :, :count], value[:, :, :count]
        q = query.reshape(batch, kv_heads, heads // kv_heads, size)
        return F.scaled_dot_product_attention(q, key, value, scale=scale).reshape(batch, heads, size), None

    if batch > 1 and index is None and length is None:
        # torch's batched product takes rows and heads as one dimension, for which token-major storage would be copied whole
        alone = [slice(row, row + 1) for row in range(batch)]
        found = [
            attend(query[row], key[row], value[row], None, None, scale, columns, by_group, None if sums is None else sums[row])
            for row in alone
        ]
        return torch.cat([out for out, _ in found]), None if columns is None else torch.cat([scores for _, scores in found])

    q = query.reshape(batch * kv_heads, heads // kv_heads, size)
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
        blank = ~valid.view(batch, 1, 1, count)
        logits = logits.view(batch, kv_heads, -1, count).masked_fill(blank, -torch.inf)
        # the second mask is for rows of length 0, whose softmax is NaN; the third keeps a NaN in an unread slot out of 0 · NaN
        weights = logits.softmax(-1).masked_fill(blank, 0).view(batch * kv_heads, -1, count)
        v = v.reshape(batch, kv_heads, count, size).masked_fill(blank.view(batch, 1, count, 1), 0).view(-1, count, size)
    out = torch.bmm(weights, v).view(batch, heads, size)
    if out.dtype != query.dtype:
        out = out.to(query.dtype)
    if columns is None and sums is None:
        return out, None

    weights = weights.detach()  # scores decide what is read, they are no part of what is computed
    weights = weights.view(batch, kv_heads, -1, count) if by_group else weights.view(batch, heads, count)
    if columns is not None:
        return out, _average(weights, width, columns, sums)
    if sums is not None:
        _add_average(weights, width, sums)
    return out, None


def _average(weights: Tensor, width: int, columns: tuple[int, int], sums: Tensor | None) -> Tensor:
    """Return the scores of `columns`, and add those of the last columns to `sums`.

    Args:
        weights: [B, H, count], or [B, G, H/G, count] for scores by KV head. Columns from `count` on have weight 0.
        width: number of all index columns, n.
        columns: as in `attend`.
        sums: as in `attend`.
    """
    start, stop = columns
    scores = weights[..., start:stop].mean(-2)
    if sums is not None:
        newest = scores[..., width - sums.shape[-1] - start :]
        sums[..., : newest.shape[-1]] += newest
    missing = stop - start - scores.shape[-1]
    return F.pad(scores, (0, missing)) if missing else scores


def _add_average(weights: Tensor, width: int, sums: Tensor) -> None:
    """Add the scores of the last columns to `sums`; arguments are those of `_average`."""
    newest = weights[..., width - sums.shape[-1] :]
    if newest.shape[-1] < sums.shape[-1]:
        sums = sums[..., : newest.shape[-1]]
    if weights.dim() == 4:
        sums += newest.mean(2)
    else:  # mean and sum in one call
        sums.unsqueeze(1).baddbmm_(_mean(weights.size(0), weights.size(1), newest.dtype, newest.device), newest)


@functools.lru_cache(maxsize=16)
def _mean(batch: int, heads: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [B, 1, H] whose product with [B, H, n] is the mean over heads."""
    with torch.inference_mode(False):
        return torch.full((), 1 / heads, dtype=dtype, device=device).expand(batch, 1, heads)


def _read_row(storage: Tensor, slots: Tensor) -> Tensor:
    """Return the vectors of one row's `storage` [G, L, D] in `slots` [n], as [G, n, D]."""
    if storage.stride(0) > storage.stride(1):
        return storage.index_select(1, slots)
    # token-major: index_select is fastest when the selected dimension is the outer one
    return storage.transpose(0, 1).index_select(0, slots).transpose(0, 1)


def _read(storage: Tensor, index: Tensor | None, count: int) -> Tensor:
    """Return the vectors of `storage` [B, G, L, D] in `index`, or in its first `count` slots, as [B·G, count, D]."""
    batch, kv_heads, _, size = storage.shape
    if index is None:
        return storage[:, :, :count].reshape(batch * kv_heads, count, size)
    index = (index.unsqueeze(1) if index.dim() == 2 else index).long()  # [B, 1 or G, n]
    device = storage.device
    b = torch.arange(batch, device=device).view(batch, 1, 1)
    g = torch.arange(kv_heads, device=device).view(1, kv_heads, 1)
    strides = storage.stride()
    if strides[3] == 1 and all(stride % size == 0 for stride in strides[:3]):
        # every [D] vector starts at a multiple of D: see the storage as one matrix of vectors, ten times faster than the general case
        rows = 1 + sum((length - 1) * stride for length, stride in zip(storage.shape[:3], strides[:3], strict=True)) // size
        flat = b * (strides[0] // size) + g * (strides[1] // size) + index * (strides[2] // size)
        return storage.as_strided((rows, size), (size, 1)).index_select(0, flat.view(-1)).view(batch * kv_heads, count, size)
    return storage[b, g, index].view(batch * kv_heads, count, size)


def _nothing(query: Tensor, kv_heads: int | None, columns: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
    """Return the result of a single row that reads no slot at all: zeros."""
    out = torch.zeros_like(query)
    if columns is None:
        return out, None
    dtype = torch.promote_types(query.dtype, torch.float32)
    width = columns[1] - columns[0]
    return out, torch.zeros((1, width) if kv_heads is None else (1, kv_heads, width), dtype=dtype, device=query.device)
