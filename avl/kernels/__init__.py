"""Public API of the kernels: which implementation runs. The implementations are in kernels/ (in a wheel: avl/_kernels).

Every operator has a specification in plain torch (`reference.py`) and Triton kernels (`triton.py`) for a GPU; core attention, products of a
few rows and the whole step also have kernels that numba compiles for a CPU (`numba.py`). `impl="reference"` names the PyTorch path: the
specification itself, or for core attention `cpu.py`, which computes the same in fewer operations.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from avl._paths import KERNELS

# Hugging Face has a library called `kernels`, which transformers looks for by that name. Ours must not be imported under it, so the
# folder kernels/ has no __init__.py, and what lies in it is found as a submodule of this package: avl.kernels.core and so on. Importing
# one binds its name here, so no public function may have the name of a file or folder in kernels/.
__path__.append(str(KERNELS))

from avl.kernels.core.cpu import attend as _attend_torch  # noqa: E402
from avl.kernels.validate import check_arguments, check_values  # noqa: E402

__all__ = [
    "Impl",
    "choose_product",
    "compiled_step",
    "core_attention",
    "debug",
    "layer_ops",
    "new_token_attention",
    "numba_trouble",
    "resolve_impl",
    "triton_trouble",
    "window_ops",
]

Impl = Literal["auto", "triton", "numba", "reference"]

IMPLS = ("auto", "triton", "numba", "reference")
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of the Triton and numba kernels."""
MAX_HEAD_SIZE = 256
"""Largest head of the Triton and numba kernels."""

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
        impl: "auto" (Triton for CUDA tensors and numba for those of a CPU, where it is available, supports the dtype and head size, passes
            its self-check and no gradient is asked for, else the PyTorch path), "triton", "numba" or "reference". What was asked for by
            name runs or raises, it never falls back.
        check_index: check the values of `index` and `length` too (a GPU then waits for its host); None follows `avl.kernels.debug`.
        validate: False skips all checks of arguments, for a caller who built the arguments itself and calls this in a loop.

    Returns:
        (out, scores): `out` in the shape and dtype of `query`. `scores` is None, or float32 [B, W] aligned with `index`, zero
        behind `length`; [B, G, W] with `group_scores` or an index per KV head. float64 inputs give float64 scores.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: a shape, device or value does not fit; the sentence names the argument, what it is and what is allowed.
        RuntimeError: impl="triton" or "numba" where that cannot run.
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
    if impl == "auto" and torch.is_grad_enabled() and (q.requires_grad or key.requires_grad or value.requires_grad):
        impl = "reference"  # the kernels compute no gradients
    chosen = resolve_impl(q.device, impl, dtype=q.dtype, head_size=q.shape[-1])
    attend = _attend_torch if chosen == "reference" else _core(chosen).attend
    by_group = group_scores or (index is not None and index.dim() == 3)
    out, weights = attend(q, key, value, index, length, scale, columns, by_group, sums)
    return (out.unsqueeze(2) if four else out), weights


def resolve_impl(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> Literal["triton", "numba", "reference"]:
    """Return which implementation `impl` means for tensors on `device`, so that a report can name it.

    Args:
        device: of the tensors.
        impl: "auto" means "triton" on a GPU and "numba" on a CPU, but "reference" outside what these support, and where
            :func:`triton_trouble` or :func:`numba_trouble` finds any; a name means itself or raises.
        dtype: of the tensors; both support float16, bfloat16 and float32. None does not ask.
        head_size: both support up to 256. None does not ask.

    Returns:
        "triton", "numba", or "reference" for the PyTorch path.

    Raises:
        ValueError: an unknown `impl`, or one asked for by name with an unsupported head size.
        TypeError: one asked for by name with an unsupported dtype.
        RuntimeError: one asked for by name where it is absent, or on a device it cannot run on.
    """
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    if impl == "reference":
        return "reference"
    if impl == "auto":
        known = (dtype is None or dtype in KERNEL_DTYPES) and (head_size is None or head_size <= MAX_HEAD_SIZE)
        if kind == "cuda":
            return "triton" if known and triton_trouble(device, dtype, head_size) is None else "reference"
        return "numba" if kind == "cpu" and known and numba_trouble(dtype) is None else "reference"
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}, but must be one of {', '.join(map(repr, IMPLS))}.")
    if dtype is not None and dtype not in KERNEL_DTYPES:
        raise TypeError(f"impl={impl!r} does not support {dtype}; use float16, bfloat16 or float32, or impl='reference'.")
    if head_size is not None and head_size > MAX_HEAD_SIZE:
        raise ValueError(f"impl={impl!r} supports head sizes up to {MAX_HEAD_SIZE}, not {head_size}; use impl='auto' or 'reference'.")
    if impl == "numba":
        if (error := numba_trouble(dtype)) is not None:
            raise RuntimeError(f"impl='numba' was asked for, but its kernels cannot be used ({error}); use impl='auto' or 'reference'.")
        if kind != "cpu":
            raise RuntimeError(
                f"impl='numba' was asked for, but the tensors are on {kind!r} and numba's kernels need 'cpu'; move them there, or use "
                "impl='auto' or 'reference'."
            )
        return "numba"
    if (error := _triton_error()) is not None:
        raise RuntimeError(
            f"impl='triton' was asked for, but Triton cannot be imported ({error}); install triton, or use impl='auto' or 'reference'."
        )
    if kind != "cuda" and not (kind == "cpu" and _core("triton").interpreted()):
        raise RuntimeError(
            f"impl='triton' was asked for, but the tensors are on {kind!r} and Triton needs 'cuda'; move them there, use impl='auto' or "
            "'reference', or start the process with TRITON_INTERPRET=1 to interpret the kernels on a CPU."
        )
    return "triton"


