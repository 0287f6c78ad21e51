"""Public API of the kernels: validation and dispatch. The implementations are in kernels/ (in a wheel: avl/_kernels)."""

import functools
import importlib
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from avl._paths import KERNELS

# Hugging Face has a library called `kernels`, which transformers looks for by that name. Ours must not be imported under it,
# so the folder kernels/ has no __init__.py and its modules are submodules of this package: avl.kernels.core and so on.
__path__.append(str(KERNELS))

from avl.kernels.core.reference import attend as _attend_reference  # noqa: E402

__all__ = ["Impl", "core_attention", "debug", "layer_ops", "resolve_impl", "triton_trouble", "window_ops"]

Impl = Literal["auto", "triton", "reference"]

IMPLS = ("auto", "triton", "reference")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TRITON_MAX_HEAD_SIZE = 256

debug = False
"""Set to True to check the values of every `index` and `length`, not only their shapes. On a GPU that waits for the device."""


def core_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor | None,
    length: Tensor | None = None,
    *,
    scale: float | None = None,
    scores: bool | tuple[int, int] = False,
    group_scores: bool = False,
    sums: Tensor | None = None,
    impl: Impl = "auto",
    check_index: bool | None = None,
    validate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Attend with one query per row to chosen slots of the KV cache, in place (paper: section 4.3, Figure 8).

    Keys are stored after RoPE, so the order of slots means nothing: `index` may be unsorted, and text and image slots are simply
    both in it. The scores come from the same pass over the keys as the output.

    Shapes: B rows, H query heads, G KV heads (G divides H), D head size, L stored slots, n index columns, W = n or stop - start.

    Args:
        query: [B, H, D] or [B, H, 1, D]; float16, bfloat16, float32 (float64: reference only).
        key, value: [B, G, L, D], any strides, dtype of `query`. Token-major storage is passed as a view,
            `[B, L, G, D].transpose(1, 2)`; one flat buffer for all rows as `[L, G, D].transpose(0, 1).expand(B, G, L, D)`.
        index: int32 or int64 slots, [B, n] shared by all heads or [B, G, n] per KV head; None reads all L slots (n = L).
            No slot may occur twice within one row's valid prefix if the scores are to be read per slot.
        length: int32 or int64 [B]; row b reads index[b, :length[b]] and nothing behind it, which may be garbage.
            0 gives zeros for that row. None reads all n.
        scale: factor on the logits, D ** -0.5 by default.
        scores: True also returns the attention weights averaged over the query heads; (start, stop) only those of that
            range of index columns.
        group_scores: average over the query heads of each KV group even where all heads share an index, as H2O needs. With an
            index per KV head that is so anyway.
        sums: the scores of the last W' columns are added to it in place, in the same launch, whether `scores` returns them or not:
            [B, W'], or [B, G, W'] where scores are per KV head; dtype of the scores, last dimension contiguous.
        impl: "auto" (Triton for CUDA tensors where it is available, supports the dtype and head size and passes its self-check on that
            device, else the reference), "triton" or "reference". What was asked for by name runs or raises, it never falls back.
        check_index: check the values of `index` and `length` too (a GPU then waits for its host); None follows `avl.kernels.debug`.
        validate: False skips all checks, for a caller who built the arguments itself and calls this in a loop.

    Returns:
        (out, scores): `out` in the shape and dtype of `query`. `scores` is None, or float32 [B, W] aligned with `index`, zero
        behind `length`; [B, G, W] with `group_scores` or an index per KV head. float64 inputs give float64 scores.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: a shape, device or value does not fit; the sentence names the argument, what it is and what is allowed.
        RuntimeError: impl="triton" where Triton cannot run.
    """
    if validate:
        _check_arguments(query, key, value, index, length, scores, impl)
        if sums is not None:
            _check_sums(sums, query, key, index, scores, group_scores)
        if debug if check_index is None else check_index:
            _check_values(key, index, length)
    four = query.dim() == 4
    q = query[:, :, 0] if four else query
    if scale is None:
        scale = q.shape[-1] ** -0.5
    columns: tuple[int, int] | None
    if scores is False:
        columns = None
    elif scores is True:
        columns = (0, key.shape[2] if index is None else index.shape[-1])
    else:
        columns = scores
    chosen = resolve_impl(q.device, impl, dtype=q.dtype, head_size=q.shape[-1])
    attend = _attend_reference if chosen == "reference" else _triton_core().attend
    by_group = group_scores or (index is not None and index.dim() == 3)
    out, weights = attend(q, key, value, index, length, scale, columns, by_group, sums)
    return (out.unsqueeze(2) if four else out), weights


def resolve_impl(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> Literal["triton", "reference"]:
    """Say which implementation `core_attention` runs for tensors on `device`, so that a report can name it.

    Outside what Triton supports (`dtype` float16, bfloat16 or float32; `head_size` up to 256) "auto" means the reference, and so it
    does where :func:`triton_trouble` finds any.

    Raises:
        ValueError: an unknown `impl`, or impl="triton" with an unsupported head size.
        TypeError: impl="triton" with an unsupported dtype.
        RuntimeError: impl="triton" where Triton is absent, or on a device it cannot run on.
    """
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    if impl == "reference" or (impl == "auto" and kind == "cpu"):
        return "reference"
    supported = (dtype is None or dtype in TRITON_DTYPES) and (head_size is None or head_size <= TRITON_MAX_HEAD_SIZE)
    if impl == "auto":
        return "triton" if kind == "cuda" and supported and triton_trouble(device, dtype, head_size) is None else "reference"
    if impl != "triton":
        raise ValueError(f"impl is {impl!r}, but must be one of {', '.join(map(repr, IMPLS))}.")
    if dtype is not None and dtype not in TRITON_DTYPES:
        raise TypeError(f"impl='triton' does not support {dtype}; use float16, bfloat16 or float32, or impl='reference'.")
    if not supported:
        raise ValueError(
            f"impl='triton' supports head sizes up to {TRITON_MAX_HEAD_SIZE}, not {head_size}; use impl='auto' or 'reference'."
        )
    error = _triton_error()
    if error is not None:
        raise RuntimeError(
            f"impl='triton' was asked for, but Triton cannot be imported ({error}); install triton, or use impl='auto' or 'reference'."
        )
    if kind != "cuda" and not (kind == "cpu" and _triton_core().interpreted()):
        raise RuntimeError(
            f"impl='triton' was asked for, but the tensors are on {kind!r} and Triton needs 'cuda'; move them there, use impl='auto' or "
            "'reference', or start the process with TRITON_INTERPRET=1 to interpret the kernels on a CPU."
        )
    return "triton"


def layer_ops(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> ModuleType:
    """The implementation of the work between a decoder layer's products: `add_rms_norm`, `rotate_and_store`, `silu_product`.

    kernels/reference_layer.py specifies all three. Arguments and errors as `resolve_impl`; what was chosen does not check its arguments.
    """
    return importlib.import_module(f"avl.kernels.layer.{resolve_impl(device, impl, dtype=dtype, head_size=head_size)}")


def window_ops(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> ModuleType:
    """The implementation of the window's bookkeeping: `enter_window`, `leave_window`, specified in kernels/reference_window.py.

    Arguments and errors as `resolve_impl`; what was chosen does not check its arguments.
    """
    return importlib.import_module(f"avl.kernels.window.{resolve_impl(device, impl, dtype=dtype, head_size=head_size)}")


@functools.cache
def _triton_error() -> str | None:
    """Why Triton cannot be imported, or None if it can."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken install raises anything
        return f"{type(error).__name__}: {error}"
    return None


