"""Sweeps through the page's queue: its handler, its endpoint, its scripts' functions, and the checks in front of them."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import re
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fake import Fake, about

from avl.engine.sweep import SweepRequest, with_sweeps
from avl.ui import page, sweep_api
from avl.ui import settings as controls
from avl.ui.job import Observer
from avl.ui.limits import Limits
from avl.ui.metrics import Metrics
from avl.ui.queue import ThreadTransport
from avl.ui.runs import Runs
from avl.ui.sweeps import SweepHandlers, prepare_sweep, sweep_functions

ASKED = {"policy": {"policy": "AVL", "S": 45, "C": 30, "K": 3, "P": None, "T": None}, "over": {"S": [20, 40, 60]}}
CHOSEN = {**controls.settings(about()), "max_new_tokens": 5}
VISITOR = types.SimpleNamespace(session_hash="one", client=None)


def pressed(wanted: Any) -> Any:
    """The event of the button that starts a sweep."""
    return types.SimpleNamespace(_data=wanted)


@pytest.fixture
def transport() -> Iterator[ThreadTransport]:
    made = ThreadTransport(with_sweeps(Fake(pace=0, prefill=0)))
    yield made
    made.close()


def handlers(transport: ThreadTransport, sweeps: Runs, **changes: Any) -> SweepHandlers:
    return SweepHandlers(about(), sweeps, transport, changes.get("limits", Limits()))


def collect(handler: SweepHandlers, picture: Any, wanted: Any = ASKED, chosen: Any = CHOSEN, question: str = "What?") -> list[Any]:
    async def go() -> list[Any]:
        return [value async for value in handler.run(str(picture), None, question, chosen, None, pressed(wanted), VISITOR)]  # type: ignore[arg-type]

    return asyncio.run(go())


def events_in(value: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(value.get("events", "[]"))


def events_of(values: list[Any]) -> list[dict[str, Any]]:
    return [event for value in values for event in events_in(value[0])]


def test_the_handler_streams_a_sweep_and_ends_with_its_count(transport: ThreadTransport, picture: Path) -> None:
    sweeps = Runs()
    values = collect(handlers(transport, sweeps), picture)
    assert values[0][0]["state"] == "queued"
    assert values[0][0]["meta"]["pictures"] == ["picture.png"]
    assert [button.interactive for button in values[0][1:]] == [False, True]
    assert [button.interactive for button in values[-1][1:]] == [True, False]
    told = events_of(values)
    assert values[-1][0] == {"seq": values[-1][0]["seq"], "run": values[0][0]["run"], "state": "done", "count": len(told)}
    firsts = [(value[0]["first"], len(events_in(value[0]))) for value in values[:-1]]
    assert all(first == sum(count for _, count in firsts[:place]) for place, (first, _) in enumerate(firsts))
    assert told[0] == {"kind": "sweep_progress", "point": None, "tokens": 0}, "it warms up"
    kinds = [event["kind"] for event in told if event["kind"] != "sweep_progress"]
    assert kinds == ["sweep_start", *["sweep_point"] * 4, "sweep_end"]
    points = [event for event in told if event["kind"] == "sweep_point"]
    assert [point["point"] for point in points] == [None, 0, 1, 2]
    assert [point["policy"]["S"] for point in points[1:]] == [20, 40, 60]
    assert [point["policy"]["C"] for point in points[1:]] == [20, 30, 30]
    json.dumps(told, allow_nan=False)


def test_the_largest_sweep_is_sent_once_and_is_small(transport: ThreadTransport, picture: Path) -> None:
    """64 points of 40 tokens each: nothing of a point's steps reaches the page but its answer and its means."""
    wanted = {**ASKED, "over": {"T": list(range(20, 84))}}
    values = collect(handlers(transport, Runs()), picture, wanted, {**CHOSEN, "max_new_tokens": 40})
    told = events_of(values)
    assert sum(event["kind"] == "sweep_point" for event in told) == 65
    whole = len(json.dumps([event for event in told if event["kind"] != "sweep_progress"]))
    sent = sum(len(json.dumps(value[0])) for value in values)
    assert whole < 65 * 3_000
    assert sent < 1.2 * whole + 65 * 1_000