def layer_ops(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> ModuleType:
    """Return the implementation of what a step begins with and of the work between a layer's products.

    `begin_step`; `add_rms_norm`, `rotate_and_store` and `silu_product`: kernels/layer/reference.py specifies all four. Arguments and errors
    as `resolve_impl`; what was chosen does not check its arguments.
    There is none of numba: its step (`avl.kernels.step`) does this work inside.
    """
    return _ops("layer", device, impl, dtype, head_size)


def new_token_attention(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> ModuleType | None:
    """Return the module whose `attend_new` stores a step's token and attends, a launch less than in two calls; None without Triton.

    It takes the module's `NewToken`, and gives what `rotate_and_store` of `layer_ops` followed by `core_attention` gives
    (kernels/core/triton.py). Arguments and errors as `resolve_impl`; what was chosen does not check its arguments.
    """
    return _core("triton") if resolve_impl(device, impl, dtype=dtype, head_size=head_size) == "triton" else None


MOST_PRODUCT_ROWS = 16
"""Rows up to which numba's product is faster than torch's (kernels/README.md, "On a CPU")."""


def choose_product(
    device: torch.device | str, rows: int, impl: Impl = "auto", *, dtype: torch.dtype | None = None
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the product of a few rows with a weight: `torch.nn.functional.linear`, or on a CPU kernels/product/numba.py.

    Args:
        device: of the tensors.
        rows: of the first factor.
        impl: "auto" means numba's on a CPU up to :data:`MOST_PRODUCT_ROWS` rows, a name means itself.
        dtype: of the tensors.
    """
    if impl != "numba" and (rows > MOST_PRODUCT_ROWS or resolve_impl(device, impl, dtype=dtype) != "numba"):
        return torch.nn.functional.linear
    resolve_impl(device, "numba", dtype=dtype)
    found: Callable[[Tensor, Tensor, Tensor | None], Tensor] = importlib.import_module("avl.kernels.product.numba").product
    return found


def compiled_step(device: torch.device | str, *, dtype: torch.dtype, head_size: int) -> Any:
    """Return the class of a whole decode step compiled by numba (kernels/step/numba.py), None where "auto" does not mean numba."""
    if resolve_impl(device, dtype=dtype, head_size=head_size) != "numba":
        return None
    return importlib.import_module("avl.kernels.step.numba").Step


def window_ops(
    device: torch.device | str, impl: Impl = "auto", *, dtype: torch.dtype | None = None, head_size: int | None = None
) -> ModuleType:
    """Return the implementation of the window's bookkeeping: `enter_window`, `leave_window`, specified in kernels/window/reference.py.

    Arguments and errors as `resolve_impl`; what was chosen does not check its arguments. There is none of numba, as for `layer_ops`.
    """
    return _ops("window", device, impl, dtype, head_size)


def _ops(operator: str, device: torch.device | str, impl: Impl, dtype: torch.dtype | None, head_size: int | None) -> ModuleType:
    if impl == "numba":
        raise ValueError(f"there is no kernel of numba for this operator, {operator}: use impl='auto' or 'reference'.")
    chosen = resolve_impl(device, impl, dtype=dtype, head_size=head_size)
    return importlib.import_module(f"avl.kernels.{operator}.{'reference' if chosen == 'numba' else chosen}")


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
        trouble = _check_triton(*what)
        if trouble is not None and not torch.cuda.is_initialized():
            return trouble  # no GPU was reached, as in a process that leaves it to its children: they must look for themselves
        _checked[what] = trouble
    return _checked[what]


_checked: dict[tuple[torch.device, torch.dtype, int], str | None] = {}


def _check_triton(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    trouble: str | None = importlib.import_module("avl.kernels.selfcheck").find_trouble(device, dtype, head_size)
    return trouble


@functools.cache
def numba_trouble(dtype: torch.dtype | None = None) -> str | None:
    """Return why "auto" does not use the kernels that numba compiles for a CPU, in a few words; None where it does.

    They are compiled once per machine and dtype, which takes seconds, and checked once per process against their specifications
    (kernels/selfcheck.py).

    Args:
        dtype: of the tensors; float32 by default.
    """
    try:
        importlib.import_module("numba")
    except Exception as error:  # a broken install, or a numpy it does not know, raises anything
        return f"numba cannot be imported ({type(error).__name__}: {error})"
    trouble: str | None = importlib.import_module("avl.kernels.selfcheck").find_numba_trouble(dtype or torch.float32)
    return trouble


@functools.cache
def _core(impl: str) -> ModuleType:
    return importlib.import_module(f"avl.kernels.core.{impl}")
