"""Checks of a trace that comes from outside: JSON values against the types of the events, and the events against one another.

Whatever passes can be shown, exported and evaluated; whatever does not is one ValueError.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

import numpy as np

from avl.trace.codec import unpack_bits, unpack_scores
from avl.trace.events import MOST_NATS, Agreement, End, Event, Prefill, Reading, Repeat, Scores, Sets, Start, Step, TextSets

DEPTH = 64  # of nested values: far beyond any trace, far below what Python's own functions can follow
LARGEST = 2**53  # beyond it JavaScript, and so the page, would round
MOST_LAYERS, MOST_TOKENS = 10_000, 10_000_000
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "an object", list: "a list"}


def brief(value: object) -> str:
    """Return a value as a sentence quotes it."""
    text = repr(value) if not isinstance(value, dict | list) else WORDS[type(value)]
    return text if len(text) <= 40 else f"{text[:37]}…"


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs, for ``json.loads(object_pairs_hook=...)``. Raises ValueError where a key stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {brief(twice)} stands twice in one object")
    return found


def check_values(document: Any) -> None:
    """Raise ValueError where a JSON document is nested too deep or holds a number or text that could not be written again."""
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth == DEPTH:
                raise ValueError(f"values are nested more than {DEPTH} deep")
            inner: Iterable[Any] = value
            if isinstance(value, dict):
                inner = [*value, *value.values()]
            waiting.extend((one, depth + 1) for one in inner)
        elif isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError("a text holds half of a character (a lone surrogate)") from None
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        elif isinstance(value, int) and abs(value) >= 2**64:
            raise ValueError("a whole number has more than 64 bits")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def fit(cls: type, data: Any, where: str = "it") -> Any:
    """Make a dataclass of a JSON object.

    Raises:
        ValueError: a field is missing, unknown or of the wrong type; names it.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {brief(data)}, not an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = [name for name in data if name not in fields]
    if unknown:
        raise ValueError(f"{where} has an unknown field {brief(unknown[0])}")
    missing = [name for name, field in fields.items() if name not in data and field.default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"{where} has no {missing[0]}")
    hints = _hints(cls)
    prefix = "" if where == "it" else f"{where}."
    return cls(**{name: _value(hints[name], value, prefix + name) for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the type of a field: lists become tuples, objects dataclasses."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else _value(next(part for part in parts if part is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {brief(value)}, not a list")
        if parts[-1] is not Ellipsis and len(value) != len(parts):
            raise ValueError(f"{where} has {len(value)} values, not {len(parts)}")
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_value(part, one, f"{where}[{place}]") for place, (part, one) in enumerate(zip(each, value, strict=True)))
    if dataclasses.is_dataclass(hint):
        return fit(typing.cast(type, hint), value, where)
    kind = origin or hint
    right = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {brief(value)}, not {WORDS[kind]}")
    if kind is int and where != "seed" and abs(value) > LARGEST:
        raise ValueError(f"{where} is {brief(value)}, more than 2**53")
    return value


def check_events(events: list[Event]) -> None:
    """Raise ValueError unless the events are those of one run: a start, and then of each arm its prompt, its steps in order, its end."""
    if not events or not isinstance(events[0], Start):
        raise ValueError("a trace begins with a start event; this one does not")
    start = events[0]
    _check_start(start)
    told: dict[int, int] = {}  # arm -> newest token
    ended: set[int] = set()
    for number, event in enumerate(events[1:], 1):
        try:
            arm = getattr(event, "arm", None)
            _need(not isinstance(event, Start), "a second start")
            _need(arm is None or 0 <= arm < len(start.arms), f"there is no arm {arm}, this trace has {len(start.arms)}")
            _check_counts(event)
            if isinstance(event, Prefill | Step | Sets | TextSets | End):
                assert arm is not None
                _need(arm not in ended, f"arm {arm} has ended before")
                _check_turn(event, told)
                if isinstance(event, End):
                    ended.add(arm)
            _check_layers(event, start)
        except ValueError as error:
            raise ValueError(f"event {number} ({event.kind}): {error}") from None


def _need(held: bool, otherwise: str) -> None:
    if not held:
        raise ValueError(otherwise)


def _check_start(start: Start) -> None:
    try:
        _need(bool(start.arms), "it has no arms")
        for name, most in (("layers", MOST_LAYERS), ("n_image", MOST_TOKENS), ("limit", MOST_TOKENS), ("batch", MOST_TOKENS)):
            _need(1 <= getattr(start, name) <= most, f"{name} is {getattr(start, name)}, not from 1 to {most}")
        _need(0 <= start.n_text <= MOST_TOKENS, f"n_text is {start.n_text}, not from 0 to {MOST_TOKENS}")
        _need(start.token_bytes >= 0, f"token_bytes is {start.token_bytes}")
        _check_prompt(start.n_image, start.n_text, start.spans, start.text)
        _need(1 <= start.turn <= MOST_TOKENS, f"turn is {start.turn}, not from 1 to {MOST_TOKENS}")
        _need(len(start.questions) == start.turn - 1, f"questions has {len(start.questions)} texts before turn {start.turn}")
        _need(all(min(size) >= 1 for size in start.images), "an image has no area")
        for grid in start.grids:
            _need(0 <= grid.image < len(start.images), f"a grid belongs to image {grid.image} of {len(start.images)}")
            tokens = grid.rows * (grid.cols + grid.newline)
            within = min(grid.rows, grid.cols) >= 1 and grid.first >= 0 and grid.first + tokens <= start.n_image
            _need(within, f"a grid is not within the {start.n_image} image tokens")
        for arm in start.arms:
            _need(arm.pruned_from is None or 0 <= arm.pruned_from <= start.layers, f"pruned_from is {arm.pruned_from}")
            _need(all(min(pair) >= 0 for pair in arm.predicted), "a predicted count is negative")
            _need(len(arm.spread) in (0, start.layers), f"spread has {len(arm.spread)} values for {start.layers} layers")
            for packed in arm.spread:
                unpack_bits(packed, start.n_image)
            own = start.n_text if arm.n_text is None else arm.n_text
            _need(0 <= own <= MOST_TOKENS, f"n_text of an arm is {own}, not from 0 to {MOST_TOKENS}")
            _check_prompt(start.n_image, own, arm.spans, arm.text)
            _need(arm.new_tokens is None or 1 <= arm.new_tokens <= start.n_image + own, f"new_tokens is {arm.new_tokens}")
            _need(len(arm.answers) in (0, start.turn - 1), f"answers has {len(arm.answers)} texts before turn {start.turn}")
    except ValueError as error:
        raise ValueError(f"bad start event: {error}") from None


