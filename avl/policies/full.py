"""Full attention: every token is stored and read. The baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from avl.policies.base import Policy


@dataclass(frozen=True)
class Full(Policy):
    """Full attention with the same engine and cache as the other policies."""

    name: ClassVar[str] = "Full"
    title: ClassVar[str] = "Full attention"
