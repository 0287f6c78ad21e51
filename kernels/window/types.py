"""What every implementation of the text window's bookkeeping agrees on."""

from typing import NamedTuple

FREE = 1 << 62
"""Index of no token, in a slot that holds nothing (a power of two: torch passes padding values through a double)."""


class Window(NamedTuple):
    """What never changes in a text window.

    Attributes:
        prompt: prompt tokens that belong to it.
        start: tokens stored after prefill.
        size: most tokens that stay stored after a step, None for unlimited.
        recent: newest tokens that are never evicted.
        sinks: oldest tokens that are never evicted.
    """

    prompt: int
    start: int
    size: int | None
    recent: int
    sinks: int
