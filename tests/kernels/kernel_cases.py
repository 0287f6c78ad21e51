"""Inputs for the kernel tests: caches in four layouts, NaN wherever nothing may be read."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

GARBAGE = 2**30  # an index entry that no read survives


@dataclass(frozen=True)
class Case:
    """B rows, H query heads, G KV heads, L slots, N index columns, head size D."""

    B: int
    H: int
    G: int
    L: int
    N: int
    D: int
    layout: str = "heads"  # heads, tokens, flat, strided
    dtype: torch.dtype = torch.float32
    lengths: tuple[int, ...] | None = None
    per_head: bool = False
    index_dtype: torch.dtype = torch.int64

    def __str__(self) -> str:
        name = f"B{self.B}-H{self.H}-G{self.G}-L{self.L}-N{self.N}-D{self.D}-{self.layout}-{str(self.dtype)[6:]}"
        return name + ("-ragged" if self.lengths else "") + ("-perhead" if self.per_head else "")


@dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    index: Tensor
    length: Tensor | None
    case: Case = field(repr=False)

    def doubled(self) -> "Inputs":
        return Inputs(self.query.double(), self.key.double(), self.value.double(), self.index, self.length, self.case)

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self.query, self.key, self.value, self.index, self.length


def make(case: Case, device: torch.device | str = "cpu", seed: int = 0, garbage: bool = True) -> Inputs:
    """Random inputs of a case. Slots that no row selects hold NaN; index entries behind `lengths` hold GARBAGE."""
    draw = torch.Generator().manual_seed(seed)
    lengths = case.lengths or (case.N,) * case.B
    index = torch.empty(case.B, case.G if case.per_head else 1, case.N, dtype=case.index_dtype)
    for b in range(case.B):
        for g in range(index.shape[1]):
            index[b, g] = torch.randperm(case.L, generator=draw)[: case.N]
    stored = [torch.full((case.B, case.G, case.L, case.D), torch.nan) for _ in range(2)]
    for b in range(case.B):
        for g in range(case.G):
            slots = index[b, g if case.per_head else 0, : lengths[b]].long()
            if case.layout == "flat":  # all rows share one buffer, so any row may have selected a slot
                for tensor in stored:
                    tensor[:, g, slots] = torch.randn(len(slots), case.D, generator=draw)
            else:
                for tensor in stored:
                    tensor[b, g, slots] = torch.randn(len(slots), case.D, generator=draw)
    if garbage:
        for b in range(case.B):
            index[b, :, lengths[b] :] = GARBAGE
    query = torch.randn(case.B, case.H, case.D, generator=draw).to(device, case.dtype)
    key, value = (lay_out(tensor.to(device, case.dtype), case.layout) for tensor in stored)
    length = None if case.lengths is None else torch.tensor(lengths, device=device, dtype=case.index_dtype)
    index = (index if case.per_head else index[:, 0]).to(device)
    return Inputs(query, key, value, index, length, case)


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """A view [B, G, L, D] with the values of `tensor`, stored as a cache might."""
    batch, groups, slots, size = tensor.shape
    if layout == "heads":
        return tensor.contiguous()
    if layout == "tokens":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "flat":
        return tensor[0].transpose(0, 1).contiguous().permute(1, 0, 2)[None].expand(batch, groups, slots, size)
    if layout == "strided":  # padded rows, and the head size not innermost
        padded = torch.full((batch, size + 3, groups, slots), torch.nan, dtype=tensor.dtype, device=tensor.device)
        padded[:, :size] = tensor.permute(0, 3, 1, 2)
        return padded[:, :size].permute(0, 2, 3, 1)
    raise ValueError(layout)
