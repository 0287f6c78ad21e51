"""What a visitor may set: sliders and limits, presets, predictions; and the check that every request passes.

Whatever reaches :func:`prepare` is hostile until checked: the page's own widgets and a raw HTTP call arrive the same way. Policies, their
parameters and ranges come from the registry (avl/policies), predictions from the cost model (avl/policies/cost.py).
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from avl.bench.what_if import Model
from avl.engine.request import MODES, GenerationRequest
from avl.models.checkpoints import CHECKPOINTS
from avl.models.families import family_of
from avl.models.prompt import Question
from avl.policies import AVL, POLICIES, SPREAD_PRESETS, TABLE_3, Full, Param, Policy, PromptShape, at_equal_memory
from avl.policies.cost import mean_cost, step_cost
from avl.policies.equal_memory import sets_memory
from avl.policies.presets import NEUTRAL
from avl.trace import SCORES_BYTES, most_passes
from avl.ui.errors import sentence
from avl.ui.prompts import Measure, PromptSize

MAX_QUESTION = 2_000
MAX_BATCH = 256
MAX_REPEATS = 20
MAX_ARMS = 8
MAX_PICTURES = 8
MAX_HISTORY = 4096
"""Most tokens of an earlier answer that a program sends."""
MAX_SEED = 2**31 - 1
MAX_PROMPT = 10**6
MAX_SCORES = 16_000_000
"""Bytes of JSON that a run's recorded attention takes at most, where even the fewest tokens per layer take more than ``SCORES_BYTES``."""


def start_value(one: Param) -> Any:
    """Return the value that a parameter starts with on the page and in the API."""
    return one.default if one.choices else None if one.off else one.start


def catalog(layers: int | None = None) -> dict[str, Any]:
    """Return what the page needs to draw each policy's settings: title, sliders, presets, and whether a parameter sets what is stored.

    Args:
        layers: decoder layers of the model, which bound sliders that count layers; None for no bound.
    """
    return {
        name: {
            "title": cls.title,
            "budget": cls.budget is not None,
            "presets": presets() if cls is AVL else [],
            "parameters": [_slider(one, layers) for one in cls.params()],
        }
        for name, cls in POLICIES.items()
    }


def _slider(one: Param, layers: int | None) -> dict[str, Any]:
    # nothing follows the last layer
    high = max(one.low, min(one.high, layers - 1)) if one.unit == "layers" and layers else one.high
    return {
        "key": one.name,
        "label": one.label,
        "help": one.help,
        "unit": one.unit,
        "low": one.low,
        "high": high,
        "step": 2 if one.odd else 1,
        "default": start_value(one),
        "start": one.start,
        "off": one.optional,
        "choices": one.choices,
    }


def examples() -> list[str]:
    """Return the settings of every policy as JSON, for the API's documentation."""
    return [json.dumps({"policy": name, **{one.name: start_value(one) for one in cls.params()}}) for name, cls in POLICIES.items()]


def presets() -> list[dict[str, Any]]:
    """Return the groups of the page's preset menu: the rows of Table 3, then each model's last row with spread.

    Without a core there is nothing to update, so such a row leaves K as it is.
    """
    paper, spread = [], []
    for key, name, settings in TABLE_3:
        for row, (S, C, K, P, T) in enumerate(settings):
            words = " ".join(f"{letter}{'–' if value is None else value}" for letter, value in zip("SCKPT", (S, C, K, P, T), strict=True))
            params = {"S": S, "C": C, **({} if K is None else {"K": K}), "P": P, "T": T, "spread": None}
            paper.append({"model": key, "label": f"{name}: {words}", "params": params})
            if row == len(settings) - 1:
                more = SPREAD_PRESETS[key].spread
                spread.append({"model": key, "label": f"{name}: {words} spread {more:g}", "params": params | {"spread": more}})
    return [{"title": "Paper, Table 3", "rows": paper}, {"title": "With spread (ours, not the paper’s)", "rows": spread}]


