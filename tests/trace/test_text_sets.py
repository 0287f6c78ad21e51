"""What a trace says of text tokens is checked like the rest."""

from __future__ import annotations

import json

import pytest

from avl import trace

PREFILL = trace.Prefill(0, 1.0, 5, "a", (1, 1), 1, 1)
STEP = trace.Step(0, 1, 5, "b", 1.0, 2.0, 1, 1, 1, 1, False)


def document(*events: trace.Event, text: tuple[str, ...] = ("<s>", "what", "?")) -> str:
    start = trace.Start(
        (trace.Arm("A", {"name": "A"}, "torch"),), "single", "what?", "<s>what?", {}, {}, "2026-01-01", 4, 3, (), (), (), 2, 8, 1, 9,
        0.0, 1.0, None, text=text,
    )  # fmt: skip
    return trace.Trace([start, *events]).to_json()


def test_it_reads_what_it_writes() -> None:
    kept = trace.pack_bits([0, 2], 3)
    events = [PREFILL, trace.TextSets(0, 0, (kept, kept)), STEP, trace.TextSets(0, 1, None, ((2, 3), ()))]
    read = trace.Trace.from_json(document(*events))
    assert read.events[1:] == events
    assert read.start.text == ("<s>", "what", "?")


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([trace.TextSets(0, 0, None)], "t is 0 after token None"),
        ([PREFILL, trace.TextSets(0, 1, None, ((), (1,)))], "t is 1 after token 0"),
        ([PREFILL, trace.TextSets(0, 0, None)], "kept belongs to t = 0"),
        ([PREFILL, trace.TextSets(0, 0, ("4A==", "4A=="), ((1,), ()))], "gone belongs to t > 0"),
        ([PREFILL, trace.TextSets(0, 0, ("4A==",))], "kept has 1 values for 2 layers"),
        ([PREFILL, trace.TextSets(0, 0, ("4A==", "AAAA"))], "a set of 3 tokens needs 1 bytes"),
        ([PREFILL, STEP, trace.TextSets(0, 1, None)], "gone belongs to t > 0"),
        ([PREFILL, STEP, trace.TextSets(0, 1, ("4A==", "4A=="), ((), ()))], "kept belongs to t = 0"),
        ([PREFILL, STEP, trace.TextSets(0, 1, None, ((1,),))], "gone has 1 values for 2 layers"),
        ([PREFILL, STEP, trace.TextSets(0, 1, None, ((4,), ()))], "below 4"),
        ([PREFILL, STEP, trace.TextSets(0, 1, None, ((-1,), ()))], "below 4"),
        ([PREFILL, STEP, trace.TextSets(0, 1, None, ((2, 1), ()))], "ascending"),
        ([PREFILL, STEP, trace.TextSets(0, 1, None, ((1, 1), ()))], "ascending"),
        ([PREFILL, STEP, trace.TextSets(3, 1, None, ((1,), ()))], "there is no arm 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_named(events: list[trace.Event], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trace.Trace.from_json(document(*events))


def test_texts_are_as_many_as_text_tokens() -> None:
    with pytest.raises(ValueError, match="text has 2 texts for 3 text tokens"):
        trace.Trace.from_json(document(text=("a", "b")))
    old = json.loads(document())
    del old["events"][0]["text"]
    assert trace.Trace.from_json(json.dumps(old)).start.text == ()
