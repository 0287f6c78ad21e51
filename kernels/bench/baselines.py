"""What the kernel benchmark compares: ours in its variants, full attention, slice-then-attend, peers where they are installed."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from avl.kernels import Impl, core_attention
from avl.kernels.bench.cases import Data, Shape
from avl.kernels.bench.timing import Call, one_line


class SkippedError(Exception):
    """Why a baseline has no number."""


@dataclass(frozen=True)
class Baseline:
    """Something to time.

    Attributes:
        name: of its row.
        build: gives the call on copy i of the data.
        reads: "scattered" or "contiguous" core slots, or "all".
        scores: "none", "text" (added to their sums) or "all".
    """

    name: str
    build: Callable[[Data, int], Call]
    reads: str = "scattered"
    scores: str = "none"

    def tokens(self, shape: Shape) -> int:
        """Return the tokens that it reads per row."""
        return shape.slots if self.reads == "all" else shape.core

    def columns(self, shape: Shape) -> int:
        """Return the columns whose scores it computes."""
        return {"none": 0, "text": shape.text, "all": shape.core}[self.scores]


def ours(name: str, impl: Impl, reads: str = "scattered", scores: str = "none") -> Baseline:
    """Return our core attention, as a step of A-VL uses it.

    A core step adds the text's scores to their sums, an update step keeps all besides.
    """

    def build(data: Data, i: int) -> Call:
        query, key, value, index, length = data.query[i], data.key[i], data.value[i], data.index[reads][i], data.length[reads]
        sums = None if scores == "none" else query.new_zeros(data.batch, data.shape.text, dtype=torch.float32)
        wanted = scores == "all"
        return lambda: core_attention(query, key, value, index, length, scores=wanted, sums=sums, impl=impl, validate=False)[0]

    return Baseline(name, build, reads, scores)


def tuned(name: str, **fields: int) -> Baseline:
    """Return our kernel with the device's tiling but for some fields (--tune)."""
    from avl.kernels.core.triton import attend, tiling_for

    def build(data: Data, i: int) -> Call:
        tiling = tiling_for(torch.cuda.get_device_capability(data.query[i].device))._replace(**fields)
        sums = data.query[i].new_zeros(data.batch, data.shape.text, dtype=torch.float32)
        arguments = (
            data.query[i],
            data.key[i],
            data.value[i],
            data.index["scattered"][i],
            data.length["scattered"],
            data.shape.size**-0.5,
            None,
            False,
            sums,
        )
        return lambda: attend(*arguments, tiling=tiling)[0]

    return Baseline(name, build, scores="text")


def sdpa(data: Data, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with torch's own attention to all of `key` and `value` [B, G, n, D]."""
    grouped = data.shape.heads != data.shape.kv_heads
    return F.scaled_dot_product_attention(query.unsqueeze(2), key, value, enable_gqa=grouped).squeeze(2)


def sdpa_over_all(backend: str | None) -> Callable[[Data, int], Call]:
    """Return a builder of calls over the whole cache, by one backend of torch or by the one it chooses."""

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
    """Copy the selected tokens out of the cache, then attend to the copy: what the paper compares its operator with."""
    shape, batch = data.shape, data.batch
    index = data.index["scattered"][i].long()
    row = torch.arange(batch, device=index.device).unsqueeze(1)
    if data.layout == "tokens":
        flat = (index + row * shape.slots).flatten()

        def pick(storage: Tensor) -> Tensor:
            rows = storage.transpose(1, 2).flatten(0, 1).index_select(0, flat)
            return rows.view(batch, -1, shape.kv_heads, shape.size).transpose(1, 2)
    else:
        kv_row = torch.arange(batch * shape.kv_heads, device=index.device).view(batch, shape.kv_heads, 1)
        flat = (index.unsqueeze(1) + kv_row * shape.slots).flatten()

        def pick(storage: Tensor) -> Tensor:
            return storage.flatten(0, 2).index_select(0, flat).view(batch, shape.kv_heads, -1, shape.size)

    return lambda: sdpa(data, data.query[i], pick(data.key[i]), pick(data.value[i]))


def flat_pages(data: Data, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return copy i as one pool of tokens: keys and values [B * L, G, D], int32 row starts [B + 1] and token numbers."""
    if data.layout != "tokens":
        raise SkippedError("needs --layout tokens")
    shape, batch = data.shape, data.batch
    key, value = (storage[i].transpose(1, 2).flatten(0, 1) for storage in (data.key, data.value))
    row = torch.arange(batch, device=key.device, dtype=torch.int32).unsqueeze(1)
    starts = torch.arange(0, (batch + 1) * shape.core, shape.core, device=key.device, dtype=torch.int32)
    return key, value, starts, (data.index["scattered"][i] + row * shape.slots).flatten()


def flashinfer_pages(data: Data, i: int) -> Call:
    """Attend by FlashInfer, with pages of one token."""
    flashinfer = installed("flashinfer")
    shape, query = data.shape, data.query[i]
    key, value, starts, pages = flat_pages(data, i)
    workspace = torch.zeros(64 << 20, dtype=torch.uint8, device=query.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    heads = (shape.heads, shape.kv_heads, shape.size, 1)
    wrapper.plan(starts, pages, torch.ones_like(starts[1:]), *heads, q_data_type=data.dtype, kv_data_type=data.dtype)
    cache = (key.unsqueeze(1), value.unsqueeze(1))
    return lambda: wrapper.run(query, cache)


def sglang_decode(data: Data, i: int) -> Call:
    """Attend by SGLang's decode kernel, which gathers token by token."""
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


def installed(module: str) -> ModuleType:
    """Return the module of a peer.

    Raises:
        SkippedError: its package is not installed, or it does not load.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise SkippedError("not installed")
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise SkippedError(one_line(error)) from error


def baselines(device: torch.device, impl: Impl, tune: bool) -> list[Baseline]:
    """Return all that is timed on `device`; `tune` adds other tilings of the Triton kernels."""
    found = [
        ours("core attention", impl),
        ours("core attention, contiguous index", impl, reads="contiguous"),
        ours("core attention, text scores", impl, scores="text"),
        ours("core attention, all scores", impl, scores="all"),
        ours("core attention over all slots", impl, reads="all"),
        Baseline("full: SDPA", sdpa_over_all(None), reads="all"),
    ]
    if device.type == "cuda":
        for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
            found.append(Baseline(f"full: SDPA {backend.split('_')[0].lower()}", sdpa_over_all(backend), reads="all"))
    found += [
        Baseline("slice, then SDPA", slice_then_sdpa),
        Baseline("FlashInfer, page size 1", flashinfer_pages),
        Baseline("SGLang decode", sglang_decode),
    ]
    if tune:
        tilings: list[dict[str, int]] = [
            *({"stages": stages, "vector_tile_bytes": tile} for stages in (1, 2, 3, 4) for tile in (4096, 8192)),
            {"vector_heads": 2, "vector_tile_bytes": 16384},
            {"vector_programs": 3},
            {"vector_programs": 5},
            *({"matrix_stages": stages, "matrix_tile_bytes": tile} for stages in (2, 3) for tile in (8192, 16384)),
            {"matrix_programs": 3},
            {"matrix": 0},
        ]
        for fields in tilings:
            found.append(tuned("tiling " + " ".join(f"{name}={value}" for name, value in fields.items()), **fields))
    return found