def test_what_the_scripts_ask_about_it(transport: ThreadTransport, picture: Path) -> None:
    sweeps = Runs()
    values = collect(handlers(transport, sweeps), picture)
    plan, missing, download = sweep_functions(sweeps, about())
    run = values[0][0]["run"]
    assert json.loads(missing({"run": run, "first": 0})) == events_of(values)
    assert json.loads(missing({"run": run, "first": 3})) == events_of(values)[3:]
    for bad in (
        None,
        {},
        {"run": "x", "first": 0},
        {"run": run},
        {"run": run, "first": -1},
        {"run": run, "first": True},
        {"run": [], "first": 0},
    ):
        assert missing(bad) is None
    lines = list(csv.DictReader(io.StringIO(download({"run": run, "kind": "csv"}))))
    assert [line["S"] for line in lines] == ["", "20", "40", "60"]
    assert [row["point"] for row in json.loads(download({"run": run, "kind": "json"}))["rows"]] == [None, 0, 1, 2]
    for bad in (None, {}, {"run": "x"}):
        with pytest.raises(gr.Error, match="no longer has this sweep"):
            download(bad)
    # what it will store and read is known before the run, and is what the rows then say
    before = plan({**ASKED, "max_new_tokens": 5})
    for point, line in zip(before["points"], lines[1:], strict=True):
        assert point["stored_share"] == pytest.approx(float(line["stored_share"]))
        assert point["read_share"] == pytest.approx(float(line["read_share"]))
    assert before["full_bytes"] == pytest.approx(float(lines[0]["stored_bytes"]))
    assert before["points"][0]["lowered"] == ["C is lowered from 30 to 20 to fit"]


def test_a_plan_says_what_is_skipped_or_what_is_wrong() -> None:
    plan, _, _ = sweep_functions(Runs(), about())
    found = plan({"policy": {"policy": "AVL"}, "over": {"S": [0, 50], "C": [20, 60]}})
    assert [one["values"] for one in found["skipped"]] == [{"S": 0, "C": 20}, {"S": 0, "C": 60}, {"S": 50, "C": 60}]
    assert all(one["reason"].endswith(".") for one in found["skipped"])
    assert [axis["name"] for axis in found["axes"]] == ["S", "C"]
    for bad in (None, [], {}, {"policy": {"policy": "Full"}, "over": {"S": [1]}}, {"policy": {"policy": "AVL"}, "over": "S"}):
        assert set(plan(bad)) == {"error"}


@pytest.mark.parametrize(
    ("wanted", "chosen", "question", "said"),
    [
        (None, CHOSEN, "What?", "settings are missing"),
        (ASKED, None, "What?", "settings are missing"),
        (ASKED, CHOSEN, "", "question is empty"),
        ({**ASKED, "over": {}}, CHOSEN, "What?", "one or two parameters"),
        ({**ASKED, "over": {"S": {"from": 1, "to": 1e300, "step": 1}}}, CHOSEN, "What?", "three numbers"),
        ({**ASKED, "over": {"S": list(range(1, 101))}}, CHOSEN, "What?", "100 points"),
        ({**ASKED, "over": {"S": [{"a": 1}]}}, CHOSEN, "What?", "only numbers"),
        ({**ASKED, "over": {"K": [10**9]}}, CHOSEN, "What?", "K must be from 1 to 32"),
        ({**ASKED, "policy": {"policy": "nope"}}, CHOSEN, "What?", "needs a policy"),
        ({**ASKED, "repeats": 10**6}, CHOSEN, "What?", "Repeats must be"),
        (ASKED, {**CHOSEN, "max_new_tokens": 0}, "What?", "max_new_tokens must be"),
        (ASKED, {**CHOSEN, "batch": "many"}, "What?", "Batch must be"),
        ({**ASKED, "repeats": 20}, {**CHOSEN, "batch": 256, "max_new_tokens": 256}, "What?", "take fewer points \\(3\\)"),
    ],
)
def test_refusals_are_one_sentence_and_no_run(
    transport: ThreadTransport, picture: Path, wanted: Any, chosen: Any, question: str, said: str
) -> None:
    values = collect(handlers(transport, Runs()), picture, wanted, chosen, question)
    assert len(values) == 1
    assert values[0][0]["state"] == "refused"
    assert re.search(said, values[0][0]["message"]), values[0][0]["message"]
    assert values[0][0]["message"].count("\n") == 0
    assert transport.load == (0, 0)


