"""Compact text encodings of sets and scores of image tokens, small enough to stream at every step.

Sets are exact. A layer's scores over N image tokens are one of three texts, told apart by their prefix:

* base64 of N little-endian float16, without a prefix: what a library call records.
* ``"d:"`` and base64 of N bytes, one code per token: what the page records.
* ``"t:"`` and base64 of k, k gaps and k codes, of the k highest tokens in ascending order, where the page's run has too many scores. k
  and the gaps are LEB128 varints. A gap is the token minus the one listed before it, -1 for the first, so it is at least 1. What is not
  listed is unknown, and no higher.

A code c of 1 to 255 means 2 ** ((c - 255) / 12), at most 3 % off; 0 means less than 4.1e-7, or nothing.
"""

from __future__ import annotations

import base64
import bisect
from collections.abc import Iterable

import numpy as np

SCORES_BYTES = 9_400_000
"""Of a run's recorded attention on the page, as JSON, all arms together: with its sets, a run at LLaVA-1.6's size then takes 12 MB."""

FEWEST = 32  # tokens that a layer lists, whatever the budget
CODES = 255
STEPS = 12  # codes per factor of 2
ROW_BYTES = 64  # of a layer beside its packed scores, as JSON: shares, rest, quotes and commas
EVENT_BYTES = 100  # of a pass beside its layers

_VALUES = np.concatenate([[0.0], 2.0 ** ((np.arange(1, CODES + 1) - CODES) / STEPS)]).astype(np.float32)


def pack_bits(members: Iterable[int], n: int) -> str:
    """Encode a subset of ``range(n)`` as base64 of ``numpy.packbits`` (member i is the (i % 8)-th highest bit of byte i // 8)."""
    bits = np.zeros(n, dtype=bool)
    bits[np.fromiter(members, dtype=np.int64)] = True
    return _text(np.packbits(bits))


def unpack_bits(text: str, n: int) -> np.ndarray:
    """Decode :func:`pack_bits`: base64 text -> bool array ``[n]``."""
    raw = _bytes(text)
    if raw.size != (n + 7) // 8:
        raise ValueError(f"a set of {n} tokens needs {(n + 7) // 8} bytes, this one has {raw.size}")
    return np.unpackbits(raw, count=n).astype(bool)


def pack_exact(scores: np.ndarray) -> str:
    """Encode the scores ``[n]`` of a layer as float16."""
    return _text(np.asarray(scores, dtype="<f2"))


def score_codes(scores: np.ndarray) -> np.ndarray:
    """Return the code of every score, uint8, in the shape of ``scores``.

    Raises:
        ValueError: a score is negative or no number.
    """
    if not (np.asarray(scores) >= 0).all():
        raise ValueError("a score is negative or no number")
    with np.errstate(divide="ignore"):
        exact = CODES + STEPS * np.log2(np.asarray(scores, dtype=np.float64))
    codes: np.ndarray = np.clip(np.rint(exact), 0, CODES).astype(np.uint8)
    return codes


def pack_scores(scores: np.ndarray, listed: int | None = None) -> str:
    """Encode the scores ``[n]`` of a layer as codes.

    Args:
        scores: at least 0, and 1 at most.
        listed: the most tokens that the text lists, the highest; None for all of them.

    Raises:
        ValueError: see :func:`score_codes`.
    """
    codes = score_codes(scores)
    if listed is None or listed >= codes.size:
        return "d:" + _text(codes)
    tokens = np.sort(np.argpartition(-np.asarray(scores), listed - 1)[:listed]) if listed else np.empty(0, np.int64)
    tokens = tokens[codes[tokens] > 0]
    gaps = np.diff(tokens, prepend=-1)
    return "t:" + _text(np.concatenate([_varints(np.array([tokens.size])), _varints(gaps), codes[tokens]]))


