"""The handler between inputs and player, without a browser."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake import Fake, about
from PIL import Image

import avl
from avl import trace
from avl.cli.record import is_typical
from avl.engine.request import GenerationRequest
from avl.ui import components as player
from avl.ui import gallery, page, report, shutdown
from avl.ui import settings as controls
from avl.ui.serve import serve

PAYLOADS = [
    "${alert(1)}",
    "`+alert(1)+`",
    "{{constructor.constructor('alert(1)')()}}",
    "{{#each value}}x{{/each}}",
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\u2028alert(1)\u2029",
    '"]};alert(1)//',
    "javascript:alert(1)",
]


@pytest.fixture
def make() -> Iterator[Any]:
    pages: list[page.Page] = []

    def build(fake: Fake, **options: Any) -> page.Page:
        pages.append(page.build(fake, about(), **options))
        return pages[-1]

    yield build
    for one in pages:
        if one.transport is not None:
            one.transport.close()


def handler(built: page.Page, name: str = "run") -> Any:
    return next(fn.fn for fn in built.blocks.fns.values() if getattr(fn.fn, "__name__", "") == name)


VISITOR = SimpleNamespace(session_hash="visitor")


def settings(tokens: int = 6) -> dict[str, Any]:
    return {**controls.settings(about()), "max_new_tokens": tokens}


async def values(built: page.Page, picture: Path, question: str = "What?", **changes: Any) -> list[list[Any]]:
    stream = handler(built)(str(picture), None, question, {**settings(), **changes}, {}, VISITOR)
    return [value async for value in stream]


def test_the_last_value_is_complete_and_equals_what_was_streamed(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.03, prefill=0.05))
    got = [value[0] for value in asyncio.run(values(built, picture))]
    streamed = [event for value in got[:-1] for event in value["events"]]
    assert len(got) > 3
    assert got[-1]["state"] == "done"
    assert got[-1]["trace"]["events"] == streamed
    assert [value["first"] for value in got[:-1]] == [sum(len(v["events"]) for v in got[:i]) for i in range(len(got) - 1)]
    numbers = [value["seq"] for value in got]
    assert numbers == sorted(set(numbers))
    # the picture travels once while streaming, and once in the whole trace
    assert [bool(value["images"]) for value in got[:-1]] == [True] + [False] * (len(got) - 2)
    replay = trace.Trace.from_json(json.dumps(got[-1]["trace"]))
    assert json.loads(json.dumps([event.to_dict() for event in replay])) == json.loads(json.dumps(streamed))


def test_buttons_follow_the_run(make: Any, picture: Path) -> None:
    got = asyncio.run(values(make(Fake(pace=0, prefill=0)), picture))
    assert (got[0][1].interactive, got[0][2].interactive) == (False, True)
    assert (got[-1][1].interactive, got[-1][2].interactive) == (True, False)


@pytest.mark.parametrize(
    ("question", "path", "word"), [("", "picture", "question is empty"), ("q", None, "no picture"), ("q", "/etc/passwd", "not a picture")]
)
def test_refusals_reach_the_page_as_a_sentence(make: Any, picture: Path, question: str, path: str | None, word: str) -> None:
    built = make(Fake())
    stream = handler(built)(str(picture) if path == "picture" else path, None, question, settings(), {}, VISITOR)

    async def go() -> list[Any]:
        return [value async for value in stream]

    got = asyncio.run(go())
    assert len(got) == 1
    assert got[0][0]["state"] == "refused"
    assert word in got[0][0]["message"]
    assert got[0][1].interactive is True


def test_a_handler_that_is_closed_ends_the_run(make: Any, picture: Path) -> None:
    fake = Fake(pace=0.01)
    built = make(fake)

    async def go() -> None:
        stream = handler(built)(str(picture), None, "q", settings(200), {}, VISITOR)
        async for _ in stream:
            if fake.active:
                break
        await stream.aclose()

    asyncio.run(go())
    limit = time.monotonic() + 2
    while built.transport.load != (0, 0) and time.monotonic() < limit:
        time.sleep(0.01)
    assert fake.log == ["begin", "freed"]


def test_stop_ends_the_visitors_run_and_the_page_hears_it(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.02))

    async def go() -> dict[str, Any]:
        last: dict[str, Any] = {}
        async for value in handler(built)(str(picture), None, "q", settings(200), {}, VISITOR):
            last = value[0]
            if any(event["kind"] == "step" for event in last.get("events", [])):
                handler(built, "stop")(VISITOR)
        return last

    last = asyncio.run(go())
    assert [event["reason"] for event in last["trace"]["events"] if event["kind"] == "end"] == ["stopped", "stopped"]


def test_the_expected_answer_is_kept_in_the_traces_meta(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))

    async def go(known: Any) -> dict[str, Any]:
        return [value async for value in handler(built)(str(picture), None, "What?", settings(), known, VISITOR)][-1][0]

    meta = asyncio.run(go({"questions": [], "answers": {"What?": "a house"}, "name": "sea", "id": "x"}))["trace"]["meta"]
    assert meta == {"pictures": ["sea"], "picture_id": "x", "repeats": 1, "expected": "a house"}
    for hostile in (
        None,
        [],
        {"questions": [], "answers": {"What?": {"a": 1}}},
        {"questions": [], "answers": "x"},
        {"answers": "x"},
        {"other": 1},
    ):
        meta = asyncio.run(go(hostile))["trace"]["meta"]
        assert (meta["pictures"], "expected" in meta) == (["picture.png"], False), "the base name of an upload, never its path"


def test_missing_batches_and_downloads(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    got = asyncio.run(values(built, picture))
    key = got[-1][0]["run"]
    board = next(block for block in built.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player")
    assert len(board.missing({"run": key, "first": 3})) == len(got[-1][0]["trace"]["events"]) - 3
    for hostile in (
        None,
        "x",
        {},
        {"run": "nope", "first": 0},
        {"run": key, "first": "0"},
        {"run": key, "first": -1},
        {"run": [key], "first": 0},
    ):
        assert board.missing(hostile) is None
    assert trace.Trace.from_json(board.download({"run": key, "kind": "json"})).start.question == "What?"
    lines = board.download({"run": key, "kind": "csv"}).splitlines()
    assert len(lines) == 1 + 2 * 6
    assert lines[0].startswith("arm,policy,t,token")
    with pytest.raises(Exception, match="no longer"):
        board.download({"run": "nope", "kind": "json"})


def test_the_store_of_runs_is_bounded() -> None:
    runs = report.Runs(capacity=3)
    for number in range(10):
        runs.add(str(number), trace.Trace())
    assert len(runs) == 3
    assert runs.get("9") is not None
    assert runs.get("0") is None


def test_templates_hold_nothing_that_a_template_engine_would_run(make: Any) -> None:
    built = make(Fake())
    components = [block for block in built.blocks.blocks.values() if type(block).__name__ == "HTML"]
    assert len(components) == 4
    for block in components:
        assert re.fullmatch(r'<div class="avl avl-\w+"></div>', block.html_template)
        assert block.css_template == ""


def test_scripts_only_turn_constants_into_markup() -> None:
    files = {path.name: path.read_text("utf-8") for path in (player.ASSETS / "player").glob("*.js")}
    found = [
        (name, line.strip())
        for name, text in files.items()
        for line in text.splitlines()
        if re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", line)
    ]
    assert found == [("base.js", "root.innerHTML = MARKUP;")]


def finished(text: str, question: str = "What?") -> trace.Trace:
    """A short made-up run, without a page."""
    request = GenerationRequest((Image.new("RGB", (32, 32)),), question, (avl.Full(), avl.AVL(S=45, C=30)), max_new_tokens=4)
    return trace.Trace(list(Fake(pace=0, prefill=0, text=[text])(request, threading.Event())))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_report_keeps_hostile_text_as_data(payload: str) -> None:
    text = report.page(finished(payload, question=payload))
    # what belongs to the trace has no "<" at all, so no markup of it can begin
    for name in ("const files = ", "const value = "):
        line = next(line for line in text.split("\n") if line.startswith(name))
        assert "<" not in line
    assert text.count("</script>") == 2


def test_csv_does_not_run_formulas() -> None:
    assert ",'=HYPERLINK" in report.steps_csv(finished("=HYPERLINK(1)"))


@pytest.mark.parametrize("bundled", [True, False])
def test_the_gallery_suits_the_model(bundled: bool) -> None:
    shelf = gallery.examples(bundled)
    assert len(shelf) >= 4
    for example in shelf:
        assert Image.open(example.path).width >= 300
        assert example.questions
        assert gallery.thumbnail(example.path).startswith("data:image/webp")


def test_new_scene_examples_and_questions(make: Any) -> None:
    drawn = SimpleNamespace(
        image=Image.open(gallery.examples(True)[0].path), questions=[SimpleNamespace(text="what is it", answer="a cup")]
    )
    built = make(Fake(), scene=lambda seed: drawn)
    pick = handler(built, "pick")
    path, more, question, strip, known = pick(SimpleNamespace(_data={"scene": True}), {}, None, ["other.png"], "")
    assert Path(path).exists()
    assert more is None, "what was uploaded beside another picture goes with it"
    assert (question, strip["questions"], known["answers"]) == ("What is it", ["What is it"], {"What is it": "a cup"})
    # the picture that stays is given back: a skipped one would be decoded by Gradio from then on
    assert pick(SimpleNamespace(_data={"question": 0}), known, path, ["a.png"], "q")[:3] == [path, ["a.png"], "What is it"]
    assert pick(SimpleNamespace(_data={"example": 1}), known, path, None, "q")[0] == str(gallery.examples(True)[1].path)
    for hostile in (None, {}, {"question": 99}, {"question": "0"}, {"example": -1}, {"scene": False}):
        first, more, *others = pick(SimpleNamespace(_data=hostile), known, path, ["a.png"], "q")
        assert (first, more) == (path, ["a.png"])
        assert all(isinstance(value, dict) and value.get("__type__") == "update" for value in others)


def test_a_recorded_trace_is_the_first_paint(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    got = asyncio.run(values(built, picture))
    recorded = trace.Trace.from_json(json.dumps(got[-1][0]["trace"]))
    again = make(Fake(), recorded=recorded)
    board = next(block for block in again.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player")
    assert board.value["recorded"] is True
    assert "trace" not in board.value, "its size would hold up the first paint"
    assert board.recording({}) == recorded.to_json()


def test_zero_gpu_uses_a_synchronous_handler(picture: Path) -> None:
    built = page.build(Fake(pace=0, prefill=0), about(), zero_gpu=lambda duration: lambda function: function)
    assert built.transport is None
    got = list(handler(built, "run_on_zero")(str(picture), None, "What?", settings(), {}))
    assert got[-1][0]["state"] == "done"
    assert got[-1][0]["trace"]["events"][-1]["kind"] == "end"


def test_the_recorded_run_is_like_its_repeats() -> None:
    """What the page opens with must not contradict the medians of all its runs beside it."""
    recorded = gallery.recording(True)
    assert recorded is not None
    assert is_typical(recorded)
    ends = [end for end in recorded.of(trace.End) if end.arm == 0]
    slow = trace.Trace([dataclasses.replace(event, median_ms=99.0) if event in ends else event for event in recorded])
    assert not is_typical(slow)
    assert recorded.meta["pictures"] == [gallery.examples(True)[0].name]
    assert recorded.start.question == gallery.examples(True)[0].questions[0]


def test_the_page_names_a_folder_without_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the page, in its health and in its configuration; and it measures pictures with the folder's processor."""
    folder = tmp_path / "some where" / "my-llava"
    shutil.copytree(player.ASSETS / "tiny", folder)
    served: list[page.Page] = []
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(page.Page, "launch", lambda built, *_, **__: served.append(built))
    monkeypatch.setattr(shutdown.Signals, "wait", lambda *_: None)
    monkeypatch.setattr(shutdown, "shut_down", lambda _: True)
    serve(str(folder), device="cpu")
    (built,) = served
    try:
        health = asyncio.run(health_of(built))
        assert health["model"] == "my-llava"
        config = json.dumps(built.blocks.get_config_file(), default=str)
        assert "some where" not in config
        assert "site-packages" not in config
        facts = next(block for block in built.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player").props["about"]
        assert (facts["name"], facts["context"], facts["preset"]) == ("my-llava", 2048, "llava-1.5-7b")
        assert "measure" not in facts
    finally:
        assert built.transport is not None
        built.transport.close()


async def health_of(built: page.Page) -> Any:
    route = next(route for route in built.application.options()["routes"] if route.path == "/healthz")
    return json.loads((await route.endpoint(None)).body)


def test_the_last_run_is_given_back_by_its_id(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    key = asyncio.run(values(built, picture))[-1][0]["run"]
    board = next(block for block in built.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player")
    assert trace.Trace.from_json(board.last({"run": key})).start.question == "What?"
    for hostile in (None, "x", {}, {"run": "nope"}, {"run": [key]}):
        assert board.last(hostile) is None


def test_measuring_a_question_brings_no_picture_back() -> None:
    """A question loses the focus where "remove picture" is clicked, and may be measured after the picture went."""
    built = page.build(Fake(), about())
    try:
        blur = next(one for one in built.blocks.fns.values() if one.name == "measured")
        assert [type(component).__name__ for component in blur.outputs] == ["HTML"], "what is known of the picture is not written"
        handlers = page.PictureHandlers(about(), gallery.examples(True), None)
        told, known = handlers.opening()
        path = gallery.examples(True)[0].path
        measured = handlers.measured(str(path), None, "How many?", known)
        assert measured["measured"]["id"] == told["id"] == known["id"]
        assert "questions" not in measured
    finally:
        assert built.transport is not None
        built.transport.close()