def test_arms_of_the_page_are_not_the_sweeps(picture: Path) -> None:
    request = prepare_sweep([picture], "What?", {**CHOSEN, "arms": "nonsense", "scores": True, "mode": "race"}, ASKED, about())
    assert isinstance(request, SweepRequest)
    assert [policy.name for policy in request.policies] == ["Full", "AVL", "AVL", "AVL"]
    assert (request.mode, request.scores, request.max_new_tokens, request.repeats) == ("isolated", False, 5, 1)


def test_points_that_the_model_cannot_have_are_skipped(picture: Path) -> None:
    wanted = {"policy": {"policy": "FastV"}, "over": {"layer": [2, 7, 8, 30]}}
    request = prepare_sweep([picture], "What?", CHOSEN, wanted, about(layers=8))
    assert [point.values["layer"] for point in request.plan.points] == [2, 7]
    assert [one.values["layer"] for one in request.plan.skipped] == [8, 30]


def test_stop_ends_it_within_a_step_and_keeps_the_rows(picture: Path) -> None:
    transport = ThreadTransport(with_sweeps(Fake(pace=0.01, prefill=0.01)))
    handler = handlers(transport, Runs())

    async def go() -> list[Any]:
        values = []
        async for value in handler.run(str(picture), None, "What?", {**CHOSEN, "max_new_tokens": 20}, None, pressed(ASKED), VISITOR):  # type: ignore[arg-type]
            values.append(value)
            if any(event["kind"] == "sweep_point" and event["point"] == 0 for event in events_in(value[0])):
                assert transport.stop("one")
        return values

    try:
        told = events_of(asyncio.run(go()))
        assert told[-1]["kind"] == "sweep_end"
        assert told[-1]["reason"] == "stopped"
        assert 1 <= told[-1]["measured"] < 3
        assert transport.load == (0, 0)
    finally:
        transport.close()


def test_a_page_that_goes_ends_its_sweep_and_what_is_kept_can_leave(picture: Path) -> None:
    """A sweep that never counts as over would be kept for as long as the server runs."""
    transport, sweeps = ThreadTransport(with_sweeps(Fake(pace=0.01, prefill=0.01))), Runs()
    handler = handlers(transport, sweeps)

    async def go() -> str:
        told = handler.run(str(picture), None, "What?", CHOSEN, None, pressed(ASKED), VISITOR)  # type: ignore[arg-type]
        value = (await anext(told))[0]
        kept = sweeps.find(value["run"])
        assert kept is not None
        assert not kept.over
        await told.aclose()  # type: ignore[attr-defined]
        return value["run"]

    try:
        key = asyncio.run(go())
        assert sweeps.find(key).over  # type: ignore[union-attr]
        limit = time.monotonic() + 10
        while transport.load != (0, 0):
            assert time.monotonic() < limit
            time.sleep(0.01)
    finally:
        transport.close()


def test_a_failure_is_a_sentence_and_a_verdict(picture: Path) -> None:
    transport = ThreadTransport(with_sweeps(Fake(pace=0, prefill=0, fail_at=4)))
    try:
        told = events_of(collect(handlers(transport, Runs()), picture))
        assert told[-1]["kind"] == "error"
        assert "/a/path" not in told[-1]["message"]
    finally:
        transport.close()


