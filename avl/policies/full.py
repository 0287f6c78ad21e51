"""Full attention: store and read every token. The baseline of all comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl.policies.base import Policy


@dataclass(frozen=True)
class Full(Policy):
    """Full attention, on the same engine and cache as the other policies."""

    name: ClassVar[str] = "Full"
    title: ClassVar[str] = "Full attention"
