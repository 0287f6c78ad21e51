"""What the benchmark times on: shapes of real models, and caches, queries and indices of these shapes."""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One layer of a model half-way through 128 new tokens, with A-VL at S=45 C=30.

    Attributes:
        name: of the model.
        heads: query heads.
        kv_heads: key-value heads.
        size: of a head.
        slots: tokens of the full cache: image + 35 system + 30 question + 64 generated; 1.5 has 576 image tokens, 1.6 up to 2880.
        text: text tokens that A-VL keeps; their scores are wanted at every step.
        core: tokens that a core step reads, text included.
    """

    name: str
    heads: int
    kv_heads: int
    size: int
    slots: int
    text: int
    core: int

    def to_json(self) -> dict[str, str | int]:
        """Return the shape under the keys of schema avl.kernels.bench/1."""
        return {"groups" if name == "kv_heads" else name: value for name, value in asdict(self).items()}


GPU_SHAPES = (
    Shape("llava-1.5-7b", 32, 32, 128, 705, 114, 287),
    Shape("llava-1.6-7b", 32, 32, 128, 3009, 129, 993),
    Shape("llava-1.6-mistral-7b", 32, 8, 128, 3009, 129, 993),
)
CPU_SHAPES = (Shape("small", 6, 6, 32, 640, 64, 250), Shape("small-grouped", 8, 2, 64, 640, 64, 250))


class Data:
    """Caches, queries and indices of one shape and batch, in as many copies as it takes to read none from the L2 cache.

    Args:
        shape: of one layer.
        batch: rows.
        device: where they lie.
        dtype: of queries, keys and values.
        layout: "tokens" for token-major caches, "heads" for head-major ones.
        cold_bytes: bytes of keys and values that all copies of a core step together read at least.

    Attributes:
        query: one [B, H, D] per copy.
        key: one [B, G, L, D] per copy.
        value: one [B, G, L, D] per copy.
        index: what is read -> one index per copy: "scattered" or "contiguous" core slots, int32 [B, n], or "all", None.
        length: what is read -> [B], all of it; on the device, as the engine has it, because kernels are compiled for that.
    """

    def __init__(self, shape: Shape, batch: int, device: torch.device, dtype: torch.dtype, layout: str, cold_bytes: int) -> None:
        self.shape, self.batch, self.dtype, self.layout = shape, batch, dtype, layout
        self.copies = max(1, min(64, math.ceil(cold_bytes / kv_bytes(shape, batch, shape.core, dtype))))
        make = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=make, device=device, dtype=torch.float32).to(dtype)

        self.query = [normal(batch, shape.heads, shape.size) for _ in range(self.copies)]
        if layout == "tokens":
            size = (batch, shape.slots, shape.kv_heads, shape.size)
            self.key, self.value = ([normal(*size).transpose(1, 2) for _ in range(self.copies)] for _ in range(2))
        else:
            size = (batch, shape.kv_heads, shape.slots, shape.size)
            self.key, self.value = ([normal(*size) for _ in range(self.copies)] for _ in range(2))
        order = torch.rand(self.copies, batch, shape.slots, generator=make, device=device).argsort(-1)
        start = (shape.slots - shape.core) // 2
        contiguous = torch.arange(start, start + shape.core, device=device, dtype=torch.int32)
        self.index: dict[str, list[Tensor] | list[None]] = {
            "scattered": [slots[:, : shape.core].int().contiguous() for slots in order],
            "contiguous": [contiguous.expand(batch, -1).contiguous() for _ in range(self.copies)],
            "all": [None] * self.copies,
        }
        tokens = {"scattered": shape.core, "contiguous": shape.core, "all": shape.slots}
        self.length = {reads: torch.full((batch,), count, device=device) for reads, count in tokens.items()}


def kv_bytes(shape: Shape, batch: int, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes of K and V in `tokens` tokens of every row."""
    return 2 * batch * tokens * shape.kv_heads * shape.size * dtype.itemsize


def moved_bytes(shape: Shape, batch: int, tokens: int, dtype: torch.dtype, indexed: bool = True, columns: int = 0) -> int:
    """Return the fewest bytes that one call must move: K, V, query, output, index, and logits of score columns, written and read."""
    vectors = 2 * batch * shape.heads * shape.size * dtype.itemsize
    index = 4 * batch * tokens if indexed else 0
    return kv_bytes(shape, batch, tokens, dtype) + vectors + index + 8 * batch * shape.heads * columns
