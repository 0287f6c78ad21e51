"""What every implementation of the work between a layer's products agrees on."""

from typing import NamedTuple

from torch import Tensor


class HeadNorms(NamedTuple):
    """RMS norms of queries and keys before RoPE, head by head, as Qwen3 has them.

    Attributes:
        query: weight [D] for queries.
        key: weight [D] for keys.
        eps: added to the mean square.
    """

    query: Tensor
    key: Tensor
    eps: float
