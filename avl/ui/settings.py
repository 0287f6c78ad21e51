"""What a visitor may set: policies and their ranges, presets, limits; and the door every request passes.

Whatever reaches :func:`prepare` is hostile until checked: the page's own widgets and a raw HTTP call arrive the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from avl.models import images as pictures
from avl.policies import TABLE_3
from avl.ui.queue import Request

MAX_QUESTION = 2_000
MAX_BATCH = 256
MAX_REPEATS = 20
MAX_PICTURES = 8
MAX_SCORES = 5_000_000
"""Attention weights of a run that the page records at most: image tokens x layers x passes of all arms. They travel as two bytes each."""


@dataclass(frozen=True)
class Parameter:
    """One slider of a policy. ``off``: the value may be None, the table's "–"."""

    key: str
    label: str
    low: int
    high: int
    default: int | None
    off: bool = False
    unit: str = "%"
    help: str = ""


POLICIES: dict[str, tuple[str, tuple[Parameter, ...]]] = {
    "Full": ("Full attention", ()),
    "AVL": (
        "A-VL",
        (
            Parameter("S", "secondary", 1, 100, 45, help="share of image tokens kept in memory after prefill"),
            Parameter("C", "core", 1, 100, 30, off=True, help="share of image tokens read at every step; off reads all that is kept"),
            Parameter("K", "update every", 1, 32, 3, unit="steps", help="every K-th step reads all kept tokens and chooses the core anew"),
            Parameter("P", "prefill keeps", 1, 100, 90, off=True, help="share of image tokens that stay in prefill after the second layer"),
            Parameter("T", "text window", 1, 100, 60, off=True, help="share of the text length that the text cache may hold"),
        ),
    ),
    "H2O": (
        "H2O",
        (
            Parameter("keep", "keeps", 1, 100, 50, help="share of the full cache that stays"),
            Parameter("recent", "recent part", 1, 100, 75, help="share of what stays that is simply the most recent"),
        ),
    ),
    "FastV": (
        "FastV",
        (
            Parameter("layer", "after layer", 1, 80, 2, unit="", help="image tokens leave after this many layers"),
            Parameter("keep", "keeps", 1, 100, 50, help="share of image tokens that stay"),
        ),
    ),
    "StreamingLLM": (
        "StreamingLLM",
        (
            Parameter("keep", "keeps", 1, 100, 50, help="share of the full cache that stays"),
            Parameter("sinks", "sink tokens", 0, 64, 4, unit="", help="first tokens that always stay"),
        ),
    ),
}


def presets() -> list[dict[str, Any]]:
    """The rows of Table 3 for the page's preset menu."""
    rows = []
    for key, name, settings in TABLE_3:
        for S, C, K, P, T in settings:
            words = " ".join(f"{letter}{'–' if value is None else value}" for letter, value in zip("SCKPT", (S, C, K, P, T), strict=True))
            rows.append({"model": key, "label": f"{name}: {words}", "params": {"S": S, "C": C, "K": K or 3, "P": P, "T": T}})
    return rows


@dataclass(frozen=True)
class About:
    """What the page says about the loaded model. ``n_image`` and ``n_text``: those of the warm-up prompt, to predict with before a run."""

    name: str
    layers: int
    n_image: int
    n_text: int
    token_bytes: int
    device: str
    dtype: str
    bundled: bool = False
    revision: str = ""
    machine: str = ""
    max_tokens: int = 256
    default_tokens: int = 64
    hosted: str = ""
    preset: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)


def settings(about: About) -> dict[str, Any]:
    """The settings the page opens with: full attention against A-VL with the last row of Table 3 for this model, if it is in the table."""
    avl = {"policy": "AVL", **{p.key: p.default for p in POLICIES["AVL"][1]}}
    rows = [row for row in presets() if row["model"] == about.preset]
    if rows:
        avl |= rows[-1]["params"]
    return {
        "arms": [{"policy": "Full"}, avl],
        "max_new_tokens": about.default_tokens,
        "mode": "race",
        "batch": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "repeats": 1,
        "scores": False,
    }


def number(data: dict[str, Any], key: str, low: float, high: float, default: float | None = None, *, whole: bool = True) -> Any:
    """One number of a hostile mapping, or a ValueError that names it, its value and its range."""
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} must be a number from {low:g} to {high:g}, not {str(value)[:40]!r}.")
    if whole and value != int(value):
        raise ValueError(f"{key} must be a whole number from {low:g} to {high:g}, not {value:g}.")
    if not low <= value <= high:
        raise ValueError(f"{key} must be from {low:g} to {high:g}, not {value:g}.")
    return int(value) if whole else float(value)


