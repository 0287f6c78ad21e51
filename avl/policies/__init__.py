"""Policies: which tokens to keep and read. One file and one frozen dataclass each, in pure Python; ``cost`` predicts their token counts.

``POLICIES`` is the only list of policies: command lines, the page, the API documentation, error messages, the benchmark and the evaluation
are built from it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from avl.policies.avl import AVL
from avl.policies.base import Coverage, KVBudget, Observation, Param, Policy, PromptShape, shown
from avl.policies.equal_memory import EqualMemory, at_equal_memory
from avl.policies.fastv import FastV
from avl.policies.full import Full
from avl.policies.h2o import H2O
from avl.policies.presets import PRESETS, SPREAD_PRESETS, TABLE_3
from avl.policies.pyramidkv import PyramidKV
from avl.policies.snapkv import SnapKV
from avl.policies.streaming_llm import StreamingLLM

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Full,
        AVL,
        H2O,
        SnapKV,
        PyramidKV,
        FastV,
        StreamingLLM,
    )
}
"""Name -> class, in display order."""

__all__ = [
    "AVL",
    "H2O",
    "POLICIES",
    "PRESETS",
    "SPREAD_PRESETS",
    "TABLE_3",
    "Coverage",
    "EqualMemory",
    "FastV",
    "Full",
    "KVBudget",
    "Observation",
    "Param",
    "Policy",
    "PromptShape",
    "PyramidKV",
    "SnapKV",
    "StreamingLLM",
    "at_equal_memory",
]


def check_policy(policy: object) -> None:
    """Raise ValueError unless ``policy`` is a policy."""
    if not isinstance(policy, Policy):
        names = ", ".join(f"avl.{name}(...)" for name in POLICIES)
        raise ValueError(f"{shown(policy)} is not a policy: pass one of {names}")


def labels(policies: Sequence[Policy]) -> list[str]:
    """Return the label of each policy, with a number where several are equal: ``A-VL S=45 K=3 (2)``."""
    names = [policy.label for policy in policies]
    total, seen, found = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if total[name] > 1 else name)
    return found


def cli_name(policy: type[Policy]) -> str:
    """Return a policy's name as command lines spell it: ``streaming-llm`` for ``StreamingLLM``."""
    return re.sub(r"(?<=[a-z])(?=LLM)", "-", policy.name).lower()


def find_policy(name: str) -> type[Policy]:
    """Return the policy with that name; case, hyphens and underscores are ignored, and an unambiguous prefix is enough.

    Raises:
        ValueError: no policy, or more than one, matches; lists all policies.
    """
    if not isinstance(name, str):
        raise ValueError(f"{shown(name)} is not the name of a policy: use {', '.join(cli_name(policy) for policy in POLICIES.values())}")
    wanted = re.sub(r"[-_ ]", "", name).lower()
    names = {key.lower(): policy for key, policy in POLICIES.items()}
    found = [names[wanted]] if wanted in names else [policy for key, policy in names.items() if wanted and key.startswith(wanted)]
    if len(found) != 1:
        raise ValueError(f"there is no policy {shown(name)}: use {', '.join(cli_name(policy) for policy in POLICIES.values())}")
    return found[0]


def parse_policy(spec: str) -> Policy:
    """Parse ``name`` or ``name:PARAMETER=value,…``, for example ``avl:S=45,C=30``, to a policy; ``off`` means None.

    A parameter without a default gets the initial value of the page's slider.

    Raises:
        ValueError: the policy or a parameter is unknown, or a value is out of range.
    """
    if not isinstance(spec, str):
        raise ValueError(f"{shown(spec)} is not a policy's text: write name or name:PARAMETER=value,…, for example avl:S=45,C=30")
    name, _, rest = spec.partition(":")
    policy = find_policy(name)
    params = {one.name: one for one in policy.params()}
    values: dict[str, Any] = {one.name: one.start for one in params.values() if one.required}
    for part in filter(None, rest.split(",")):
        key, _, text = part.partition("=")
        if key not in params:
            known = f"it has {', '.join(params)}" if params else "it has none"
            raise ValueError(f"{policy.title} has no parameter {shown(key)}: {known}")
        values[key] = _value(text)
    return policy(**values)


def _value(text: str) -> Any:
    if text == "off":
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of more digits than Python reads
        return text