def test_counters_and_the_log_hear_of_it(picture: Path) -> None:
    counters = Metrics()
    heard: list[str] = []

    class Ear(Observer):
        def ended(self, job: Any) -> None:
            heard.append(job.outcome)

    transport = ThreadTransport(with_sweeps(Fake(pace=0, prefill=0)), None, (counters, Ear()))
    try:
        collect(handlers(transport, Runs()), picture, {**ASKED, "repeats": 3})
    finally:
        transport.close()
    assert heard == ["done"]
    assert counters.registry.get_sample_value("avl_tokens_total", {"policy": "AVL"}) == 15
    assert counters.registry.get_sample_value("avl_tokens_total", {"policy": "Full"}) == 5


# the endpoint


def call(transport: ThreadTransport, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    sweep = sweep_api.endpoint(transport, about())

    async def go() -> list[dict[str, Any]]:
        return [value async for value in sweep(*arguments, **options)]

    return asyncio.run(go())


def uri(path: Path) -> dict[str, str]:
    return {"url": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()}


def test_the_endpoint_ends_with_rows_and_a_verdict(transport: ThreadTransport, picture: Path) -> None:
    got = call(transport, uri(picture), "What?", {"K": [1, 4], "T": [None, 50]}, {"policy": "AVL", "S": 45}, max_new_tokens=5, repeats=2)
    assert [value["state"] for value in got].count("done") == 1
    found = got[-1]["sweep"]
    assert [row["point"] for row in found["rows"]] == [None, 0, 1, 2, 3]
    assert all(len(row["runs"]) == 2 for row in found["rows"])
    assert found["end"]["planned"] == 4
    told = [event for value in got[:-1] for event in value["events"]]
    assert [event for event in told if event["kind"] == "sweep_start"] == [found["start"]]


def test_the_endpoints_defaults_are_a_sweep_of_s(transport: ThreadTransport, picture: Path) -> None:
    found = call(transport, uri(picture), "What?", max_new_tokens=2)[-1]["sweep"]
    assert [row["policy"]["S"] for row in found["rows"][1:]] == list(range(5, 61, 5))


@pytest.mark.parametrize(
    ("image", "question", "options", "word"),
    [
        ("picture", "", {}, "question is empty"),
        ("picture", "q", {"over": None}, "one or two parameters"),
        ("picture", "q", {"over": {"S": "5:60:5"}}, "pass a list"),
        ("picture", "q", {"policy": None}, "needs a policy"),
        ("picture", "q", {"more_images": "x"}, "more_images must be a list"),
        ({"path": "/etc/hostname"}, "q", {}, "handle_file"),
        ({"url": "data:image/png;base64,AAAA"}, "q", {}, "not a picture"),
        (None, "q", {}, "handle_file"),
    ],
)
def test_the_endpoints_refusals_are_one_sentence(
    transport: ThreadTransport, picture: Path, image: Any, question: str, options: dict[str, Any], word: str
) -> None:
    with pytest.raises(gr.Error, match=word):
        call(transport, uri(picture) if image == "picture" else image, question, **options)


def test_a_failed_sweep_is_an_error_for_a_program(picture: Path) -> None:
    transport = ThreadTransport(with_sweeps(Fake(pace=0, prefill=0, refuse="There is no room.")))
    try:
        with pytest.raises(gr.Error, match="There is no room"):
            call(transport, uri(picture), "What?")
    finally:
        transport.close()


def test_ordinary_runs_pass_through(picture: Path) -> None:
    fake = Fake(pace=0, prefill=0)
    request = controls.prepare([picture], "What?", CHOSEN, about())
    assert next(with_sweeps(fake)(request, threading.Event())).kind == "start"


def test_the_page_offers_it_with_types() -> None:
    built = page.build(Fake(), about())
    try:
        endpoint = built.blocks.get_api_info()["named_endpoints"]["/sweep"]
        assert [parameter["parameter_name"] for parameter in endpoint["parameters"]][:4] == ["image", "question", "over", "policy"]
        told = next(fn.fn for fn in built.blocks.fns.values() if fn.api_name == "sweep").__doc__
        assert '{"policy": "AVL"' in told
        assert "POLICIES" not in told
    finally:
        built.transport.close()
