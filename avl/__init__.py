"""Adaptive attention (A-VL, arXiv 2409.14846) for LLaVA: store the useful image tokens, read the critical ones.

Shape letters used everywhere: B rows of a batch, H query heads, G key-value heads, L positions or slots, D head size, N image tokens of one
row (all its images together), W tokens of the text window. Importing the package loads the policies, which are plain Python; the other
names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from avl import policies
from avl.policies import *  # noqa: F403

if TYPE_CHECKING:
    from avl.attention.attachment import attach, detach
    from avl.cache.cache import make_cache
    from avl.engine.conversation import Conversation
    from avl.engine.scheduler import prompt_shape, race, stream
    from avl.engine.sweep import sweep
    from avl.models.loading import load
    from avl.models.prompt import Prompt

_HOMES = {
    "attach": "avl.attention.attachment",
    "detach": "avl.attention.attachment",
    "make_cache": "avl.cache.cache",
    "Conversation": "avl.engine.conversation",
    "prompt_shape": "avl.engine.scheduler",
    "race": "avl.engine.scheduler",
    "stream": "avl.engine.scheduler",
    "sweep": "avl.engine.sweep",
    "load": "avl.models.loading",
    "Prompt": "avl.models.prompt",
}

__version__ = "0.2.0"

__all__ = ["Conversation", "Prompt", "attach", "detach", "load", "make_cache", "prompt_shape", "race", "stream", "sweep"]
__all__ += policies.__all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'avl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
