"""The equation of core attention in plain torch, one row and one head at a time.

This is what cpu.py and triton.py are tested against. It is written to be read, not to be fast; `core_attention` never runs it.
"""

import torch
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

    Every implementation of core attention has this signature. Arguments are those of `avl.kernels.core_attention`, already checked, in
    one form each. Shapes: B rows, H query heads, G KV heads, D head size, L stored slots, n index columns.

    Args:
        query: [B, H, D].
        key: [B, G, L, D] in any strides.
        value: [B, G, L, D] in any strides.
        index: slots to read, [B, n] for all heads or [B, G, n] per KV head; None reads all L.
        length: [B], the valid prefix of each row's index; None reads all n. Below 0 means 0, above n means n.
        scale: factor on the logits.
        columns: range of index columns whose scores are returned; None returns no scores.
        by_group: average the scores over the query heads of each KV head, not over all; always so with an index [B, G, n].
        sums: [B, W'], or [B, G, W'] with `by_group`: the scores of the last W' columns are added to it.

    Returns:
        The output [B, H, D] in the dtype of `query`, and the scores [B, W], or [B, G, W] with `by_group`: float64 for float64 inputs, else
        float32, as is everything in between.
    """
    batch, heads, _ = query.shape
    kv_heads, slots = key.shape[1:3]
    if index is None:
        index = torch.arange(slots, device=key.device).expand(batch, slots)
    if index.dim() == 2:
        index = index.unsqueeze(1).expand(batch, kv_heads, -1)
    width = index.shape[-1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = torch.zeros(query.shape, dtype=dtype, device=query.device)
    weights = torch.zeros(batch, heads, width, dtype=dtype, device=query.device)
    for b in range(batch):
        count = width if length is None else min(max(int(length[b]), 0), width)
        for h in range(heads):
            g = h // (heads // kv_heads)
            read = index[b, g, :count].long()
            logits = scale * (key[b, g, read].to(dtype) @ query[b, h].to(dtype))
            weights[b, h, :count] = logits.softmax(0)
            out[b, h] = weights[b, h, :count] @ value[b, g, read].to(dtype)

    weights = weights.detach()  # scores decide what is read, they are no part of what is computed
    scores = weights.unflatten(1, (kv_heads, -1)).mean(2) if by_group else weights.mean(1)
    if sums is not None:
        sums += scores[..., width - sums.shape[-1] :]
    return out.to(query.dtype), None if columns is None else scores[..., columns[0] : columns[1]]