def unpack_scores(text: str, n: int) -> np.ndarray:
    """Decode the scores of a layer: text -> float32 array ``[n]``, NaN for tokens that the text does not list.

    Raises:
        ValueError: the text is damaged, or of another number of tokens; in one sentence.
    """
    if text.startswith("t:"):
        return _unpack_top(_bytes(text[2:]), n)
    if text.startswith("d:"):
        codes = _bytes(text[2:])
        _need_scores(codes.size, n)
        values: np.ndarray = _VALUES[codes]
        return values
    raw = _bytes(text)
    if raw.size % 2:
        raise ValueError(f"packed scores take 2 bytes each, these have {raw.size}")
    _need_scores(raw.size // 2, n)
    scores = raw.view("<f2").astype(np.float32)
    if not (np.isfinite(scores).all() and (scores >= 0).all()):
        raise ValueError("packed scores hold one that is negative or no number")
    return scores


def listed_tokens(n_image: int, layers: int, passes: int, arms: int, budget: int | None = SCORES_BYTES) -> int | None:
    """Return how many image tokens each layer lists per pass so that a run's attention takes ``budget`` bytes of JSON; None for all.

    The prompt's pass and the mean over layers are always whole. What is left of the budget is shared evenly among the layers of all other
    passes, but a layer lists :data:`FEWEST` tokens at least. Short answers and small models come out whole.

    Args:
        n_image: image tokens of row 0.
        layers: of the text decoder.
        passes: of one arm, the prompt's included.
        arms: of the run.
        budget: bytes of JSON of all arms; None for no limit.
    """
    if budget is None or scores_bytes(n_image, layers, passes, arms, None) <= budget:
        return None
    fixed = scores_bytes(n_image, layers, passes, arms, 0)
    room = (budget - fixed) // (arms * layers * (passes - 1)) // 4 * 3 if passes > 1 else 0
    listed = max(FEWEST, (room - _top_bytes(n_image, 0)) // 2)
    return listed if _top_bytes(n_image, listed) < n_image else None


def scores_bytes(n_image: int, layers: int, passes: int, arms: int, listed: int | None) -> int:
    """Return how many bytes of JSON a run's recorded attention takes at most. Arguments as of :func:`listed_tokens`, and its answer."""
    dense = _base64_bytes(n_image)
    each = dense if listed is None else _base64_bytes(_top_bytes(n_image, listed)) if listed else 0
    of_arm = layers * dense + (passes - 1) * layers * each + passes * (dense + layers * ROW_BYTES + EVENT_BYTES)
    return arms * of_arm


def most_passes(n_image: int, layers: int, passes: int, arms: int, most: int) -> int:
    """Return how many of ``passes`` take ``most`` bytes together; 0 where one takes more. Others as of :func:`listed_tokens`."""

    def size(number: int) -> int:
        return scores_bytes(n_image, layers, number, arms, listed_tokens(n_image, layers, number, arms))

    return bisect.bisect_right(range(1, passes + 1), most, key=size)


def _top_bytes(n: int, listed: int) -> int:
    """Bytes of a text that lists so many of n tokens, at most."""
    return 3 + 2 * listed + _long_gaps(n)


def _long_gaps(n: int) -> int:
    """How many bytes more than one the gaps of a list take together, at most."""
    return n // 2**7 + n // 2**14 + n // 2**21


def _base64_bytes(n: int) -> int:
    return (n + 2) // 3 * 4


def _need_scores(found: int, n: int) -> None:
    if found != n:
        raise ValueError(f"packed scores are of {found} image tokens, not of {n}")


def _unpack_top(raw: np.ndarray, n: int) -> np.ndarray:
    ends = np.flatnonzero(raw < 128) + 1  # behind each varint; in codes too
    if not ends.size or ends[0] > 5:
        raise ValueError("packed scores list no number of tokens")
    count = _varint(raw[: ends[0]])
    if count > n:
        raise ValueError(f"packed scores list {count} of {n} image tokens")
    stop = int(ends[count]) if count < ends.size else raw.size
    if raw.size - stop != count:
        raise ValueError(f"packed scores list {count} image tokens, and hold {max(0, raw.size - stop)} scores")
    starts = ends[:count]
    lengths = ends[1 : count + 1] - starts
    if count and lengths.max() > 4:
        raise ValueError("packed scores list a token beyond all image tokens")
    gaps = np.zeros(count, dtype=np.int64)
    for place in range(int(lengths.max()) if count else 0):
        has = lengths > place
        gaps[has] |= (raw[starts[has] + place] & 127).astype(np.int64) << (7 * place)
    tokens = np.cumsum(gaps) - 1
    if count and (gaps.min() < 1 or tokens[-1] >= n):
        raise ValueError("packed scores list a token twice, or beyond all image tokens")
    codes = raw[stop:]
    if not codes.all():
        raise ValueError("packed scores list a token without a score")
    scores = np.full(n, np.nan, dtype=np.float32)
    scores[tokens] = _VALUES[codes]
    return scores


def _varint(raw: np.ndarray) -> int:
    return sum(int(byte & 127) << (7 * place) for place, byte in enumerate(raw))


def _varints(numbers: np.ndarray) -> np.ndarray:
    """Encode numbers of at least 0 and below 2**28 as LEB128: 7 bits a byte, lowest first, the top bit set where another follows."""
    shifts = 7 * np.arange(4)
    parts = (numbers[:, None] >> shifts) & 127
    used = (numbers[:, None] >> shifts) > 0
    used[:, 0] = True
    follows = np.zeros_like(used)
    follows[:, :-1] = used[:, 1:]
    return (parts | (follows << 7))[used].astype(np.uint8)


def _text(raw: np.ndarray) -> str:
    return base64.b64encode(raw.tobytes()).decode("ascii")


def _bytes(text: str) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    except ValueError as error:
        raise ValueError(f"a packed set or score is not base64: {error}") from None