def table_row(name: str, config: Any) -> str:
    """Return the key of Table 3 that suits a model: by short name, by Hub id or by a folder called like either, else its family's."""
    last = Path(name).name
    short = next((key for key, hub_id in CHECKPOINTS.items() if last in (key, hub_id.split("/")[-1])), name)
    return short if short in {key for key, _, _ in TABLE_3} else family_of(config).preset or NEUTRAL


@dataclass(frozen=True)
class About:
    """What the page says about the loaded model.

    Attributes:
        n_image: image tokens of the warm-up prompt, to predict with while no picture is chosen.
        n_text: its other tokens.
        context: most tokens of prompt and answer, None for no limit.
        title: of the page.
        measure: counts the tokens of chosen pictures and a question; None takes every picture for one of ``n_image`` tokens.
        no_turns: why the model cannot be asked on, one clause; empty where it can.
        sizes: of the model, to predict other machines with; None where they are not known.
    """

    name: str
    layers: int
    n_image: int
    n_text: int
    token_bytes: int
    device: str
    dtype: str
    bundled: bool = False
    machine: str = ""
    title: str = "A-VL × LLaVA"
    max_tokens: int = 256
    default_tokens: int = 64
    preset: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)
    context: int | None = None
    measure: Measure | None = None
    no_turns: str = ""
    sizes: Model | None = None

    def facts(self) -> dict[str, Any]:
        """Return what the page's scripts may know, as JSON values."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("measure", "notes", "sizes")} | {
            "notes": list(self.notes),
            "max_arms": MAX_ARMS,
        }

    def prompt(self, sizes: Sequence[tuple[int, int]], question: str) -> PromptSize:
        """Return the size of the prompt of pictures of ``sizes`` (width, height). Raise ValueError where they make none."""
        if self.measure is None or not sizes:
            return PromptSize(self.n_image * max(1, len(sizes)), self.n_text)
        return self.measure(tuple(sizes), question)


def settings(about: About) -> dict[str, Any]:
    """Return the settings that the page opens with: full attention against A-VL, with the model's last row of Table 3 where it has one."""
    avl = {"policy": AVL.name, **{one.name: start_value(one) for one in AVL.params()}}
    rows = [row for row in presets()[0]["rows"] if row["model"] == about.preset]
    if rows:
        avl |= rows[-1]["params"]
    return {
        "arms": [{"policy": Full.name}, avl],
        "max_new_tokens": about.default_tokens,
        "mode": "race",
        "batch": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "repeats": 1,
        "scores": False,
        "agreement": False,
        "equal_memory": False,
    }


def number(data: dict[str, Any], key: str, low: float, high: float, default: float | None = None, *, whole: bool = True) -> Any:
    """Return one number of a hostile mapping, or raise ValueError that names it, its value and its range."""
    value: Any = data.get(key, default)
    limits = f"from {low:.10g} to {high:.10g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{key} must be a number {limits}, not {str(value)[:40]!r}.")
    if abs(value) > 10**18:  # Python formats no integer of hundreds of digits as a number
        raise ValueError(f"{key} must be {limits}, not {'below -' if value < 0 else 'above '}10^18.")
    if whole and value != int(value):
        raise ValueError(f"{key} must be a whole number {limits}, not {value:.10g}.")
    if not low <= value <= high:
        raise ValueError(f"{key} must be {limits}, not {value:.10g}.")
    return int(value) if whole else float(value)


def policy(choice: Any) -> Policy:
    """Return the policy of one arm's settings, ``{"policy": "AVL", "S": 45, …}``.

    Raises:
        ValueError: no such policy, or a value out of range; one sentence.
    """
    name = choice.get("policy") if isinstance(choice, dict) else None
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"Each arm needs a policy: one of {', '.join(POLICIES)}.")
    return POLICIES[name](**{one.name: _parameter(choice, one) for one in POLICIES[name].params()})


