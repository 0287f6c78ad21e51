"""Lattices: image tokens evenly spread over the pictures, others in every layer, whatever they score.

Ours, not the paper's. Token j of layer l has the place ``((j + 1) * STEP + l * SHIFT) mod 2**32``; a lattice holds the tokens with the
lowest places. STEP is 2**32 over the golden ratio: its multiples fill the circle evenly however many are taken (three-gap theorem), so a
lattice of any size is even in reading order and, because its columns drift, over the rows of a picture; and a smaller lattice is part of
a larger one. Whole numbers, so that it is the same on every machine.
"""

from __future__ import annotations

import functools

STEP = 2_654_435_769
SHIFT = 3_242_174_889  # 2**32 over the plastic number, whose multiples do not resonate with the golden ratio's


@functools.lru_cache(maxsize=4096)
def lattice(n_image: int, count: int, layer: int) -> tuple[int, ...]:
    """Return ``count`` of the image tokens 0 to ``n_image`` - 1 for ``layer``, in the lattice's order: its first ones are a lattice too."""
    places = sorted(range(n_image), key=lambda token: ((token + 1) * STEP + layer * SHIFT) % 2**32)
    return tuple(places[:count])
