"""Public API of the kernels: which implementation runs. The implementations are in kernels/ (in a wheel: avl/_kernels).

Every operator has a specification in plain torch (`reference.py`) and Triton kernels (`triton.py`). `impl="reference"` names the PyTorch
path: the specification itself, or for core attention `cpu.py`, which computes the same in fewer operations.
"""

import functools
import importlib
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from avl._paths import KERNELS

# Hugging Face has a library called `kernels`, which transformers looks for by that name. Ours must not be imported under it, so the
# folder kernels/ has no __init__.py, and what lies in it is found as a submodule of this package: avl.kernels.core and so on. Importing
# one binds its name here, so no public function may have the name of a file or folder in kernels/.
__path__.append(str(KERNELS))

from avl.kernels.core.cpu import attend as _attend_torch  # noqa: E402
from avl.kernels.validate import check_arguments, check_values  # noqa: E402

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
        key: [B, G, L, D], any strides, dtype of `query`. Token-major storage is passed as a view,
            `[B, L, G, D].transpose(1, 2)`; one flat buffer for all rows as `[L, G, D].transpose(0, 1).expand(B, G, L, D)`.
        value: as `key`.
        index: int32 or int64 slots, [B, n] shared by all heads or [B, G, n] per KV head; None reads all L slots (n = L).
            No slot may occur twice within one row's valid prefix if the scores are to be read per slot.
        length: int32 or int64 [B]; row b reads index[b, :length[b]] and nothing behind it, which may be garbage.
            0 gives zeros for that row. None reads all n.
        scale: factor on the logits, D ** -0.5 by default.
        scores: True also returns the attention weights averaged over the query heads; (start, stop) only those of that
            range of index columns.
        group_scores: average over the query heads of each KV head even where all heads share an index, as H2O needs. With an
            index per KV head that is so anyway.
        sums: the scores of the last W' columns are added to it in place, in the same launch, whether `scores` returns them or not:
            [B, W'], or [B, G, W'] where scores are per KV head; dtype of the scores, last dimension contiguous.
        impl: "auto" (Triton for CUDA tensors where it is available, supports the dtype and head size and passes its self-check on that
            device, else the PyTorch path), "triton" or "reference". What was asked for by name runs or raises, it never falls back.
        check_index: check the values of `index` and `length` too (a GPU then waits for its host); None follows `avl.kernels.debug`.
        validate: False skips all checks of arguments, for a caller who built the arguments itself and calls this in a loop.

    Returns:
        (out, scores): `out` in the shape and dtype of `query`. `scores` is None, or float32 [B, W] aligned with `index`, zero
        behind `length`; [B, G, W] with `group_scores` or an index per KV head. float64 inputs give float64 scores.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: a shape, device or value does not fit; the sentence names the argument, what it is and what is allowed.
        RuntimeError: impl="triton" where Triton cannot run.
    """
    if validate:
        check_arguments(query, key, value, index, length, scores, group_scores, sums)
        if debug if check_index is None else check_index:
            check_values(key, index, length)
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
    attend = _attend_torch if chosen == "reference" else _triton_core().attend
    by_group = group_scores or (index is not None and index.dim() == 3)
    out, weights = attend(q, key, value, index, length, scale, columns, by_group, sums)
    return (out.unsqueeze(2) if four else out), weights


def resolve_impl(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> Literal["triton", "reference"]:
    """Return which implementation `impl` means for tensors on `device`, so that a report can name it.

    Args:
        device: of the tensors.
        impl: "auto" means "reference" on a CPU, outside what Triton supports, and where :func:`triton_trouble` finds any; a name means
            itself or raises.
        dtype: of the tensors; Triton supports float16, bfloat16 and float32. None does not ask.
        head_size: Triton supports up to 256. None does not ask.

    Returns:
        "triton", or "reference" for the PyTorch path.

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
    """Return the implementation of the work between a decoder layer's products: `add_rms_norm`, `rotate_and_store`, `silu_product`.

    kernels/layer/reference.py specifies all three. Arguments and errors as `resolve_impl`; what was chosen does not check its arguments.
    """
    return importlib.import_module(f"avl.kernels.layer.{resolve_impl(device, impl, dtype=dtype, head_size=head_size)}")


def window_ops(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> ModuleType:
    """Return the implementation of the window's bookkeeping: `enter_window`, `leave_window`, specified in kernels/window/reference.py.

    Arguments and errors as `resolve_impl`; what was chosen does not check its arguments.
    """
    return importlib.import_module(f"avl.kernels.window.{resolve_impl(device, impl, dtype=dtype, head_size=head_size)}")


@functools.cache
def _triton_error() -> str | None:
    """Return why Triton cannot be imported, or None if it can."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken install raises anything
        return f"{type(error).__name__}: {error}"
    return None


def triton_trouble(device: torch.device | str, dtype: torch.dtype | None = None, head_size: int | None = None) -> str | None:
    """Return why "auto" does not trust the Triton kernels on `device`, in a few words; None where it does, and where it needs none.

    On a GPU they are checked once per device, dtype and head size against their specifications (kernels/selfcheck.py).

    Args:
        device: where they would run.
        dtype: float16 by default.
        head_size: 64 by default.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    found = _triton_error()
    if found is not None:
        return f"triton cannot be imported ({found})"
    if device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())  # one answer per GPU, not one for whichever is current
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
