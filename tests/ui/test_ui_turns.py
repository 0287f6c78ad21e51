"""Asking on: a run's further question is a run of its own; what cannot be asked is refused in a sentence and loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fake import Fake, about
from PIL import Image
from test_ui_api import collect, uri
from test_ui_history import board, events_of, handler, start, visitor

from avl import trace
from avl.engine.follow_up import MAX_TURNS
from avl.ui import api, page, turn_api, zero
from avl.ui.limits import Limits
from avl.ui.queue import ThreadTransport


@pytest.fixture
def make() -> Iterator[Callable[..., page.Page]]:
    pages: list[page.Page] = []

    def build(fake: Fake | None = None, **options: Any) -> page.Page:
        pages.append(page.build(fake or Fake(pace=0, prefill=0), about(), **options))
        return pages[-1]

    yield build
    for one in pages:
        one.transport.close()


def ask(built: page.Page, wanted: Any, name: str = "visitor") -> Any:
    return handler(built, "ask")(SimpleNamespace(_data=wanted), visitor(name))


async def whole(stream: Any) -> dict[str, Any]:
    """Read a run to its end; return its key and events, or the refusal."""
    found: dict[str, Any] = {"events": [], "run": None}
    async for value in stream:
        if value[0].get("state") == "refused":
            return {"refused": value[0]["message"]}
        found["run"] = value[0].get("run")
        found["meta"] = value[0].get("meta", found.get("meta"))
        found["events"] += events_of(value[0])
    return found


def test_a_further_question_is_a_run_with_kept_and_read_again_arms(make: Any, picture: Path) -> None:
    built = make()

    async def go() -> None:
        first = await whole(start(built, picture, 6))
        second = await whole(ask(built, {"run": first["run"], "question": "And <b>now</b>?"}))
        begun = second["events"][0]
        assert (begun["turn"], begun["questions"], begun["question"]) == (2, ["What?"], "And <b>now</b>?")
        assert [arm["reread"] for arm in begun["arms"]] == [False, False, True, True]
        assert sorted(event["arm"] for event in second["events"] if event["kind"] == "end") == [0, 1, 2, 3]
        assert begun["limit"] == 6
        third = await whole(ask(built, {"run": second["run"], "question": "Then?", "reread": False}))
        assert third["events"][0]["questions"] == ["What?", "And <b>now</b>?"]
        assert len(third["events"][0]["arms"]) == 2
        # another branch of the same conversation, from a page of another session that has the key
        other = await whole(ask(built, {"run": first["run"], "question": "Else?"}, "other"))
        assert other["events"][0]["turn"] == 2
        told = board(built).history({"runs": [third["run"], first["run"]]})
        assert [(one["turn"], one["first_question"]) for one in told] == [(3, "What?"), (1, "What?")]
        assert trace.Trace.from_json(board(built).download({"run": third["run"], "kind": "json"})).start.turn == 3

    asyncio.run(go())


REFUSED = (
    ({"run": "not-a-key"}, "no longer has this run"),
    ({"run": ["x"] * 1000}, "no longer has this run"),
    ({"run": "recorded"}, "no longer has this run"),
    ({"question": " "}, "question is empty"),
    ({"question": None}, "question is empty"),
    ({"question": "x" * 2001}, "question is too long"),
    ({"reread": "yes"}, "true or false"),
)


def test_what_cannot_be_asked_is_refused_in_a_sentence(make: Any, picture: Path) -> None:
    built = make()

    async def go() -> None:
        first = await whole(start(built, picture, 3))
        for wanted, word in REFUSED:
            sent = {"run": first["run"], "question": "And?", **wanted}
            assert word in (await whole(ask(built, sent)))["refused"]
        assert "question is empty" in (await whole(ask(built, "nonsense")))["refused"]
        assert (await whole(ask(built, {"run": first["run"], "question": "And?"})))["events"]  # nothing was lost

    asyncio.run(go())


def test_a_run_that_goes_on_has_several_rows_or_other_pictures_is_not_asked_on(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.05, prefill=0))

    async def go() -> None:
        stream = start(built, picture, 40)
        key = (await anext(stream))[0]["run"]
        assert "not ended" in (await whole(ask(built, {"run": key, "question": "And?"})))["refused"]
        handler(built, "stop")(visitor())
        await whole(stream)
        chosen = {"arms": [{"policy": "Full"}], "max_new_tokens": 2, "batch": 2}
        rows = await whole(handler(built)(str(picture), None, "What?", chosen, {}, visitor()))
        assert "one row" in (await whole(ask(built, {"run": rows["run"], "question": "And?"})))["refused"]
        one = await whole(start(built, picture, 2))
        Image.new("RGB", (9, 9)).save(picture)
        assert "pictures of this run" in (await whole(ask(built, {"run": one["run"], "question": "And?"})))["refused"]
        picture.unlink()
        assert "pictures of this run" in (await whole(ask(built, {"run": one["run"], "question": "And?"})))["refused"]

    asyncio.run(go())


def test_conversations_are_bounded_in_turns_and_in_work(make: Any, picture: Path) -> None:
    built = make(limits=Limits(tokens=48))

    async def go() -> None:
        chosen = {"arms": [{"policy": "Full"}], "max_new_tokens": 2}
        run = await whole(handler(built)(str(picture), None, "What?", chosen, {}, visitor()))
        for number in range(2, MAX_TURNS + 1):
            run = await whole(ask(built, {"run": run["run"], "question": f"Question {number}?"}))
        assert f"{MAX_TURNS} is the most" in (await whole(ask(built, {"run": run["run"], "question": "More?"})))["refused"]
        large = await whole(handler(built)(str(picture), None, "What?", {**chosen, "max_new_tokens": 30}, {}, visitor()))
        assert "48 is the most" in (await whole(ask(built, {"run": large["run"], "question": "And?"})))["refused"]

    asyncio.run(go())


def test_on_zero_gpu_the_history_travels_with_the_question(make: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "_age", lambda: 0.25)  # as if forked just now
    asked: list[Any] = []

    def gpu(duration: Any) -> Any:
        def decorate(work: Any) -> Any:
            def wrapped(number: int, request: Any, seconds: int) -> Any:
                asked.append(request)
                return work(number, request, seconds)

            return wrapped

        return decorate

    built = make(zero_gpu=gpu)

    async def go() -> None:
        chosen = {"arms": [{"policy": "Full"}, {"policy": "AVL"}], "max_new_tokens": 3}
        one = await whole(handler(built)(str(picture), None, "What?", chosen, {}, visitor()))
        two = await whole(ask(built, {"run": one["run"], "question": "And?"}))
        assert sorted(event["arm"] for event in two["events"] if event["kind"] == "end") == [0, 1, 2, 3]
        assert [said.question for said in asked[-1].history] == ["What?"]
        assert [len(answer) for answer in asked[-1].history[0].answers] == [3, 3]
        assert "no longer has this run" in (await whole(ask(built, {"run": "?", "question": "And?"})))["refused"]

    asyncio.run(go())


def test_programs_send_the_history_that_they_got(picture: Path) -> None:
    transport = ThreadTransport(Fake(pace=0, prefill=0))
    try:
        compare, ask_on = api.endpoint(transport, about()), turn_api.endpoint(transport, about())
        arms = [{"policy": "Full"}, {"policy": "AVL", "S": 45}]
        first = collect(compare, {"url": uri(picture)}, "What?", arms, max_new_tokens=4)[-1]
        assert [len(answer) for answer in first["history"][0]["answers"]] == [4, 4]
        sent = json.loads(json.dumps(first["history"]))
        second = collect(ask_on, {"url": uri(picture)}, "And?", sent, arms, max_new_tokens=3)[-1]
        assert len(second["answers"]) == 4
        assert [one["question"] for one in second["history"]] == ["What?", "And?"]
        assert second["trace"]["events"][0]["turn"] == 2
        assert collect(compare, {"url": uri(picture)}, "What?", arms, max_new_tokens=4, batch=2)[-1]["history"] is None
        good = {"question": "What?", "max_new_tokens": 4, "answers": [[1], [2]]}
        for bad, word in (
            ("x", "must be the list"), ([], "must be the list"), ([good] * 100, "16 is the most"), ([7], "needs answers"),
            ([{**good, "answers": [[], [1]]}], "needs answers"), ([{**good, "answers": [["1"], [1]]}], "token numbers"),
            ([{**good, "answers": [[1] * 5, [1]]}], "at most 4"), ([{**good, "max_new_tokens": 10**9}], "max_new_tokens"),
            ([{**good, "question": ""}], "question is empty"), ([{**good, "question": "x" * 10**5}], "too long"),
        ):  # fmt: skip
            with pytest.raises(gr.Error, match=word):
                collect(ask_on, {"url": uri(picture)}, "And?", bad, arms)
    finally:
        transport.close()
