"""The handler between inputs and player, without a browser."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
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
from avl.ui import functions, gallery, page, report, shutdown
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
        one.transport.close()


def handler(built: page.Page, name: str = "run") -> Any:
    return next(fn.fn for fn in built.blocks.fns.values() if getattr(fn.fn, "__name__", "") == name)


VISITOR = SimpleNamespace(session_hash="visitor")


def settings(tokens: int = 6) -> dict[str, Any]:
    return {**controls.settings(about()), "max_new_tokens": tokens}


async def values(built: page.Page, picture: Path, question: str = "What?", **changes: Any) -> list[list[Any]]:
    stream = handler(built)(str(picture), None, question, {**settings(), **changes}, {}, VISITOR)
    return [value async for value in stream]


def events_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(value.get("events", "[]"))


def test_everything_is_sent_once_and_the_last_value_counts_it(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.03, prefill=0.05))
    got = [value[0] for value in asyncio.run(values(built, picture))]
    streamed = [event for value in got for event in events_of(value)]
    kept = built.runs.get(got[-1]["run"])
    assert len(got) > 3
    assert {key for key in got[-1] if key != "seq"} == {"run", "state", "count", "meta"}
    assert (got[-1]["state"], got[-1]["count"], got[-1]["meta"]) == ("done", len(streamed), kept.meta)
    assert streamed == json.loads(kept.to_json())["events"]
    assert [value["first"] for value in got[:-1]] == [sum(len(events_of(v)) for v in got[:i]) for i in range(len(got) - 1)]
    numbers = [value["seq"] for value in got]
    assert numbers == sorted(set(numbers))
    assert [value.get("images") for value in got] == [kept.images] + [None] * (len(got) - 1)
    trace.Trace.from_json(kept.to_json())


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

    heard: list[dict[str, Any]] = []

    async def go() -> dict[str, Any]:
        last: dict[str, Any] = {}
        async for value in handler(built)(str(picture), None, "q", settings(200), {}, VISITOR):
            last = value[0]
            heard.extend(events_of(last))
            if any(event["kind"] == "step" for event in events_of(last)):
                handler(built, "stop")(VISITOR)
        return last

    assert asyncio.run(go())["count"] == len(heard)
    assert [event["reason"] for event in heard if event["kind"] == "end"] == ["stopped", "stopped"]


def test_the_expected_answer_is_kept_in_the_traces_meta(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))

    async def go(known: Any) -> dict[str, Any]:
        return [value async for value in handler(built)(str(picture), None, "What?", settings(), known, VISITOR)][-1][0]

    meta = asyncio.run(go({"questions": [], "answers": {"What?": "a house"}, "name": "sea", "id": "x"}))["meta"]
    assert meta == {"pictures": ["sea"], "picture_id": "x", "repeats": 1, "expected": "a house"}
    for hostile in (
        None,
        [],
        {"questions": [], "answers": {"What?": {"a": 1}}},
        {"questions": [], "answers": "x"},
        {"answers": "x"},
        {"other": 1},
    ):
        meta = asyncio.run(go(hostile))["meta"]
        assert (meta["pictures"], "expected" in meta) == (["picture.png"], False), "the base name of an upload, never its path"


def test_missing_batches_and_downloads(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    got = asyncio.run(values(built, picture))
    key = got[-1][0]["run"]
    board = next(block for block in built.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player")
    whole = [event for value in got for event in events_of(value[0])]
    assert json.loads(board.missing({"run": key, "first": 3})) == whole[3:]
    assert board.missing({"run": key, "first": len(whole)}) == "[]"
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


def test_a_page_that_missed_much_asks_for_it_in_pieces(make: Any, picture: Path) -> None:
    """Each answer is bounded, has one event at least, and all of them together are the rest of the run."""
    built = make(Fake(pace=0, prefill=0))
    key = asyncio.run(values(built, picture, scores=True))[-1][0]["run"]
    run = built.runs.get(key)
    run.append(trace.Warning("x" * 3 * functions.MISSING_BYTES))
    for number in range(1000):
        run.append(trace.Warning(f"{number} " + "y" * 5000))
    whole = json.loads(run.to_json())["events"]
    board = next(block for block in built.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player")
    heard, answers = [], []
    while len(heard) < len(whole):
        answers.append(board.missing({"run": key, "first": len(heard)}))
        more = json.loads(answers[-1])
        assert more
        heard += more
    assert heard == whole
    assert len(answers) > 6
    assert sorted(map(len, answers))[-2] <= functions.MISSING_BYTES + 1000 < max(map(len, answers)), (
        "but for the event that is larger itself"
    )


def test_templates_hold_nothing_that_a_template_engine_would_run(make: Any) -> None:
    built = make(Fake())
    components = [block for block in built.blocks.blocks.values() if type(block).__name__ == "HTML"]
    assert len(components) == len(player.ENTRIES)
    for block in components:
        assert re.fullmatch(r'<div class="avl avl-\w+"></div>', block.html_template)
        assert block.css_template == ""


def test_scripts_only_turn_constants_into_markup() -> None:
    files = {path.name: path.read_text("utf-8") for entry in player.ENTRIES.values() for path in player.modules(entry)}
    found = [
        (name, line.strip())
        for name, text in files.items()
        for line in text.splitlines()
        if re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", line)
    ]
    assert found == [("dom.js", "root.innerHTML = markup;"), ("panels.js", "node.innerHTML = panel.html;")]
    # what becomes markup holds nothing but constants of the scripts: ${…} there names a text, or another piece of markup
    markup = [one for text in files.values() for one in re.findall(r"(?:html:|const [A-Z_]+ =) `[^`]*`", text)]
    held = {name for one in markup for name in re.findall(r"\$\{(\w+)", one)}
    assert len(markup) > 10
    assert held <= {"TEXT", "WORDS", "axisMarkup", "chartMarkup", "field", "name", "number"}


def finished(text: str, question: str = "What?") -> trace.Trace:
    """A short made-up run, without a page."""
    request = GenerationRequest((Image.new("RGB", (32, 32)),), question, (avl.Full(), avl.AVL(S=45, C=30)), max_new_tokens=4)
    return trace.Trace(list(Fake(pace=0, prefill=0, text=[text])(request, threading.Event())))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_report_keeps_hostile_text_as_data(payload: str) -> None:
    run = finished(payload, question=payload)
    text = report.page(run)
    # what belongs to the trace is base64, so no markup of it can begin; and it is there once
    packed = dict(re.findall(r'^<script type="text/plain" id="packed-(\w+)">([A-Za-z0-9+/=]+)</script>$', text, re.M))
    found = {name: gzip.decompress(base64.b64decode(data)).decode() for name, data in packed.items()}
    assert found == {"plotly": player.PLOTLY_JS.read_text("utf-8"), "trace": run.to_json(), "csv": report.steps_csv(run)}
    assert text.count("</script>") == 4
    assert text.count("<script") == 4


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
    recorded = built.runs.get(got[-1][0]["run"])
    again = make(Fake(), recorded=recorded)
    board = next(block for block in again.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player")
    assert board.value["recorded"] is True
    assert "trace" not in board.value, "its size would hold up the first paint"
    assert board.recording({}) == recorded.to_json()


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
        built.transport.close()


def test_a_busy_machine_starts(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio asks its own server for the page at the end of a start, and gives up after three seconds."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda _: False)
    _, program = here(Fake(pace=0, prefill=0))
    assert program.health()[0] == 200
