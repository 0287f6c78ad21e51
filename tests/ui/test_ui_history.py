"""Runs of a visitor: they outlive the page that started them, are listed and downloaded by key, and take a bounded share of the server."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake import Fake, about
from PIL import Image

from avl import trace
from avl.ui import page
from avl.ui import settings as controls
from avl.ui.following import MOST_READERS
from avl.ui.history import CUT, MOST_KEYS
from avl.ui.limits import Limits
from avl.ui.runs import THUMBNAIL_BYTES, KeptRun, Runs, size, thumbnail

QUICK = Limits(away_seconds=0.3)


@pytest.fixture
def make() -> Iterator[Callable[..., page.Page]]:
    pages: list[page.Page] = []

    def build(fake: Fake, **options: Any) -> page.Page:
        pages.append(page.build(fake, about(), **options))
        return pages[-1]

    yield build
    for one in pages:
        one.transport.close()


def handler(built: page.Page, name: str = "run") -> Any:
    return next(fn.fn for fn in built.blocks.fns.values() if getattr(fn.fn, "__name__", "") == name)


def board(built: page.Page) -> Any:
    return next(block for block in built.blocks.blocks.values() if getattr(block, "elem_id", "") == "avl-player")


def visitor(name: str = "visitor", host: str | None = None) -> Any:
    return SimpleNamespace(session_hash=name, client=None if host is None else SimpleNamespace(host=host))


def start(built: page.Page, picture: Path, tokens: int = 200, name: str = "visitor", question: str = "What?", known: Any = None) -> Any:
    chosen = {**controls.settings(about()), "max_new_tokens": tokens}
    return handler(built)(str(picture), None, question, chosen, known or {}, visitor(name))


def rejoin(built: page.Page, key: Any, first: Any = 0, name: str = "later") -> Any:
    return handler(built, "rejoin")(SimpleNamespace(_data={"run": key, "first": first}), visitor(name))


def events_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Events travel as the text of a list; the last value has none."""
    return json.loads(value.get("events", "[]"))


async def begun(stream: Any, steps: int = 2) -> str:
    """Read until some steps have come; return the run's key."""
    seen = 0
    async for value in stream:
        seen += sum(event["kind"] == "step" for event in events_of(value[0]))
        if seen >= steps:
            return str(value[0]["run"])
    raise AssertionError("it ended before")


async def idle(built: page.Page, seconds: float = 5) -> float:
    began = time.monotonic()
    while built.transport.load != (0, 0):
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def over(built: page.Page, key: str) -> None:
    while not built.runs.find(key).over:  # type: ignore[union-attr]
        await asyncio.sleep(0.01)


async def whole(stream: Any) -> list[dict[str, Any]]:
    return [value[0] async for value in stream]


def one_run(built: page.Page, picture: Path, tokens: int = 6, **options: Any) -> str:
    async def go() -> str:
        return str((await whole(start(built, picture, tokens, **options)))[-1]["run"])

    return asyncio.run(go())


# a run and its page


def test_a_page_that_is_loaded_again_joins_its_run(make: Any, picture: Path) -> None:
    fake = Fake(pace=0.01, prefill=0.01)
    built = make(fake)

    async def go() -> tuple[str, list[dict[str, Any]]]:
        stream = start(built, picture, 60)
        key = await begun(stream)
        await stream.aclose()
        handler(built, "left")(visitor())
        await asyncio.sleep(0.1)
        (told,) = board(built).history({"runs": [key]})
        assert (told["state"], told["read"]) == ("running", False), "so that a page may join it"
        again = rejoin(built, key)
        first = await anext(again)
        assert board(built).history({"runs": [key]})[0]["read"] is True
        return key, [first[0], *await whole(again)]

    key, got = asyncio.run(go())
    events = [event for value in got[:-1] for event in events_of(value)]
    assert events == json.loads(trace.events_json(built.runs.get(key).events))
    assert [event["reason"] for event in events if event["kind"] == "end"] == ["length", "length"]
    assert (got[0]["first"], got[0]["run"], bool(got[0]["images"])) == (0, key, True)
    assert got[0]["meta"]["pictures"] == ["picture.png"]
    assert {value["state"] for value in got[:-1]} == {"running"}
    assert got[-1]["state"] == "done"
    assert fake.log == ["begin", "freed"], "one run, not two"


