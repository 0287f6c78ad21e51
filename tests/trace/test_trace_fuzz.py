"""Whatever is given to ``Trace.from_json``, it raises ValueError in one sentence, or gives a trace that every reader can use."""

from __future__ import annotations

import base64
import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avl.evaluation.figures import summary as figures
from avl.trace import Trace
from avl.ui import report

FILE = Path(__file__).resolve().parents[2] / "assets" / "traces" / "scene.json"


def small() -> dict[str, Any]:
    """The recorded trace without its later steps, so that a case takes a millisecond."""
    document = json.loads(FILE.read_text("utf-8"))
    document["images"] = ["data:image/png;base64,AAAA"]
    for arm in document["events"][0]["arms"]:
        arm["predicted"] = arm["predicted"][:3]
    kept = [event for event in document["events"] if event.get("t", 0) <= 1]
    for event in kept:
        if event["kind"] in ("agreement", "repeat"):  # a few tokens of the whole answer
            event |= {name: value[:4] for name, value in event.items() if isinstance(value, list)}
    return {**document, "events": kept}


WHOLE = small()
TEXT = json.dumps(WHOLE)


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a document stands."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [before, *(path for key in keys for path in paths(value[key], (*before, key)))]


PLACES = [path for path in paths(WHOLE) if path]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2, 2**31, 2**53, 2**63, 2**64, 10**300, 10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "start", "end", "step", "sets", "=1+1", "\ud800", "AAAA", "AAA", "A" * 400, base64.b64encode(bytes(72)).decode()]),
    st.sampled_from([[], {}, [[]], [None], [[[[]]]], {"kind": "step"}, [1, 2, 3], ["AAAA"] * 7]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    ),
)
OPS = st.sampled_from(["set", "set", "set", "delete", "twice", "swap", "negate", "wrap", "key", "cut", "move"])
CHANGES = st.lists(st.tuples(st.integers(0, len(PLACES) - 1), OPS, JUNK, st.integers(0, 1000)), min_size=1, max_size=3)


def changed(document: Any, place: tuple[Any, ...], op: str, junk: Any, other: int) -> None:
    """Change a document at one place; does nothing where an earlier change has removed it."""
    holder = document
    try:
        for key in place[:-1]:
            holder = holder[key]
        value, key = holder[place[-1]], place[-1]
    except (KeyError, IndexError, TypeError):
        return
    listed = isinstance(holder, list)
    if op == "set":
        holder[key] = junk
    elif op == "delete":
        del holder[key]
    elif op == "twice" and listed:
        holder.insert(other % (len(holder) + 1), copy.deepcopy(value))
    elif op == "swap" and listed:
        with_ = other % len(holder)
        holder[key], holder[with_] = holder[with_], holder[key]
    elif op == "negate" and isinstance(value, int | float):
        holder[key] = -value
    elif op == "wrap":
        holder[key] = [value]
    elif op == "key" and not listed:
        holder[str(junk)] = junk
    elif op == "cut" and isinstance(value, str | list):
        holder[key] = value[: other % (len(value) + 1)]
    elif op == "move" and listed:
        holder.append(holder.pop(key))


def usable(text: str | bytes) -> bool:
    """Read a trace; if it is accepted, do all that is ever done with one. Anything but a ValueError of one sentence fails."""
    said = ""
    try:
        trace = Trace.from_json(text)
    except ValueError as error:
        said = str(error)
    if said:
        assert "\n" not in said
        assert 10 < len(said) < 400, said
        return False
    again = Trace.from_json(trace.to_json())
    assert again == trace
    trace.to_json().encode("utf-8")
    for line in report.steps_csv(trace).splitlines():
        line.encode("utf-8")
    for arm in range(len(trace.start.arms)):
        try:
            result = figures.summary(trace, arm)
        except ValueError:
            continue
        list(figures.tables(result))
        json.dumps(result, allow_nan=False)
    return True