def triton_trouble(device: torch.device | str, dtype: torch.dtype | None = None, head_size: int | None = None) -> str | None:
    """Why "auto" does not trust the Triton kernels on `device`, in a few words; None where it does, and where it needs none.

    On a GPU they are checked once per device, dtype and head size against the reference (kernels/selfcheck.py): float16 and 64 where those
    are not given.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    found = _triton_error()
    if found is not None:
        return f"triton cannot be imported ({found})"
    what = device, dtype or torch.float16, head_size or 64
    if what not in _checked:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return None  # nothing may wait for the device now
        _checked[what] = _check_triton(*what)
    return _checked[what]


_checked: dict[tuple[torch.device, torch.dtype, int], str | None] = {}


def _check_triton(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    trouble: str | None = importlib.import_module("avl.kernels.selfcheck").find_trouble(device, dtype, head_size)
    return trouble


@functools.cache
def _triton_core() -> ModuleType:
    return importlib.import_module("avl.kernels.core.triton")


def _check_arguments(
    query: Tensor, key: Tensor, value: Tensor, index: Tensor | None, length: Tensor | None, scores: object, impl: str
) -> None:
    """Raise unless types, shapes, dtypes and devices fit together. Reads no values, so it costs a GPU nothing."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {_kind(tensor)}, but must be a torch.Tensor.")
    shape = query.shape
    if not (len(shape) == 3 or (len(shape) == 4 and shape[2] == 1)):
        raise ValueError(f"query has shape {_show(query)}, but must be [B, H, D] or [B, H, 1, D]: one query per row.")
    batch, heads, size = shape[0], shape[1], shape[-1]
    stored = key.shape
    if len(stored) != 4 or stored[0] != batch or stored[3] != size:
        raise ValueError(f"key has shape {_show(key)}, but must be [B, G, L, D] with B={batch} and D={size} as in query {_show(query)}.")
    if value.shape != stored:
        raise ValueError(f"value has shape {_show(value)}, but must have the shape of key, {_show(key)}.")
    groups, slots = stored[1], stored[2]
    if 0 in shape or groups == 0 or slots == 0:
        raise ValueError(f"query {_show(query)} and key {_show(key)} must have no dimension of size 0.")
    if heads % groups:
        raise ValueError(f"query has {heads} heads, but must have a multiple of the {groups} KV heads of key.")
    dtype, device = query.dtype, query.device
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise TypeError(f"query has dtype {dtype}, but must be float16, bfloat16, float32 or float64.")
    if key.dtype != dtype or value.dtype != dtype:
        raise TypeError(f"key is {key.dtype} and value is {value.dtype}, but both must have the dtype of query, {dtype}.")
    if key.device != device or value.device != device:
        raise ValueError(f"key is on {key.device} and value on {value.device}, but both must be on the device of query, {device}.")

    width = slots
    if index is not None:
        if not isinstance(index, Tensor):
            raise TypeError(f"index is {_kind(index)}, but must be a torch.Tensor or None.")
        width = index.shape[-1] if index.dim() else 0
        if index.shape != (batch, width) and index.shape != (batch, groups, width):
            raise ValueError(
                f"index has shape {_show(index)}, but must be [B, n] or [B, G, n] with B={batch} and G={groups} as in key {_show(key)}."
            )
        if width == 0:
            raise ValueError(f"index has shape {_show(index)}, but must have at least one column; use length=0 to read nothing.")
        if index.dtype != torch.int64 and index.dtype != torch.int32:
            raise TypeError(f"index has dtype {index.dtype}, but must be int32 or int64.")
        if index.device != device:
            raise ValueError(f"index is on {index.device}, but must be on the device of query, {device}.")
    if length is not None:
        if not isinstance(length, Tensor):
            raise TypeError(f"length is {_kind(length)}, but must be a torch.Tensor or None.")
        if length.shape != (batch,):
            raise ValueError(f"length has shape {_show(length)}, but must be [B] with B={batch}.")
        if length.dtype != torch.int64 and length.dtype != torch.int32:
            raise TypeError(f"length has dtype {length.dtype}, but must be int32 or int64.")
        if length.device != device:
            raise ValueError(f"length is on {length.device}, but must be on the device of query, {device}.")
    if scores is not False and scores is not True:
        pair = isinstance(scores, tuple) and len(scores) == 2 and all(type(column) is int for column in scores)
        if not pair or not 0 <= scores[0] <= scores[1] <= width:  # type: ignore[index]
            raise ValueError(f"scores is {scores!r}, but must be a bool or (start, stop) with 0 <= start <= stop <= n={width}.")
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}, but must be one of {', '.join(map(repr, IMPLS))}.")