def _parameter(choice: dict[str, Any], one: Param) -> Any:
    value = choice.get(one.name, start_value(one))
    if one.choices:
        if value not in one.choices:
            raise ValueError(f"{one.name} must be {' or '.join(f'“{word}”' for word in one.choices)}, not {str(value)[:40]!r}.")
        return value
    return None if one.optional and value is None else number({one.name: value}, one.name, one.low, one.high)


def predict(chosen: Any, about: About, prompt: PromptSize | None = None) -> dict[str, Any]:
    """Return what the arms of some settings will store and read, before any run.

    Args:
        chosen: settings, as for :func:`prepare`.
        about: the model that is asked.
        prompt: of the chosen pictures and question; None for the warm-up's.

    Returns:
        ``arms``: of each ``stored`` and ``read``, shares of full attention, means over the decode steps, and ``peak``, the most bytes
        that one row takes, or ``error``, one sentence; ``full``: bytes that full attention stores, all rows, mean over the decode steps;
        ``reference``: ``peak`` of full attention, which one row takes after the answers where agreement is measured.
        Where the settings themselves are wrong, or the prompt is too long for them, ``error`` alone.
    """
    prompt = prompt or about.prompt((), "")
    try:
        checked = check(chosen, about, policies=False)
        check_limits(prompt, checked, len(chosen["arms"]), about)
    except ValueError as error:
        return {"error": sentence(error)}
    shape = shape_of(checked, prompt, about)
    token = about.token_bytes / about.layers

    def peak(one: Policy) -> float:
        # during prefill one layer at a time holds the whole prompt
        return (step_cost(one, shape, shape.max_new_tokens - 1).stored + shape.length) * token

    def arm(choice: Any) -> dict[str, Any]:
        try:
            chosen_policy = policy(choice)
            chosen_policy.check_model(about.layers)
        except ValueError as error:
            return {"error": sentence(error)}
        stored, read = _shares(chosen_policy, shape)
        return {"stored": stored, "read": read, "peak": peak(chosen_policy)}

    return {
        "arms": [arm(choice) for choice in chosen["arms"]],
        "full": mean_cost(Full(), shape).stored * token * checked["batch"],
        "reference": peak(Full()),
    }


def sent_prompt(data: Any, about: About) -> PromptSize:
    """Return the prompt size that a script of the page sent along, the warm-up's where it sent none."""
    found = [data.get(key) if isinstance(data, dict) else None for key in ("n_image", "n_text")]
    if all(isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_PROMPT for value in found):
        return PromptSize(*found)  # type: ignore[arg-type]
    return about.prompt((), "")


def shape_of(checked: dict[str, Any], prompt: PromptSize, about: About) -> PromptShape:
    """Return the sizes that the cost model needs, of checked settings and a prompt."""
    return PromptShape(prompt.n_image, prompt.n_text, checked["max_new_tokens"], about.layers)


def _shares(one: Policy, shape: PromptShape) -> tuple[float, float]:
    """Return what is stored and read, as shares of full attention, means over the decode steps."""
    cost, full = mean_cost(one, shape), mean_cost(Full(), shape)
    return cost.stored / full.stored, cost.read / full.read


def upload(path: Any) -> Path:
    """Return the file of an upload. Raise ValueError with one sentence, which never names a path of the server."""
    if not path:
        raise ValueError("There is no picture yet: upload one, pick an example or press “New scene”.")
    if not Path(path).is_file():
        raise ValueError("The server no longer has this picture: choose it again.")
    return Path(path)


