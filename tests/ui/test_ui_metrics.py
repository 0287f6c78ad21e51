"""What an operator sees: ``/metrics``, the log, ``/healthz``."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fake import Fake
from PIL import Image
from programs import data_uri
from prometheus_client.parser import text_string_to_metric_families

import avl
from avl.engine.request import GenerationRequest
from avl.ui import logs
from avl.ui.metrics import Metrics
from avl.ui.queue import ThreadTransport, batches

ARMS = [{"policy": "Full"}, {"policy": "AVL"}]
SECRET = "a question that nobody else reads"


def test_runs_tokens_bytes_and_errors_are_counted(here: Any) -> None:
    _, program = here(Fake(pace=0.001, prefill=0))
    for _ in range(2):
        assert program.call([{"url": data_uri()}, "What?", ARMS, 5]).error is None
    program.call([{"url": data_uri()}, ""])
    program.call([{"url": data_uri()}, "What?", ARMS, 256, "race", 256, 0, 1, 0, 20])
    found = program.metrics()
    assert found['avl_runs_total{outcome="done"}'] == 2
    assert found['avl_runs_total{outcome="refused"}'] == 2
    assert found['avl_errors_total{kind="input"}'] == 2
    assert found['avl_tokens_total{policy="Full"}'] == 10
    assert found['avl_step_seconds_count{policy="AVL"}'] == 8
    assert found['avl_first_token_seconds_count{policy="AVL"}'] == 2
    assert found['avl_kv_stored_bytes{policy="Full"}'] > found['avl_kv_stored_bytes{policy="AVL"}'] > 0
    assert (found["avl_running"], found["avl_waiting"], found["avl_ready"]) == (0, 0, 1)
    _, headers, text = program.request("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    assert len(list(text_string_to_metric_families(text.decode()))) >= 8
    assert SECRET not in text.decode()


@pytest.mark.parametrize(("fail_at", "outcome", "kind"), [(2, "failed", "internal"), (None, "done", None)])
def test_outcomes(here: Any, fail_at: int | None, outcome: str, kind: str | None) -> None:
    _, program = here(Fake(pace=0, prefill=0, fail_at=fail_at))
    program.call([{"url": data_uri()}, "What?", ARMS, 5])
    found = program.metrics()
    assert found[f'avl_runs_total{{outcome="{outcome}"}}'] == 1
    assert kind is None or found[f'avl_errors_total{{kind="{kind}"}}'] == 1


def test_it_can_be_left_out(here: Any) -> None:
    _, program = here(Fake(pace=0, prefill=0), metrics=False)
    assert program.request("GET", "/metrics")[0] == 404


@pytest.fixture
def lines() -> Iterator[Any]:
    """What the log says, as JSON objects, while root logging is this test's."""
    root, own = logging.getLogger(), logging.getLogger("avl")
    before = root.handlers[:], root.level, own.level
    logs.set_up(True)
    out = io.StringIO()
    root.handlers[0].setStream(out)  # type: ignore[attr-defined]
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.handlers[:], root.level = before[0], before[1]
    own.setLevel(before[2])


def test_every_line_of_a_run_has_its_name_and_no_question(lines: Any) -> None:
    def race(request: GenerationRequest, stop: Any) -> Any:
        logging.getLogger("some.library").warning("said in the middle of a run")
        yield from Fake(pace=0, prefill=0, fail_at=3)(request, stop)

    transport = ThreadTransport(race, observers=(logs.RunLog(), Metrics()))
    request = GenerationRequest((Image.new("RGB", (48, 48)),), SECRET, (avl.Full(),), max_new_tokens=8)

    async def go() -> str:
        job = transport.submit(request, "owner")
        async for _ in batches(transport, job, interval=0.01):
            pass
        return job.name

    try:
        name = asyncio.run(go())
    finally:
        transport.close()
    told = lines()
    assert [line.get("event") for line in told if "event" in line] == ["queued", "started", "failed", "ended"]
    assert {line["run"] for line in told} == {name}
    assert "said in the middle of a run" in [line["message"] for line in told]
    assert told[-1]["outcome"] == "failed"
    assert "RuntimeError" in next(line["traceback"] for line in told if "traceback" in line)
    assert SECRET not in json.dumps(told)


def test_lines_for_a_person_name_the_run_too() -> None:
    record = logging.LogRecord("avl.ui.runs", logging.WARNING, __file__, 1, "it failed", (), None)
    record.run = "abc"
    assert logs.Lines().format(record).endswith("WARNING avl.ui.runs [abc]: it failed")


def test_a_line_of_json_is_one_line_whatever_is_logged() -> None:
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "a\nb \ud800 %s", ("é",), None)
    assert "\n" not in logs.Json().format(record)