def _check_sums(
    sums: object, query: Tensor, key: Tensor, index: Tensor | None, scores: bool | tuple[int, int], group_scores: bool
) -> None:
    """Raise unless `sums` can take the scores of the last columns."""
    if not isinstance(sums, Tensor):
        raise TypeError(f"sums is {_kind(sums)}, but must be a torch.Tensor or None.")
    batch, groups, slots = key.shape[:3]
    width = slots if index is None else index.shape[-1]
    per_group = group_scores or (index is not None and index.dim() == 3)
    leading = (batch, groups) if per_group else (batch,)
    if sums.shape[:-1] != leading or not 0 < sums.shape[-1] <= width:
        named = f"[B, G, W'] with B={batch}, G={groups}" if per_group else f"[B, W'] with B={batch}"
        raise ValueError(f"sums has shape {_show(sums)}, but must be {named} and W' from 1 to n={width}.")
    dtype = torch.promote_types(query.dtype, torch.float32)
    if sums.dtype != dtype:
        raise TypeError(f"sums has dtype {sums.dtype}, but must have that of the scores, {dtype}.")
    if sums.device != query.device or sums.stride(-1) != 1:
        raise ValueError(f"sums must be on the device of query, {query.device}, with a contiguous last dimension.")
    if isinstance(scores, tuple) and (scores[1] != width or scores[0] > width - sums.shape[-1]):
        raise ValueError(f"scores is {scores!r}, but with sums it must hold the last {sums.shape[-1]} columns: end at n={width}.")


def _check_values(key: Tensor, index: Tensor | None, length: Tensor | None) -> None:
    """Raise unless every length is in 0..n and every index entry that is read is a slot of `key`."""
    slots = key.shape[2]
    width = slots if index is None else index.shape[-1]
    if length is not None and bool(((length < 0) | (length > width)).any()):
        raise ValueError(f"length holds {length.tolist()}, but every entry must be from 0 to n={width}.")
    if index is None:
        return
    wrong = (index < 0) | (index >= slots)
    if length is not None:
        read = torch.arange(width, device=index.device) < length.unsqueeze(1)
        wrong &= read if index.dim() == 2 else read.unsqueeze(1)
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"index{place} is {int(index[tuple(place)])}, but must be a slot from 0 to {slots - 1}.")


def _show(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _kind(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