def test_a_page_that_has_some_events_asks_for_the_rest(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.01, prefill=0))

    async def go() -> list[dict[str, Any]]:
        stream = start(built, picture, 30)
        key = await begun(stream)
        await stream.aclose()
        return await whole(rejoin(built, key, 7))

    got = asyncio.run(go())
    assert got[0]["first"] == 7
    key = got[0]["run"]
    assert [event for value in got[:-1] for event in events_of(value)] == json.loads(trace.events_json(built.runs.get(key).events[7:]))


def test_a_page_that_does_not_come_back_frees_the_device(make: Any, picture: Path) -> None:
    fake = Fake(pace=0.02, prefill=0)
    built = make(fake, limits=QUICK)

    async def go() -> tuple[str, float]:
        stream = start(built, picture, 250)
        key = await begun(stream)
        await stream.aclose()
        seconds = await idle(built)
        await over(built, key)
        return key, seconds

    key, seconds = asyncio.run(go())
    assert 0.2 < seconds < 3
    (told,) = board(built).history({"runs": [key]})
    assert (told["state"], told["left"]) == ("stopped", True)
    assert [arm["reason"] for arm in told["arms"]] == ["stopped", "stopped"]
    assert fake.log == ["begin", "freed"]
    # what came so far is there
    assert trace.Trace.from_json(board(built).last({"run": key})).of(trace.Step)


def test_a_run_that_waits_leaves_the_queue_with_its_page(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.02, prefill=0), limits=QUICK)

    async def go() -> tuple[str, str]:
        running, waiting = start(built, picture, name="one"), start(built, picture, name="two")
        first = await begun(running)
        second = (await anext(waiting))[0]
        assert (second["state"], second["position"]) == ("queued", 1)
        await waiting.aclose()
        limit = time.monotonic() + 5
        while built.transport.load[1] and time.monotonic() < limit:
            await anext(running)
        assert built.transport.load == (1, 0)
        handler(built, "stop")(visitor("one"))
        await whole(running)
        return first, second["run"]

    first, second = asyncio.run(go())
    told = {one["run"]: one for one in board(built).history({"runs": [first, second]})}
    assert (told[second]["state"], told[second]["started"], told[second]["left"]) == ("stopped", False, True)
    assert told[first]["left"] is False


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_works_from_the_page_that_joined(make: Any, picture: Path, how: str) -> None:
    built = make(Fake(pace=0.02, prefill=0))

    async def go() -> list[dict[str, Any]]:
        stream = start(built, picture)
        key = await begun(stream)
        await stream.aclose()
        again = rejoin(built, key)
        got = [(await anext(again))[0]]
        handler(built, "stop")(visitor("somebody else"))
        assert board(built).stop_run({"run": "nope"}) is False
        got.append((await anext(again))[0])
        assert got[-1]["state"] == "running"
        if how == "button":
            handler(built, "stop")(visitor("later"))
        else:
            assert board(built).stop_run({"run": key}) is True
        got += await whole(again)
        assert board(built).stop_run({"run": key}) is False
        return got

    got = asyncio.run(asyncio.wait_for(go(), 10))
    events = [event for value in got[:-1] for event in events_of(value)]
    assert [event["reason"] for event in events if event["kind"] == "end"] == ["stopped", "stopped"]
    assert board(built).history({"runs": [got[0]["run"]]})[0]["left"] is False