def _check_prompt(n_image: int, n_text: int, spans: tuple[tuple[str, int, int], ...], text: tuple[str, ...]) -> None:
    for name, first, stop in spans:
        _need(0 <= first <= stop <= n_image + n_text, f"span {brief(name)} is not within the prompt's {n_image + n_text} tokens")
    _need(len(text) in (0, n_text), f"text has {len(text)} texts for {n_text} text tokens")


def _check_counts(event: Event) -> None:
    """Raise ValueError where a count or a time is negative; memory above a level may be."""
    if isinstance(event, Reading):
        return
    for name, value in vars(event).items():
        values = value if isinstance(value, tuple) else (value,)
        numbers = [one for one in values if isinstance(one, int | float)]
        _need(not numbers or min(numbers) >= 0, f"{name} is negative")


def _check_turn(event: Prefill | Step | Sets | TextSets | End, told: dict[int, int]) -> None:
    """Raise ValueError unless the event may come next in its arm; ``told`` is brought up to date."""
    newest = told.get(event.arm)
    if isinstance(event, Prefill):
        _need(newest is None, f"arm {event.arm} has a prompt already")
        told[event.arm] = 0
    elif isinstance(event, Step):
        _need(newest is not None, f"arm {event.arm} has no prompt yet")
        _need(event.t - 1 == newest, f"t is {event.t} after token {newest}")
        told[event.arm] = event.t
    elif isinstance(event, Sets | TextSets):
        _need(event.t == newest, f"t is {event.t} after token {newest}")


def _check_layers(event: Event, start: Start) -> None:
    """Raise ValueError where a list is not of all layers, or a packed set or score not of all image tokens."""
    lists: dict[str, Any] = {}
    if isinstance(event, Prefill):
        lists = {"stored": event.stored}
    elif isinstance(event, Sets):
        lists = {"stored": event.stored, "core": event.core}
        for packed in (*(event.stored or ()), *(event.core or ()), *filter(None, [event.pruned])):
            unpack_bits(packed, start.n_image)
    elif isinstance(event, TextSets):
        _need((event.kept is None) == (event.t > 0), "kept belongs to t = 0, and to no other")
        _need(bool(event.gone) == (event.t > 0), "gone belongs to t > 0, and to no other")
        lists = {"kept": event.kept, "gone": event.gone or None}
        for packed in event.kept or ():
            unpack_bits(packed, start.text_tokens(event.arm))
        most = start.text_tokens(event.arm) + event.t
        for tokens in event.gone:
            rising = all(a < b for a, b in itertools.pairwise(tokens))
            within = not tokens or (tokens[0] >= 0 and tokens[-1] < most)
            _need(rising and within, f"gone does not hold ascending numbers of text tokens below {most}")
    elif isinstance(event, Scores):
        lists = {"image": event.image, "shares": event.shares, "rest": event.rest}
        whole = [not np.isnan(unpack_scores(packed, start.n_image)).any() for packed in event.image]
        _need(all(whole) or event.rest is not None, "image does not list all tokens, and there is no rest")
        if event.mean:
            _need(not np.isnan(unpack_scores(event.mean, start.n_image)).any(), "mean does not list all image tokens")
        _need(all(len(shares) in (4, 5) for shares in event.shares or ()), "shares does not hold five shares per layer")
        _need(all(min(shares) >= 0 for shares in event.shares or ()), "shares holds a negative share")
    elif isinstance(event, Repeat):
        _need(event.number >= 1, f"number is {event.number}")
    elif isinstance(event, Agreement):
        _check_agreement(event, start)
    for name, values in lists.items():
        _need(values is None or len(values) == start.layers, f"{name} has {len(values or ())} values for {start.layers} layers")


def _check_agreement(event: Agreement, start: Start) -> None:
    """Raise ValueError unless all lists are of the same one to ``limit`` tokens, and the arm that is compared with exists."""
    arms, tokens = len(start.arms), len(event.tokens)
    _need(event.reference is None or event.reference < arms, f"there is no arm {event.reference}, this trace has {arms}")
    _need(1 <= tokens <= start.limit, f"tokens has {tokens} values, not from 1 to {start.limit}")
    for name in ("texts", "top", "top_texts", "kl", "nll", "full_nll"):
        _need(len(getattr(event, name)) == tokens, f"{name} has {len(getattr(event, name))} values for {tokens} tokens")
    differ = [(token is None) == (text is None) for token, text in zip(event.top, event.top_texts, strict=True)]
    _need(all(differ), "top and top_texts differ in where they have none")
    _need(max(*event.kl, *event.nll, *event.full_nll) <= MOST_NATS, f"kl, nll or full_nll is above {MOST_NATS:g}")
