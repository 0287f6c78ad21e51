"""One row per registered policy, with parameters that bite on the tests' short prompts; the tests iterate these rows."""

from __future__ import annotations

import oracle

import avl

ROWS = {
    "Full": (avl.Full, oracle.Full, {}),
    "AVL": (avl.AVL, oracle.AVL, {"S": 45, "C": 30, "K": 3, "P": 70, "T": 50}),
    "H2O": (avl.H2O, oracle.H2O, {"keep": 50}),
    "SnapKV": (avl.SnapKV, oracle.SnapKV, {"keep": 50, "window": 6, "pool": 3}),
    "PyramidKV": (avl.PyramidKV, oracle.PyramidKV, {"keep": 40, "window": 4, "pool": 3, "beta": 5}),
    "FastV": (avl.FastV, oracle.FastV, {}),
    "StreamingLLM": (avl.StreamingLLM, oracle.StreamingLLM, {"keep": 40}),
}
"""Name -> (policy, its rule in the oracle, parameters)."""

POLICIES = [policy(**parameters) for policy, _, parameters in ROWS.values()]

SPREAD = avl.AVL(S=45, C=30, K=3, P=70, T=50, spread=33)
"""A-VL as above, a third of its tokens held whatever they score."""


def name_of(policy: avl.Policy) -> str:
    """A readable id for a test."""
    return policy.name