def test_a_run_that_is_over_is_read_whole(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    key = one_run(built, picture)
    got = asyncio.run(whole(rejoin(built, key)))
    assert len(got) == 2
    assert [event["kind"] for event in events_of(got[0])].count("end") == 2
    assert got[1]["state"] == "done"


@pytest.mark.parametrize(
    ("key", "first"),
    [("nope", 0), (None, 0), (["x"], 0), ({}, 0), ("", 0), ("x" * 10_000, 0), ("KEY", -1), ("KEY", "0"), ("KEY", True), ("KEY", 1.5)],
)
def test_what_cannot_be_joined_is_told(make: Any, picture: Path, key: Any, first: Any) -> None:
    built = make(Fake(pace=0, prefill=0))
    known = one_run(built, picture)
    got = asyncio.run(whole(rejoin(built, known if key == "KEY" else key, first)))
    assert [value["state"] for value in got] == ["gone"]
    assert len(json.dumps(got)) < 300


def test_few_pages_read_one_run(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.02, prefill=0))

    async def go() -> dict[str, Any]:
        stream = start(built, picture)
        key = await begun(stream)
        readers = [rejoin(built, key, name=f"tab {number}") for number in range(MOST_READERS)]
        values = [(await anext(reader))[0] for reader in readers]
        handler(built, "stop")(visitor())
        await asyncio.gather(*map(whole, (stream, *readers[:-1])))
        assert [value["state"] for value in values[:-1]] == ["running"] * (MOST_READERS - 1)
        return values[-1]

    refused = asyncio.run(go())
    assert refused["state"] == "gone"
    assert "open in 4 pages" in refused["message"]


def test_one_of_two_tabs_that_closes_leaves_the_run_to_the_other(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.01, prefill=0), limits=QUICK)

    async def go() -> list[dict[str, Any]]:
        stream = start(built, picture, 90)
        key = await begun(stream)
        other = rejoin(built, key)
        await anext(other)
        await stream.aclose()
        return await whole(other)

    got = asyncio.run(go())
    assert [event["reason"] for value in got[:-1] for event in events_of(value) if event["kind"] == "end"] == ["eos", "eos"]


def test_unread_events_still_end_a_run(make: Any, picture: Path) -> None:
    """A page that is open and reads nothing, such as one whose computer sleeps."""
    built = make(Fake(pace=0.02, prefill=0), limits=Limits(unread_seconds=0.2))
    handler(built).__self__.following.unread = lambda session: 1.0

    async def go() -> list[dict[str, Any]]:
        return await whole(start(built, picture, 250))

    errors = [event for value in asyncio.run(go())[:-1] for event in events_of(value) if event["kind"] == "error"]
    assert ["Nobody read" in error["message"] for error in errors] == [True]


def test_a_run_that_is_refused_is_not_kept(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0.05, prefill=0), limits=Limits(waiting=1))

    async def go() -> None:
        first, second = start(built, picture, name="one"), start(built, picture, name="two")
        await begun(first)
        await anext(second)
        got = await whole(start(built, picture, name="three"))
        assert [value["state"] for value in got] == ["refused"]
        for name in ("one", "two"):
            handler(built, "stop")(visitor(name))
        await asyncio.gather(whole(first), whole(second))

    asyncio.run(go())
    assert len(built.runs) == 2


# the list


