"""What a run costs on the wire, as a program hears it that presses Run like the page."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake import Fake, about
from gradio.queueing import Queue
from PIL import Image
from wire import Presser

from avl.ui import components
from avl.ui import settings as controls


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("scores", [False, True], ids=["plain", "scores"])
def test_every_byte_of_a_run_is_sent_once(here: Any, noise: Path, scores: bool) -> None:
    """Events, pictures and their overhead: at most 1.1 bytes per byte of the trace, in two small values after the last event."""
    built, _ = here(Fake(pace=0.004, prefill=0.02, layers=40), facts={"layers": 40})
    program = Presser(built.blocks.local_url)
    heard = program.run(noise, "What?", {**controls.settings(about()), "max_new_tokens": 60, "scores": scores})
    last = heard.values[-1]
    kept = built.runs.get(last["run"])
    whole = kept.to_json()
    # a run without attention is small, and made of short fields whose quotes travel escaped
    assert heard.size <= (1.1 if scores else 1.15) * len(whole.encode()), f"{heard.size} bytes for a trace of {len(whole)}"
    assert heard.events == json.loads(whole)["events"]
    assert (last["state"], last["count"]) == ("done", len(heard.events))
    assert [bool(value.get("images")) for value in heard.values] == [True] + [False] * (len(heard.values) - 1)
    assert [len(json.dumps(message)) < 2000 for message in heard.messages[-3:]] == [True] * 3, "the last values repeat nothing"


def test_a_page_loads_its_style_and_scripts_once_and_packed(here: Any) -> None:
    built, _ = here(Fake())
    program = Presser(built.blocks.local_url)
    _, _, html = program.request("GET", "/")
    assert b"--avl-bg" not in html
    assert len(html) < 200_000, "it was 833 kB with a style sheet and the shared modules for each component"
    address = f"/{components.SCRIPT_ADDRESS}"
    for path, most in ((address, 0.35), (f"/{components.PLOTLY_ADDRESS}", 0.35)):
        _, _, plain = program.request("GET", path)
        _, headers, packed = program.request("GET", path, **{"accept-encoding": "gzip"})
        assert headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed) == plain
        assert len(packed) < most * len(plain)
        assert plain.count(b"const STYLE = ") == (path == address)


def test_an_idle_page_leaves_the_processor_alone(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio's queue looks for work a thousand times a second, which is 4 % of a core for as long as the server runs."""
    here(Fake())
    looks: list[float] = []
    monkeypatch.setattr(Queue, "__len__", lambda queue: looks.append(time.monotonic()) or 0)
    time.sleep(0.5)
    assert 5 < len(looks) < 80


def test_nothing_but_run_sends_or_takes_the_players_value(here: Any) -> None:
    """Gradio sends a component's value with every event that has it as an input: the header's clock, a key in the question, an upload."""
    built, _ = here(Fake())
    program = Presser(built.blocks.local_url)
    player = next(part["id"] for part in program.config["components"] if part["props"].get("elem_id") == "avl-player")
    # Run, a page that joins its run again, and a further question
    wired = {program.depends("avl-run", "click"), program.depends("avl-player", "select"), program.depends("avl-player", "submit")}
    assert {one["id"] for one in program.config["dependencies"] if player in one["outputs"]} == wired
    assert not [one["id"] for one in program.config["dependencies"] if player in one["inputs"]]
