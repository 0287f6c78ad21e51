"""Compact text encodings of sets and scores of image tokens, small enough to stream at every step."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np


def pack_bits(members: Iterable[int], n: int) -> str:
    """Encode a subset of ``range(n)`` as base64 of ``numpy.packbits`` (member i is the (i % 8)-th highest bit of byte i // 8)."""
    bits = np.zeros(n, dtype=bool)
    bits[np.fromiter(members, dtype=np.int64)] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")


def unpack_bits(text: str, n: int) -> np.ndarray:
    """Decode :func:`pack_bits`: base64 text -> bool array ``[n]``."""
    raw = _bytes(text)
    if raw.size != (n + 7) // 8:
        raise ValueError(f"a set of {n} tokens needs {(n + 7) // 8} bytes, this one has {raw.size}")
    return np.unpackbits(raw, count=n).astype(bool)


def pack_scores(scores: np.ndarray) -> str:
    """Encode scores ``[n]`` as base64 of little-endian float16."""
    return base64.b64encode(np.asarray(scores, dtype="<f2").tobytes()).decode("ascii")


def unpack_scores(text: str) -> np.ndarray:
    """Decode :func:`pack_scores`: base64 text -> float32 array ``[n]``."""
    raw = _bytes(text)
    if raw.size % 2:
        raise ValueError(f"packed scores take 2 bytes each, these have {raw.size}")
    return raw.view("<f2").astype(np.float32)


def _bytes(text: str) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except ValueError as error:
        raise ValueError(f"a packed set or score is not base64: {error}") from None