def test_the_list_says_what_a_run_was(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    known = {"questions": [], "answers": {"What?": "a house"}, "name": "sea", "link": "ex=scene-9", "id": "x"}
    keys = [one_run(built, picture, 12, known=known), one_run(built, picture, 6, question="Where? " + "x" * 900)]
    one, two = board(built).history({"runs": keys})
    assert (one["run"], two["run"]) == tuple(keys)
    assert (one["state"], one["question"], one["pictures"], one["link"], one["expected"]) == (
        "done",
        "What?",
        ["sea"],
        "ex=scene-9",
        "a house",
    )
    assert (one["image_tokens"], one["limit"], one["batch"], one["date"], one["left"]) == (576, 12, 1, "2026-01-01T12:00:00", False)
    full, adaptive = one["arms"]
    assert (full["policy"], full["stored_share"], full["read_share"], full["same_as_full"]) == (
        "Full",
        pytest.approx(1),
        pytest.approx(1),
        True,
    )
    assert (adaptive["title"], adaptive["parameters"]["S"]) == ("A-VL", 45)
    assert 0 < adaptive["read_share"] < adaptive["stored_share"] < 1
    assert (adaptive["same_as_full"], adaptive["first_difference"]) == (False, 9)
    assert adaptive["tokens"] == 12
    assert adaptive["answer"].startswith("The picture")
    assert len(two["question"]) == CUT
    assert one["thumbnail"].startswith("data:image/webp;base64,")
    assert json.loads(json.dumps(one)) == one
    assert board(built).history({"runs": keys[::-1]})[0]["run"] == keys[1]
    # and it stays so: the summary of a run that is over is made once
    assert board(built).history({"runs": keys})[0] is one


def test_a_run_that_fails_is_listed_with_its_error(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0, refuse="this request cannot be run: choose another"))
    key = one_run(built, picture)
    (told,) = board(built).history({"runs": [key]})
    assert (told["state"], told["started"], told["error"]) == ("failed", False, "This request cannot be run: choose another.")
    assert "arms" not in told
    assert board(built).download({"runs": [key], "kind": "csv"}).count("\n") == 1


HOSTILE = (
    None,
    [],
    "x",
    {},
    {"runs": None},
    {"runs": "KEY"},
    {"runs": {"KEY": 1}},
    {"runs": [None, 1, [], {}, "", "x" * 65]},
    {"runs": [["KEY"]]},
)


@pytest.mark.parametrize("wanted", HOSTILE, ids=str)
def test_nobody_gets_a_run_without_its_key(make: Any, picture: Path, wanted: Any) -> None:
    built = make(Fake(pace=0, prefill=0))
    key = one_run(built, picture)
    asked = json.loads(json.dumps(wanted).replace("KEY", key))
    assert board(built).history(asked) == []
    with pytest.raises(Exception, match=r"no longer has|The server has 0 of these|one CSV file"):
        board(built).download({**(asked if isinstance(asked, dict) else {}), "kind": "csv"})
    for part in (key[:-1], key + "x", key.lower() if key.lower() != key else key.upper(), "%", "*", "recorded"):
        assert board(built).history({"runs": [part]}) == []
        assert board(built).stop_run({"run": part}) is False
    assert key not in json.dumps([board(built).history({"runs": []}), board(built).last(asked), board(built).missing(asked)])


def test_a_call_asks_for_few_runs(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    key = one_run(built, picture)
    assert len(board(built).history({"runs": [key] * 1000})) == 1
    assert board(built).history({"runs": [f"{number:022}" for number in range(MOST_KEYS)] + [key]}) == []


def test_keys_cannot_be_guessed() -> None:
    keys = {KeptRun(trace.Trace()).key for _ in range(1000)}
    assert len(keys) == 1000
    assert min(map(len, keys)) >= 22, "128 bits"


@pytest.mark.parametrize("shape", [(2, 2), (1, 200), (3000, 2000), (672, 672)], ids=str)
def test_thumbnails_are_small_whatever_is_in_them(shape: tuple[int, int]) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8))
    assert 0 < len(thumbnail(noise)) <= THUMBNAIL_BYTES


# downloads


def test_all_runs_as_one_table(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0, text=["=cmd|' /C calc'!A1", "-1", "x"]))
    keys = [one_run(built, picture, 12, question=question) for question in ("=1+1", "two\nlines", "What, then?")]
    text = board(built).download({"runs": keys, "kind": "csv"})
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 6
    assert [line["question"] for line in lines[::2]] == ["'=1+1", "two\nlines", "What, then?"]
    assert [line["policy"] for line in lines] == ["Full", "AVL"] * 3
    assert {line["policy.S"] for line in lines[1::2]} == {"45"}
    assert {line["policy.S"] for line in lines[::2]} == {""}
    assert all(line["answer"].startswith("'=cmd") for line in lines)
    assert not [value for line in lines for value in line.values() if value.lstrip()[:1] in ("=", "+", "@")]
    with pytest.raises(Exception, match="The server has 3 of these 4 runs"):
        board(built).download({"runs": [*keys, "nope"], "kind": "csv"})
    for kind in ("json", "html", None):
        with pytest.raises(Exception, match="one CSV file"):
            board(built).download({"runs": keys, "kind": kind})


