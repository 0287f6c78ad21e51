"""What a policy is: a frozen dataclass that answers, in counts, four questions about any prompt.

| verb | asked | answer |
|---|---|---|
| ``prune`` | between two prefill layers | image tokens that stay in the hidden states |
| ``store`` | after a layer's prefill | what the layer keeps: pinned image tokens and an evictable window |
| ``select`` | at a decode step | image tokens read: some, or all that are stored |
| ``observe`` | after a step | what is accumulated, hence who leaves the window |

Counts, not indices: they are closed forms of the prompt's size, so memory, CUDA graphs and the page's predictions know them before a
run. Turning scores into indices is the same for every policy and lives in partition.py; moving K/V lives in cache.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, ClassVar


@dataclass(frozen=True)
class Store:
    """What a layer keeps of one row.

    ``image``: pinned image tokens, never evicted. ``window``: size of the evictable window, None for unlimited. ``recent``: newest entries
    of the window that are never evicted; ``sinks``: oldest that are never evicted.
    """

    image: int
    window: int | None = None
    recent: int = 0
    sinks: int = 0


@dataclass(frozen=True)
class Observe:
    """What is summed up per window entry: None (nothing), "shared" (mean over all query heads) or "kv" (per key-value head)."""

    accumulate: str | None = None


@dataclass(frozen=True)
class Policy:
    """Base of all policies: keeps and reads everything. Override the verbs that differ."""

    name: ClassVar[str] = "Policy"
    pins_image: ClassVar[bool] = True
    """Image tokens are stored apart and never evicted; False: they live in the window like any other token."""

    def prune(self, layer: int, n_image: int) -> int | None:
        """Image tokens that enter ``layer`` in prefill, ranked by the scores of ``layer - 1``; None: all that entered the layer before."""
        return None

    def store(self, layer: int, n_image: int, n_text: int, max_new_tokens: int) -> Store:
        """What ``layer`` keeps after its prefill of a row with ``n_image`` image and ``n_text`` text tokens."""
        return Store(image=n_image)

    def select(self, layer: int, n_image: int) -> int | None:
        """Image tokens that ``layer`` reads at a core step, the core; None: every stored token is read at every step."""
        return None

    def is_update(self, t: int) -> bool:
        """Whether decode step ``t`` (1, 2, …) reads everything stored and chooses the core anew."""
        return False

    def observe(self, n_image: int, n_text: int, max_new_tokens: int) -> Observe:
        """What the steps of such a row accumulate."""
        return Observe()

    def at_stored(self, fraction: float, n_image: int, n_text: int, n_layers: int) -> Policy:
        """The same policy with parameters that store ``fraction`` (0 to 1) of a full cache of ``n_image + n_text`` tokens per layer.

        Raises:
            ValueError: the policy cannot store that share.
        """
        raise ValueError(f"{self.name} cannot be set to a stored share: it has no parameter for it")

    def check_model(self, n_layers: int) -> None:
        """Raise ValueError where the parameters make no sense for a model of ``n_layers`` decoder layers."""

    def image_counts(self, layer: int, n_image: int) -> int:
        """Image tokens that are present in the hidden states at ``layer`` in prefill."""
        kept = (self.prune(index, n_image) for index in range(layer + 1))
        return min((count for count in kept if count is not None), default=n_image)

    @property
    def label(self) -> str:
        """Name and parameters for tables and the page, for example ``A-VL S=45 C=30 K=3 P=90``."""
        shown = [f"{key}={value:g}" for key, value in asdict(self).items() if isinstance(value, int | float)]
        return " ".join([self.title, *shown])

    @property
    def title(self) -> str:
        """The field's name of the method."""
        return self.name

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters as plain values, for a trace."""
        return {"name": self.name, **asdict(self)}


def share(percent: float, n: int) -> int:
    """``ceil(percent * n / 100)`` without the float error of ``0.07 * 100``; percent as it is written in decimal (7.1 means 71/10)."""
    exact = Fraction(str(percent)) * n / 100
    return -(-exact.numerator // exact.denominator)


def check_percent(name: str, value: object, low: str, optional: bool = False) -> None:
    """Raise ValueError unless ``value`` is a percentage above 0 and at most 100 (or None where that means off)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
        off = ", or None for off" if optional else ""
        raise ValueError(f"{name}={value!r} is out of range: {name} is {low}, above 0 and at most 100{off}")


def check_count(name: str, value: object, least: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} is out of range: {name} is a whole number of at least {least}")


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless ``fraction`` is a share in (0, 1]."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} is out of range: a stored share is above 0 and at most 1")


__all__ = ["Observe", "Policy", "Store", "check_count", "check_fraction", "check_percent", "share"]