def policy(choice: Any) -> Any:
    """One arm's settings, ``{"policy": "AVL", "S": 45, …}`` -> the policy object. Raises ValueError with one sentence."""
    import avl

    if not isinstance(choice, dict) or choice.get("policy") not in POLICIES:
        raise ValueError(f"Each arm needs a policy: one of {', '.join(POLICIES)}.")
    name = choice["policy"]
    values: dict[str, Any] = {}
    for parameter in POLICIES[name][1]:
        value = choice.get(parameter.key, parameter.default)
        off = parameter.off and value is None
        values[parameter.key] = None if off else number({parameter.key: value}, parameter.key, parameter.low, parameter.high)
    return getattr(avl, name)(**values)


def at_stored(choice: Any, fraction: Any, about: About) -> dict[str, Any]:
    """An arm's settings changed so that it stores ``fraction`` of the full cache; ``{"error": …}`` with one sentence where it cannot."""
    try:
        share = number({"fraction": fraction}, "fraction", 0.001, 1, whole=False)
        fitted = policy(choice).at_stored(share, about.n_image, about.n_text, about.layers)
        values: dict[str, Any] = {}
        for parameter in POLICIES[choice["policy"]][1]:
            value = getattr(fitted, parameter.key)
            values[parameter.key] = None if value is None else max(parameter.low, min(parameter.high, round(value)))
    except ValueError as error:
        return {"error": str(error)}
    return values


def picture(path: Any) -> Image.Image:
    """Open an upload: upright, RGB, not too large. Raises ValueError with one sentence, which never names a path of the server."""
    if not path:
        raise ValueError("There is no picture yet: upload one, pick an example or press “New scene”.")
    if not Path(path).is_file():
        raise ValueError("The server no longer has this picture: choose it again.")
    return pictures.open_image(Path(path))


def prepare(paths: Sequence[Any], question: Any, chosen: Any, about: About) -> Request:
    """Check everything a visitor sent and build the request. Raises ValueError with one sentence, before anything runs.

    Args:
        paths: the pictures, in the order in which the question has them.
        question, chosen: what was typed and set. about: the model that is asked.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError("The question is empty: type one, or pick one of the suggestions.")
    if len(question) > MAX_QUESTION:
        raise ValueError(f"The question is too long: {len(question)} characters, {MAX_QUESTION} at most.")
    if not isinstance(chosen, dict):
        raise ValueError("The settings are missing: reload the page.")
    arms = chosen.get("arms")
    if not isinstance(arms, list) or not 1 <= len(arms) <= 2:
        raise ValueError("Choose one or two arms to compare.")
    policies = tuple(policy(arm) for arm in arms)
    mode = chosen.get("mode", "race")
    if mode not in ("race", "isolated"):
        raise ValueError("The mode must be “race” or “isolated”.")
    seed = chosen.get("seed")
    scores = chosen.get("scores", False)
    if not isinstance(scores, bool):
        raise ValueError("The scores must be true or false.")
    request = Request(
        images=(),
        question=question.strip(),
        policies=policies,
        max_new_tokens=number(chosen, "max_new_tokens", 1, about.max_tokens, about.default_tokens),
        mode=mode,
        batch=number(chosen, "batch", 1, MAX_BATCH, 1),
        temperature=number(chosen, "temperature", 0, 2, 0.0, whole=False),
        top_p=number(chosen, "top_p", 0.01, 1, 1.0, whole=False),
        seed=None if seed is None else number(chosen, "seed", 0, 2**31 - 1),
        repeats=number(chosen, "repeats", 1, MAX_REPEATS, 1),
        scores=scores,
    )
    weights = about.n_image * about.layers * request.max_new_tokens * len(policies)
    if scores and weights > MAX_SCORES:
        most = MAX_SCORES * request.max_new_tokens // weights
        raise ValueError(f"Recording the attention of so many tokens would take too much memory: {most} new tokens at most with it.")
    if len(paths) > MAX_PICTURES:
        raise ValueError(f"There are too many pictures: {MAX_PICTURES} at most.")
    return Request(**{**vars(request), "images": tuple(picture(path) for path in paths or [None])})
