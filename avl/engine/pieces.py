"""A prompt whose rows are laid out differently, some rows after others.

Which entries of the pixels belong to which row is the model's own affair, so its vision part runs once, for all rows; what it passes on to
the text decoder has a row each, and is cut there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from avl.attention.hooks import begin_pass, end_pass
from avl.cache.cache import AdaptiveCache
from avl.cache.layout import Row


class Stopped(Exception):
    """A run was stopped while its prompt ran."""


@contextlib.contextmanager
def in_pieces(text: Any, cache: AdaptiveCache, some: int, stop: threading.Event | None = None) -> Iterator[None]:
    """Let the text decoder run the prompt of ``cache`` with at most ``some`` rows at once; it returns the last column of all rows.

    Raises:
        Stopped: within the decoder's pass, ``stop`` was set before the last piece.
    """
    own, whole = vars(text).get("forward"), text.forward

    def forward(**given: Any) -> Any:
        chunks, columns, out = [], [], None
        for first in range(0, cache.batch_size, some):
            if stop is not None and stop.is_set():
                raise Stopped
            last = min(cache.batch_size, first + some)
            chunk = cache.chunk(first, last)
            chunk.prepare(next(text.parameters()).device)
            kwargs = {name: _cut(name, value, first, last, cache.rows) for name, value in given.items()} | {"past_key_values": chunk}
            _, kwargs = begin_pass(text, (), kwargs) or ((), kwargs)
            out = whole(**kwargs)
            end_pass(text, (), kwargs, out)
            chunks.append(chunk)
            columns.append(out.last_hidden_state[:, -1:])
        assert out is not None
        cache.merge(chunks)
        out.last_hidden_state, out.past_key_values = torch.cat(columns), cache
        return out

    cache.split, text.forward = True, forward
    try:
        yield
    finally:
        cache.split = False
        del text.forward
        if own is not None:
            text.forward = own


def _cut(name: str, value: Any, first: int, last: int, rows: tuple[Row, ...]) -> Any:
    """Return the part for rows ``first`` to ``last - 1`` of an argument of the text decoder."""
    if isinstance(value, dict):
        return {key: _cut(name, one, first, last, rows) for key, one in value.items()}
    if name == "deepstack_visual_embeds" and value is not None:  # [image tokens of all rows, hidden] for each of some layers
        start, stop = (sum(row.n_image for row in rows[:number]) for number in (first, last))
        return [features[start:stop] for features in value]
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    if name == "position_ids" and value.dim() == 3:  # [axes, B, L]
        return value[:, first:last] if value.shape[1] == len(rows) else value
    return value[first:last] if value.shape[0] == len(rows) else value