def cases(number: int) -> Any:
    return settings(max_examples=number, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


def fuzz(number: int) -> dict[str, int]:
    """Run ``number`` cases: two thirds changes of a real trace, the rest its text cut and spliced, any JSON, text and bytes."""
    counts = {"accepted": 0, "refused": 0}

    def tell(accepted: bool) -> None:
        counts["accepted" if accepted else "refused"] += 1

    @cases(2 * number // 3)
    @given(CHANGES)
    def changes(several: list[tuple[int, str, Any, int]]) -> None:
        document = json.loads(TEXT)  # a copy, and faster than one
        for place, op, junk, other in several:
            changed(document, PLACES[place], op, junk, other)
        tell(usable(json.dumps(document)))

    @cases(number // 9)
    @given(st.integers(0, len(TEXT)), st.integers(0, 40), st.text(max_size=6))
    def splices(place: int, length: int, between: str) -> None:
        tell(usable(TEXT[:place] + between + TEXT[place + length :]))

    @cases(number // 9)
    @given(st.one_of(JUNK, st.dictionaries(st.sampled_from(["schema", "events", "meta", "images", "x"]), JUNK)))
    def values(value: Any) -> None:
        tell(usable(json.dumps(value)))

    @cases(number // 9)
    @given(st.text() | st.binary())
    def raw(text: str | bytes) -> None:
        tell(usable(text))

    for one in (changes, splices, values, raw):
        one()
    return counts


def test_a_few_hundred_cases():
    counts = fuzz(360)
    assert min(counts.values()) > 5, f"a fuzz that never accepts or never refuses shows nothing: {counts}"


@pytest.mark.slow
def test_thousands_of_cases():
    counts = fuzz(int(os.environ.get("AVL_FUZZ", 3_000)))
    print(counts)
    assert min(counts.values()) > 50


def test_the_recorded_trace_is_usable():
    assert usable(TEXT)
    assert usable(TEXT.encode())
    assert "<script" in report.page(Trace.from_json(TEXT))


@pytest.mark.parametrize(
    "thing",
    [None, 5, [], {}, object(), True, math.nan, WHOLE, Trace(), Path("x"), memoryview(b"{}")],
    ids=lambda thing: type(thing).__name__,
)
def test_what_is_no_text_is_refused(thing):
    with pytest.raises(ValueError, match="a trace is JSON text, not a "):
        Trace.from_json(thing)


@pytest.mark.parametrize("depth", [65, 1000, 200_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused(depth, opening, closing):
    deep = opening * depth + "1" + closing * depth
    for text in (deep, TEXT.replace('"meta": {', f'"meta": {{"deep": {deep},', 1).replace(",}", "}", 1)):
        with pytest.raises(ValueError, match="nested"):
            Trace.from_json(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"schema": 2', '"schema": true', "schema True"),
        ('"schema": 2', '"schema": 2.0', "schema 2.0"),
        ('"schema": 2', '"schema": 3', "schema 3, this version reads schema 1 and 2"),
        ('"schema": 2', '"schema": 2, "schema": 2', "'schema' stands twice"),
        ('"arm": 0', '"arm": 0, "arm": 1', "'arm' stands twice"),
        ('"arm": 0', '"arm": 7', "there is no arm 7, this trace has 2"),
        ('"arm": 0', '"arm": -1', "there is no arm -1"),
        ('"arm": 0', '"arm": null', "bad prefill event: arm is None, not a whole number"),
        ('"kind": "prefill"', '"kind": "start", "schema": 1', "bad start event: it has an unknown field 'arm'"),
        ('"kind": "prefill"', '"kind": ["prefill"]', "unknown event kind"),
        ('"limit": ', '"limit": -', "bad start event: limit is -"),
        ('"n_image": ', '"n_image": 1', "bytes|scores"),
        ('"spread": []', '"spread": ["AAAA"]', "spread has 1 values for 8 layers"),
        ('"spread": []', '"spread": ["AAAA", "", "", "", "", "", "", ""]', "needs 72 bytes, this one has 3"),
        ('"spread": []', '"spread": "AAAA"', r"spread is 'AAAA', not a list"),
        ('"t": 1', '"t": 2', "t is 2 after token 0"),
        ('"t": 1', '"t": 1e999', "not a finite number"),
        ('"t": 1', '"t": NaN', "not a finite number"),
        ('"t": 1', '"t": ' + "9" * 5000, "digits"),
        ('"t": 1', '"t": 1.0', "t is 1.0, not a whole number"),
        ('"mean": "d:', '"mean": "t:', "listed|list|scores"),
        ('"mean": "d:', '"mean": "d:AAAA', "not base64|of [0-9]+ image tokens, not of"),
        ('"rest": null', '"rest": [-1, 0, 0, 0, 0, 0, 0, 0]', "rest is negative"),
        ('"rest": null', '"rest": [0.5]', "rest has 1 values for 8 layers"),
        ('"image": ["d:', '"image": ["t:', "list"),
        ('"image": ["d:', '"image": ["t:AA==", "d:', "there is no rest"),
        ('"image": ["d:', '"image": ["d:AAAA", "d:', "of 3 image tokens, not of 576"),
        ('"events": [', '"events": [5, ', "an event is 5, not an object"),
        ('"images": [', '"images": ["javascript:alert(1)", ', "not a data URI of a picture"),
        ('"meta": {', '"extra": 1, "meta": {', "unknown part 'extra'"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_each_fault_is_named(old, new, words):
    assert old in TEXT
    with pytest.raises(ValueError, match=words):
        Trace.from_json(TEXT.replace(old, new, 1))
