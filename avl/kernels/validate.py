"""Argument checks of `core_attention`: types, shapes, dtypes and devices always, values on request."""

from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)


class Rule(NamedTuple):
    """What one argument may be.

    Attributes:
        name: of the argument.
        shapes: allowed shapes, a letter per dimension; a letter that an earlier argument fixed must have the same size again.
        dtypes: allowed dtypes; None allows that of query alone.
        optional: whether it may be None.
        remark: end of the sentence about a wrong shape.
    """

    name: str
    shapes: tuple[tuple[str, ...], ...]
    dtypes: tuple[torch.dtype, ...] | None
    optional: bool = False
    remark: str = ""


RULES = (
    Rule("query", (("B", "H", "D"), ("B", "H", "1", "D")), FLOATS, remark=": one query per row"),
    Rule("key", (("B", "G", "L", "D"),), None),
    Rule("value", (("B", "G", "L", "D"),), None),
    Rule("index", (("B", "n"), ("B", "G", "n")), INTEGERS, optional=True),
    Rule("length", (("B",),), INTEGERS, optional=True),
    Rule("sums", (("B", "W'"), ("B", "G", "W'")), FLOATS, optional=True),
)


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor | None,
    length: Tensor | None,
    scores: bool | tuple[int, int],
    group_scores: bool,
    sums: Tensor | None,
) -> None:
    """Raise unless the arguments of `core_attention` fit together. Reads no values, so it costs a GPU nothing.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: a shape or a device does not fit, or `scores` is no range of the index columns.
    """
    sizes = {"1": 1}
    for rule, tensor in zip(RULES, (query, key, value, index, length, sums), strict=True):
        if tensor is None and rule.optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{rule.name} is {_kind(tensor)}, but must be a torch.Tensor{' or None' if rule.optional else ''}.")
        _check_shape(rule, tensor, sizes)
        if tensor.dtype not in (rule.dtypes or (query.dtype,)):
            raise _wrong_dtype(rule.name, tensor, rule.dtypes, query)
        if tensor.device != query.device:
            raise ValueError(f"{rule.name} is on {tensor.device}, but must be on the device of query, {query.device}.")

    if sizes["H"] % sizes["G"]:
        raise ValueError(f"query has {sizes['H']} heads, but must have a multiple of the {sizes['G']} KV heads of key.")
    width = sizes.get("n", sizes["L"])
    _check_scores(scores, width)
    if sums is not None:
        per_head = group_scores or (index is not None and index.dim() == 3)
        _check_sums(sums, query, scores, per_head, width)


def _check_shape(rule: Rule, tensor: Tensor, sizes: dict[str, int]) -> None:
    """Raise unless `tensor` has one of the rule's shapes; add the sizes of new letters to `sizes`."""
    shape = list(tensor.shape)
    for letters in rule.shapes:
        if len(letters) == len(shape) and [sizes.get(letter, size) for letter, size in zip(letters, shape, strict=True)] == shape:
            break
    else:
        allowed = " or ".join(f"[{', '.join(letters)}]" for letters in rule.shapes)
        known = [f"{letter}={sizes[letter]}" for letter in rule.shapes[-1] if letter in sizes and letter != "1"]
        fixed = f" with {', '.join(known[:-1])}{' and ' if known[1:] else ''}{known[-1]}" if known else ""
        raise ValueError(f"{rule.name} has shape {shape}, but must be {allowed}{fixed}{rule.remark}.")
    if 0 in shape:
        raise ValueError(f"{rule.name} has shape {shape}, but must have no dimension of size 0; length=0 reads nothing.")
    sizes.update(zip(letters, shape, strict=True))


def _wrong_dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...] | None, query: Tensor) -> TypeError:
    """Return the error for a tensor that has none of `dtypes` (None: that of query)."""
    allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes or (query.dtype,))
    source = "" if dtypes and dtypes[1:] else f" with query in {query.dtype}"
    return TypeError(f"{name} has dtype {tensor.dtype}, but must be {allowed}{source}.")


def _check_scores(scores: object, width: int) -> None:
    """Raise unless `scores` is a bool or a range of the `width` index columns."""
    if isinstance(scores, bool):
        return
    pair = isinstance(scores, tuple) and len(scores) == 2 and all(type(column) is int for column in scores)
    if not pair or not 0 <= scores[0] <= scores[1] <= width:  # type: ignore[index]
        raise ValueError(f"scores is {scores!r}, but must be a bool or (start, stop) with 0 <= start <= stop <= n={width}.")


def _check_sums(sums: Tensor, query: Tensor, scores: bool | tuple[int, int], per_head: bool, width: int) -> None:
    """Raise unless `sums` can take the scores, by KV head if `per_head`, of the last of `width` index columns."""
    if (sums.dim() == 3) != per_head:
        allowed = "[B, G, W']" if per_head else "[B, W']"
        raise ValueError(f"sums has shape {list(sums.shape)}, but must be {allowed} as the scores are.")
    dtype = torch.promote_types(query.dtype, torch.float32)
    if sums.dtype != dtype:
        raise _wrong_dtype("sums", sums, (dtype,), query)
    columns = sums.shape[-1]
    if columns > width:
        raise ValueError(f"sums has shape {list(sums.shape)}, but its last dimension must be from 1 to n={width}.")
    if sums.stride(-1) != 1:
        raise ValueError(f"sums has strides {list(sums.stride())}, but its last dimension must be contiguous.")
    if isinstance(scores, tuple) and not scores[0] <= width - columns <= scores[1] == width:
        raise ValueError(f"scores is {scores!r}, but with sums it must hold the last {columns} columns and end at n={width}.")


def check_values(key: Tensor, index: Tensor | None, length: Tensor | None) -> None:
    """Raise unless every length is in 0..n and every index entry that is read is a slot of `key`. A GPU waits for its host.

    Raises:
        ValueError: a value is out of range; the sentence says where.
    """
    slots = key.shape[2]
    width = slots if index is None else index.shape[-1]
    if length is not None and bool(((length < 0) | (length > width)).any()):
        raise ValueError(f"length is {length.tolist()}, but every entry must be from 0 to n={width}.")
    if index is None:
        return
    wrong = (index < 0) | (index >= slots)
    if length is not None:
        read = torch.arange(width, device=index.device) < length.unsqueeze(1)
        wrong &= read if index.dim() == 2 else read.unsqueeze(1)
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"index{place} is {int(index[tuple(place)])}, but must be a slot from 0 to {slots - 1}.")


def _kind(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
