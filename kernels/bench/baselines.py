"""Who competes in the kernel benchmark: ours in its variants, full attention, slice-then-attend, peers where they are installed."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avl.kernels import Impl, core_attention
from avl.kernels.bench.timing import Call, one_line


@dataclass(frozen=True)
class Shape:
    """One layer of a model half-way through 128 new tokens, with A-VL at S=45 C=30."""

    name: str
    heads: int
    groups: int
    size: int
    slots: int  # tokens of the full cache: image + 35 system + 30 question + 64 generated; 1.5 has 576 image tokens, 1.6 up to 2880
    text: int  # text tokens that A-VL keeps; their scores are wanted at every step
    core: int  # tokens that a core step reads, text included


class SkippedError(Exception):
    """Why a contender has no number."""


class Data:
    """Caches, queries and indices of one shape and batch, in as many copies as it takes to read none from the L2 cache."""

    def __init__(self, shape: Shape, batch: int, device: torch.device, dtype: torch.dtype, layout: str, cold_bytes: int) -> None:
        self.shape, self.batch, self.dtype, self.layout = shape, batch, dtype, layout
        self.itemsize = dtype.itemsize
        read = kv_bytes(self, shape.core)
        self.copies = max(1, min(64, math.ceil(cold_bytes / read)))
        make = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=make, device=device, dtype=torch.float32).to(dtype)

        self.query = [normal(batch, shape.heads, shape.size) for _ in range(self.copies)]
        if layout == "tokens":
            size = (batch, shape.slots, shape.groups, shape.size)
            self.key, self.value = ([normal(*size).transpose(1, 2) for _ in range(self.copies)] for _ in range(2))
        else:
            size = (batch, shape.groups, shape.slots, shape.size)
            self.key, self.value = ([normal(*size) for _ in range(self.copies)] for _ in range(2))
        order = torch.rand(self.copies, batch, shape.slots, generator=make, device=device).argsort(-1)
        self.scattered = [index[:, : shape.core].int().contiguous() for index in order]
        start = (shape.slots - shape.core) // 2
        contiguous = torch.arange(start, start + shape.core, device=device, dtype=torch.int32)
        self.contiguous = [contiguous.expand(batch, -1).contiguous() for _ in range(self.copies)]


def kv_bytes(data: Data, tokens: int) -> int:
    """Bytes of K and V in `tokens` tokens of every row."""
    return 2 * data.batch * tokens * data.shape.groups * data.shape.size * data.itemsize


def moved_bytes(data: Data, tokens: int, indexed: bool = True, columns: int = 0) -> int:
    """Fewest bytes that one call must move: K, V, query, output, index, and the logits of the score columns, written and read."""
    shape = data.shape
    vectors = 2 * data.batch * shape.heads * shape.size * data.itemsize
    return kv_bytes(data, tokens) + vectors + (4 * data.batch * tokens if indexed else 0) + 8 * data.batch * shape.heads * columns


@dataclass
class Contender:
    """Something to time: `build(data, i)` gives a call on copy i; `tokens` is what it reads per row."""

    name: str
    build: Callable[[Data, int], Call]
    tokens: str = "core"  # or "full"
    scores: str = "none"  # or "text", "all"
    index: str = "scattered"  # or "contiguous"


def ours(name: str, impl: Impl, tokens: str = "core", scores: str = "none", index: str = "scattered") -> Contender:
    def build(data: Data, i: int) -> Call:
        slots = None if tokens == "full" else getattr(data, index)[i]
        query, key, value = data.query[i], data.key[i], data.value[i]
        # as a step uses it: a core step adds the text's scores to their sums, an update step keeps all
        sums = query.new_zeros(data.batch, data.shape.text, dtype=torch.float32) if scores == "text" else None
        wanted = scores == "all"
        return lambda: core_attention(query, key, value, slots, scores=wanted, sums=sums, impl=impl, validate=False)[0]

    return Contender(name, build, tokens, scores, index)


def score_columns(data: Data, scores: str) -> int:
    return {"none": 0, "text": data.shape.text, "all": data.shape.core}[scores]


def tuned(name: str, **fields: int) -> Contender:
    """Our kernel with other tilings (--tune)."""
    from avl.kernels.core.triton import Tiling, attend

    def build(data: Data, i: int) -> Call:
        scale, tiling = data.shape.size**-0.5, Tiling(**fields)
        sums = data.query[i].new_zeros(data.batch, data.shape.text, dtype=torch.float32)
        arguments = (data.query[i], data.key[i], data.value[i], data.scattered[i], None, scale, None, False, sums)
        return lambda: attend(*arguments, tiling=tiling)[0]

    return Contender(name, build, scores="text")


def sdpa(data: Data, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    grouped = data.shape.heads != data.shape.groups
    return F.scaled_dot_product_attention(query.unsqueeze(2), key, value, enable_gqa=grouped).squeeze(2)


def sdpa_over_all(backend: str | None) -> Callable[[Data, int], Call]:
    def build(data: Data, i: int) -> Call:
        def call() -> Tensor:
            if backend is None:
                return sdpa(data, data.query[i], data.key[i], data.value[i])
            from torch.nn.attention import SDPBackend, sdpa_kernel

            with sdpa_kernel(getattr(SDPBackend, backend)):
                return sdpa(data, data.query[i], data.key[i], data.value[i])

        return call

    return build


def slice_then_sdpa(data: Data, i: int) -> Call:
    """What the paper compares its operator with: copy the selected tokens out of the cache, then attend to the copy."""
    shape, batch = data.shape, data.batch
    index = data.scattered[i].long()
    row = torch.arange(batch, device=index.device).unsqueeze(1)
    if data.layout == "tokens":
        flat = (index + row * shape.slots).flatten()

        def pick(storage: Tensor) -> Tensor:
            rows = storage.transpose(1, 2).flatten(0, 1).index_select(0, flat)
            return rows.view(batch, -1, shape.groups, shape.size).transpose(1, 2)
    else:
        group = torch.arange(batch * shape.groups, device=index.device).view(batch, shape.groups, 1)
        flat = (index.unsqueeze(1) + group * shape.slots).flatten()

        def pick(storage: Tensor) -> Tensor:
            return storage.flatten(0, 2).index_select(0, flat).view(batch, shape.groups, -1, shape.size)

    return lambda: sdpa(data, data.query[i], pick(data.key[i]), pick(data.value[i]))


def flat_pages(data: Data, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Copy i as one pool of tokens: keys and values [B * L, G, D], int32 row starts [B + 1] and token numbers."""
    if data.layout != "tokens":
        raise SkippedError("needs --layout tokens")
    shape, batch = data.shape, data.batch
    key, value = (storage[i].transpose(1, 2).flatten(0, 1) for storage in (data.key, data.value))
    row = torch.arange(batch, device=key.device, dtype=torch.int32).unsqueeze(1)
    starts = torch.arange(0, (batch + 1) * shape.core, shape.core, device=key.device, dtype=torch.int32)
    return key, value, starts, (data.scattered[i] + row * shape.slots).flatten()