def check(chosen: Any, about: About, *, policies: bool = True) -> dict[str, Any]:
    """Check settings; return the fields of a :class:`GenerationRequest` that they give, ``policies`` only where they are asked for.

    Raises:
        ValueError: a setting is missing or out of range; one sentence.
    """
    if not isinstance(chosen, dict):
        raise ValueError("The settings are missing: reload the page.")
    arms = chosen.get("arms")
    if not isinstance(arms, list) or not 1 <= len(arms) <= MAX_ARMS:
        raise ValueError(f"Choose 1 to {MAX_ARMS} arms to compare.")
    checked: dict[str, Any] = {"policies": tuple(policy(arm) for arm in arms)} if policies else {}
    mode = chosen.get("mode", MODES[0])
    if mode not in MODES:
        raise ValueError(f"The mode must be {' or '.join(f'“{word}”' for word in MODES)}.")
    seed = chosen.get("seed")
    temperature = number(chosen, "temperature", 0, 2, 0.0, whole=False)
    for name in ("scores", "agreement", "equal_memory"):
        if not isinstance(chosen.get(name, False), bool):
            raise ValueError(f"{name} must be true or false.")
    checked |= {
        "max_new_tokens": number(chosen, "max_new_tokens", 1, about.max_tokens, about.default_tokens),
        "mode": mode,
        "batch": number(chosen, "batch", 1, MAX_BATCH, 1),
        "temperature": temperature,
        "top_p": number(chosen, "top_p", 0.01, 1, 1.0, whole=False),
        "seed": number(chosen, "seed", 0, MAX_SEED) if seed is not None else secrets.randbelow(MAX_SEED + 1) if temperature else None,
        "repeats": number(chosen, "repeats", 1, MAX_REPEATS, 1),
        "scores": chosen.get("scores", False),
        "agreement": chosen.get("agreement", False),
        "scores_bytes": SCORES_BYTES,
    }
    return checked


def check_limits(prompt: PromptSize, checked: dict[str, Any], arms: int, about: About) -> None:
    """Raise ValueError, one sentence, where a prompt is too long for the model or for what ``checked`` settings ask of it."""
    tokens, n_image, n_text = checked["max_new_tokens"], prompt.n_image, prompt.n_text
    if about.context is not None and n_image + n_text + tokens > about.context:
        need = (
            f"{n_image} image + {n_text} text + {tokens} new tokens are {n_image + n_text + tokens}, and this model takes {about.context}"
        )
        room = about.context - n_image - n_text
        raise ValueError(f"{need}: {f'set “new tokens” to {room} at most' if room > 0 else 'use fewer or smaller pictures'}.")
    if checked["scores"]:
        most = most_passes(n_image, about.layers, tokens, arms, MAX_SCORES)
        if most < tokens:
            advice = f"{most} new tokens at most with it" if most else "switch it off, or use fewer or smaller pictures"
            raise ValueError(f"Recording the attention of so many tokens would take too much memory: {advice}.")


def prepare(paths: Sequence[Any], question: Any, chosen: Any, about: About) -> GenerationRequest:
    """Check everything a visitor sent and build the request, before anything runs.

    Args:
        paths: the pictures, in the order in which the question has them.
        question: what was typed.
        chosen: what was set. With ``equal_memory``, the budget of every arm is set so that it stores what the first A-VL does (or, without
            one, the first arm with a budget), to thousandths of a percent; full attention stays.
        about: the model that is asked.

    Raises:
        ValueError: one sentence.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError("The question is empty: type one, or pick one of the suggestions.")
    if len(question) > MAX_QUESTION:
        raise ValueError(f"The question is too long: {len(question)} characters, {MAX_QUESTION} at most.")
    checked = check(chosen, about)
    if len(paths) > MAX_PICTURES:
        raise ValueError(f"There are too many pictures: {MAX_PICTURES} at most.")
    files: Any = [upload(path) for path in paths or [None]]
    request = GenerationRequest(files, Question(question.strip()), **checked)
    prompt = about.prompt([image.size for image in request.images], request.question)
    check_limits(prompt, checked, len(request.policies), about)
    if chosen.get("equal_memory", False):
        policies = request.policies
        equal = at_equal_memory(sets_memory(policies), shape_of(checked, prompt, about), policies)
        if equal.left_out:
            raise ValueError(equal.left_out[0])
        request = replace(request, policies=equal.policies)
    return request