# how much is kept


def run(events: int = 0, visitor: str | None = "a", over: bool = True) -> KeptRun:
    made = KeptRun(trace.Trace(events=[trace.Warning("x" * 1000) for _ in range(events)]), visitor)
    if over:
        made.end("done")
    return made


def test_a_visitor_keeps_the_newest_runs_and_drives_out_nobodys() -> None:
    runs = Runs(Limits(runs_per_visitor=3))
    other = run(visitor="b")
    runs.add(other)
    mine = [run() for _ in range(10)]
    for one in mine:
        runs.add(one)
    assert [runs.find(one.key) is not None for one in mine] == [False] * 7 + [True] * 3
    assert runs.find(other.key) is other


def test_memory_is_bounded_and_the_greediest_gives_first() -> None:
    runs = Runs(Limits(run_bytes=100_000))
    small = [run(1, "b") for _ in range(3)]
    for one in small:
        runs.add(one)
    large = [run(20) for _ in range(12)]
    for one in large:
        runs.add(one)
        assert runs.bytes <= 100_000
    assert all(runs.find(one.key) for one in small), "the oldest of all, and not the ones that take the room"
    assert runs.find(large[-1].key)
    assert not runs.find(large[0].key)


def test_a_run_that_goes_on_stays_and_counts_as_it_grows() -> None:
    runs = Runs(Limits(run_bytes=50_000, runs_per_visitor=1))
    going = run(over=False)
    runs.add(going)
    done = run(1)
    runs.add(done)
    assert runs.find(done.key) is None, "of one visitor one is kept, and the one that goes on is"
    runs.add(done := run(1, "b"))
    going.take([trace.Warning("x" * 1000) for _ in range(60)])
    assert going.bytes > 60_000
    runs.tidy()
    assert runs.find(going.key) is going
    assert runs.find(done.key) is None


def test_an_hour_after_its_end_a_run_is_gone(make: Any, picture: Path) -> None:
    built = make(Fake(pace=0, prefill=0))
    key = one_run(built, picture)
    kept = built.runs.find(key)
    kept.ended -= 3590
    assert board(built).history({"runs": [key]})
    kept.ended -= 20
    assert board(built).history({"runs": [key]}) == []
    assert board(built).last({"run": key}) is None
    built.runs.tidy()
    assert len(built.runs) == 0


def test_the_run_that_the_page_opens_with_stays() -> None:
    runs = Runs(Limits(runs_per_visitor=3, run_bytes=1))
    runs.keep("recorded", trace.Trace())
    for _ in range(40):
        runs.add(run(3))
    assert runs.get("recorded") is not None
    assert runs.find("recorded") is None, "it is nobody's"
    assert len(runs) == 1


def test_what_an_event_takes_is_counted() -> None:
    recorded = trace.Scores(0, 0, ("x" * 500_000,))
    assert size(recorded) > 500_000
    assert size([recorded, recorded]) > 1_000_000
    runs = Runs(Limits(run_bytes=1_200_000))
    made = [run() for _ in range(5)]
    for one in made:
        one.take([recorded])
        runs.add(one)
    assert [runs.find(one.key) is not None for one in made] == [False, False, False, True, True]


def test_nothing_of_the_request_stays_with_a_run(make: Any, picture: Path) -> None:
    """Pictures of runs that are over would be hundreds of megabytes: a run keeps what the page shows."""
    built = make(Fake(pace=0, prefill=0))
    kept = built.runs.find(one_run(built, picture))
    assert not [value for value in vars(kept).values() if isinstance(value, Image.Image)]
    following = handler(built).__self__.following
    assert not following._live
    assert not following._tasks
