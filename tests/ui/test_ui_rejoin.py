"""A run outlives its page over real HTTP: the connection is cut, another page joins by the run's key, and reads it to the end."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import pytest
from fake import Fake, about
from gradio_client.utils import apply_diff
from programs import Program, data_uri

from avl.ui import settings as controls
from avl.ui.limits import Limits


class Tab:
    """What a page's script does, by hand."""

    def __init__(self, program: Program, session: str) -> None:
        self.program, self.session = program, session
        self.config = json.loads(program.request("GET", "/config")[2])
        self.streams: list[http.client.HTTPConnection] = []

    def part(self, name: str) -> int:
        return next(part["id"] for part in self.config["components"] if part["props"].get("elem_id") == name)

    def press(self, name: str, event: str, data: list[Any], told: Any = None) -> None:
        """Queue what is connected to an event of a component."""
        part = self.part(name)
        number = next(one["id"] for one in self.config["dependencies"] if [part, event] in [list(target) for target in one["targets"]])
        body = {"data": data, "fn_index": number, "session_hash": self.session, "event_data": told, "trigger_id": part}
        status, text = self.program.post(json.dumps(body), "/gradio_api/queue/join")
        assert status == 200, text

    def read(self, until: Any, seconds: float = 20) -> list[dict[str, Any]]:
        """Values for the player until one of them satisfies ``until``; the connection is left open."""
        stream = http.client.HTTPConnection(self.program.host, self.program.port, timeout=seconds)
        self.streams.append(stream)
        stream.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        answer, got, value = stream.getresponse(), [], None
        while line := answer.readline():
            if not line.startswith(b"data: "):
                continue
            message = json.loads(line[6:])
            output = message.get("output", {}).get("data") if message.get("msg") in ("process_generating", "process_completed") else None
            if output:
                value = output[0] if isinstance(output[0], dict) else apply_diff(value, output[0])
                got.append(value)
                if until(value):
                    return got
        raise AssertionError(f"the stream ended: {[value.get('state') for value in got]}")

    def cut(self) -> None:
        for stream in self.streams:
            assert stream.sock is not None
            stream.sock.close()
            stream.close()

    def call(self, name: str, data: Any) -> Any:
        body = {"data": data, "fn_name": name, "component_id": self.part("avl-player"), "session_hash": self.session}
        status, _, text = self.program.request(
            "POST", "/gradio_api/component_server", json.dumps(body), **{"content-type": "application/json"}
        )
        assert status == 200, text
        return json.loads(text)


def events_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Events travel as the text of a list."""
    return json.loads(value.get("events", "[]"))


def upload(program: Program) -> dict[str, Any]:
    import base64

    content = base64.b64decode(data_uri().split(",")[1])
    body = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n'
        + content
        + b"\r\n--b--\r\n"
    )
    status, _, text = program.request("POST", "/gradio_api/upload", body, **{"content-type": "multipart/form-data; boundary=b"})
    assert status == 200
    return {"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}


def run(tab: Tab, tokens: int) -> str:
    chosen = {**controls.settings(about()), "max_new_tokens": tokens}
    tab.press("avl-run", "click", [upload(tab.program), None, "What?", chosen, None])
    got = tab.read(lambda value: any(event["kind"] == "step" for event in events_of(value)) or value["state"] == "refused")
    assert got[-1]["state"] == "running", got[-1]
    return str(got[-1]["run"])


@pytest.mark.parametrize("heartbeat", [False, True], ids=["stream", "heartbeat"])
def test_a_page_that_is_cut_off_joins_again(here: Any, heartbeat: bool) -> None:
    fake = Fake(pace=0.04, prefill=0.01)
    built, program = here(fake)
    first = Tab(program, "first")
    if heartbeat:  # the connection whose end Gradio takes for the page's
        beat = http.client.HTTPConnection(program.host, program.port, timeout=20)
        beat.request("GET", "/gradio_api/heartbeat/first")
        beat.getresponse()
        first.streams.append(beat)
    key = run(first, 60)
    first.cut()
    time.sleep(1.5)
    second = Tab(program, "second")
    (told,) = second.call("history", {"runs": [key, "nope"]})
    assert (told["state"], told["run"]) == ("running", key)
    second.press("avl-player", "select", [], {"run": key, "first": 0})
    got = second.read(lambda value: value.get("state") == "done", 30)
    events = [event for value in got for event in events_of(value)]
    assert [event["kind"] for event in events].count("end") == 2
    assert {event["reason"] for event in events if event["kind"] == "end"} == {"length"}
    assert [event["t"] for event in events if event["kind"] == "step" and event["arm"] == 0] == list(range(1, 60))
    assert fake.log == ["begin", "freed"]
    assert built.runs.find(key).state == "done"


def test_a_tab_that_was_closed_frees_the_device(here: Any) -> None:
    fake = Fake(pace=0.02, prefill=0.01)
    built, program = here(fake, limits=Limits(away_seconds=1))
    first = Tab(program, "first")
    key = run(first, 256)
    first.cut()
    program.wait_idle(10)
    limit = time.monotonic() + 3
    while not built.runs.find(key).over and time.monotonic() < limit:
        time.sleep(0.05)
    (told,) = Tab(program, "second").call("history", {"runs": [key]})
    assert (told["state"], told["left"]) == ("stopped", True)
    assert fake.log == ["begin", "freed"]


def test_stop_by_key_over_http(here: Any) -> None:
    _, program = here(Fake(pace=0.02, prefill=0.01))
    first = Tab(program, "first")
    key = run(first, 256)
    other = Tab(program, "other")
    assert other.call("stop_run", {"run": "nope"}) is False
    assert other.call("stop_run", {"run": key}) is True
    program.wait_idle(10)
    limit = time.monotonic() + 5
    while other.call("stop_run", {"run": key}) and time.monotonic() < limit:
        time.sleep(0.05)
    assert other.call("history", {"runs": [key]})[0]["state"] == "stopped"