def flashinfer_pages(data: Data, i: int) -> Call:
    flashinfer = installed("flashinfer")
    shape, query = data.shape, data.query[i]
    key, value, starts, pages = flat_pages(data, i)
    workspace = torch.zeros(64 << 20, dtype=torch.uint8, device=query.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    heads = (shape.heads, shape.groups, shape.size, 1)
    wrapper.plan(starts, pages, torch.ones_like(starts[1:]), *heads, q_data_type=data.dtype, kv_data_type=data.dtype)
    cache = (key.unsqueeze(1), value.unsqueeze(1))
    return lambda: wrapper.run(query, cache)


def sglang_decode(data: Data, i: int) -> Call:
    decode = installed("sglang.srt.layers.attention.triton_ops.decode_attention")
    shape, query = data.shape, data.query[i]
    key, value, starts, pages = flat_pages(data, i)
    most = 8
    splits = torch.full((data.batch,), most, dtype=torch.int32, device=query.device)
    part = torch.empty(data.batch, shape.heads, most, shape.size, dtype=torch.float32, device=query.device)
    lse = torch.empty(data.batch, shape.heads, most, dtype=torch.float32, device=query.device)
    out = torch.empty_like(query)

    def call() -> Tensor:
        buffers = (starts, pages, part, lse, splits, most)
        decode.decode_attention_fwd(query, key, value, out, *buffers, shape.size**-0.5, 1.0, 1.0)
        return out

    return call


def installed(module: str):
    """The module, or SkippedError: "not installed" if its package is absent, the error if it does not load."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise SkippedError("not installed")
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise SkippedError(one_line(error)) from error


def contenders(device: torch.device, impl: Impl, tune: bool) -> list[Contender]:
    found = [
        ours("core attention", impl),
        ours("core attention, contiguous index", impl, index="contiguous"),
        ours("core attention, text scores", impl, scores="text"),
        ours("core attention, all scores", impl, scores="all"),
        ours("core attention over all slots", impl, tokens="full"),
        Contender("full: SDPA", sdpa_over_all(None), tokens="full"),
    ]
    if device.type == "cuda":
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
            found.append(Contender(f"full: SDPA {backend.split('_')[0].lower()}", sdpa_over_all(backend), tokens="full"))
    found += [
        Contender("slice, then SDPA", slice_then_sdpa),
        Contender("FlashInfer, page size 1", flashinfer_pages),
        Contender("SGLang decode", sglang_decode),
    ]
    if tune:
        for fields in ({"vector_heads": 2}, {"vector_heads": 4}, {"vector_tile": 2048}, {"vector_tile": 8192}, {"warps": 2}, {"warps": 8}):
            found.append(tuned("tiling " + " ".join(f"{name}={value}" for name, value in fields.items()), **fields))
        for fields in ({"stages": 3}, {"matrix_tile_bytes": 8192}, {"matrix_tile_bytes": 32768}):
            found.append(tuned("tiling " + " ".join(f"{name}={value}" for name, value in fields.items()), **fields))
        for programs in (4, 16):
            found.append(tuned(f"tiling programs={programs}", programs_per_multiprocessor=programs))
    return found
