"""Full attention: every token is stored and read. The baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl.policies.base import Policy, check_fraction


@dataclass(frozen=True)
class Full(Policy):
    """Full attention with the same engine and cache as the other policies."""

    name: ClassVar[str] = "Full"

    @property
    def title(self) -> str:
        return "Full attention"

    def at_stored(self, fraction: float, n_image: int, n_text: int, n_layers: int) -> Full:
        check_fraction(fraction)
        if fraction != 1:
            raise ValueError(f"full attention stores everything: a stored share of {fraction:g} is not possible, only 1")
        return self
