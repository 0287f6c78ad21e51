"""A short race with agreement, for the tests of it."""

from __future__ import annotations

from random_models import picture

import avl
from avl.trace import Trace

QUESTION, LIMIT = "what is here ?", 9
SAME = avl.AVL(S=100, C=100)
"""Stores and reads all that full attention does, by another way through the cache."""


def race(small, policies, **options) -> Trace:
    return Trace(list(avl.race(*small, picture(2), QUESTION, policies, **{"max_new_tokens": LIMIT, "agreement": True, **options})))
