"""The page on Hugging Face's Spaces: with a CPU, as it is uploaded; on ZeroGPU, with the real library and stand-ins for its API and GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HERE, Process, free_port
from programs import Program, data_uri

from avl.cli import main
from avl.ui import hosting, zero

OUTSIDE = re.compile(r"(googleapis|gstatic|huggingface|jsdelivr|cdnjs)\.\w+.*Content Security Policy|^Space not found$")
pytestmark = pytest.mark.slow


def until_ready(program: Program, alive: Callable[[], bool], log: Path, seconds: float = 240) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            if program.health()[0] == 200:
                return
        except OSError:
            pass
        assert alive(), log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.2)


def test_a_space_with_a_cpu_starts_from_its_folder_and_answers(tmp_path: Path) -> None:
    """Without arguments; the address is what the platform sets."""
    out, port, log = tmp_path / "space", free_port(), tmp_path / "log.txt"
    assert main(["space", "--out", str(out), "--hardware", "cpu"]) == 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "AVL_", "GRADIO_", "SPACE"))}
    environment |= {"SYSTEM": "spaces", "SPACE_ID": "someone/avl", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port)}
    with log.open("w") as said:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=out, env=environment, stdout=said, stderr=subprocess.STDOUT)
    try:
        program = Program(f"http://127.0.0.1:{port}/")
        until_ready(program, lambda: server.poll() is None, log)
        answer = program.call([{"url": data_uri()}, "What is in the picture?"])
        assert answer.error is None
        assert len(answer.value["answers"]) == 2
        assert hosting.CPU in urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=30).read().decode()
    finally:
        server.terminate()
        server.wait(30)


class Space:
    """A page on ZeroGPU."""

    def __init__(self, folder: Path) -> None:
        self.port, self.devices = free_port(), free_port()
        arguments = [str(HERE / "serve_zero.py"), str(self.devices), "--port", str(self.port), "--dtype", "fp32"]
        self.process = Process(arguments, folder / "log.txt", ZEROGPU_OFFLOAD_DIR=str(folder / "tensors"), CUDA_VISIBLE_DEVICES="")
        self.url = f"http://127.0.0.1:{self.port}/"
        self.program = Program(self.url)
        until_ready(self.program, lambda: self.process.popen.poll() is None, self.process.log)

    def told(self) -> dict[str, Any]:
        """What the API was asked, and its worker's process."""
        return json.loads(urllib.request.urlopen(f"http://127.0.0.1:{self.devices}/", timeout=10).read())

    def answers(self, **how: Any) -> None:
        """Set what the API answers from now on."""
        ask = urllib.request.Request(f"http://127.0.0.1:{self.devices}/answers", json.dumps(how).encode(), method="POST")
        urllib.request.urlopen(ask, timeout=10).read()

    def asked(self, path: str) -> list[dict[str, Any]]:
        return [one for one in self.told()["asked"] if one["path"] == path]

    def run(self, question: str = "What is in the picture?") -> Any:
        return self.program.call([{"url": data_uri()}, question])


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    space = Space(tmp_path_factory.mktemp("zero"))
    yield space
    space.process.stop()


def test_it_starts_without_a_gpu_and_runs_in_one_worker(space: Space) -> None:
    """The process that serves runs nothing; a worker warms up once, is used again, and each run is released."""
    assert [one["path"] for one in space.told()["asked"]] == ["/startup-report"]
    runs = [space.run(), space.run()]
    assert [run.error for run in runs] == [None, None]
    assert runs[0].value["answers"] == runs[1].value["answers"]
    notes = [next(event["message"] for event in run.value["trace"]["events"] if "ZeroGPU" in event.get("message", "")) for run in runs]
    assert "a first guess" in notes[0]
    assert "the process is new" in notes[0]
    assert "the times of earlier runs" in notes[1]
    assert "the process is new" not in notes[1]
    schedules = space.asked("/schedule")
    assert float(schedules[1]["durationSeconds"]) < float(schedules[0]["durationSeconds"])
    assert len(space.asked("/allow")) == 1, "one process"
    assert len(space.asked("/release")) == 2
    assert runs[0].value["trace"]["events"][0]["model"]["device"] == "cpu", "the stand-in for the GPU"
    assert space.program.health()[1]["state"] == "ready"
    assert space.program.metrics()['avl_runs_total{outcome="done"}'] == 2
    assert (
        "Traceback"
        not in space.process.log.read_text().replace("Exception ignored in: <function BaseEventLoop", "").partition("Traceback")[0]
    )


def test_no_quota_is_told_in_the_words_of_the_library(space: Space) -> None:
    space.answers(refuse={"left": 12, "wait": 12000})
    refused = space.run()
    space.answers()
    assert refused.error is not None
    assert refused.error.startswith("ZeroGPU quota exceeded: ")
    assert space.run().error is None


@pytest.mark.browser
def test_stop_shows_what_came_and_a_stopped_sweep_can_be_downloaded(space: Space, tab: Any) -> None:
    space.answers(pace=0.3)
    one = tab(space.url).open()
    one.page.fill("#avl-question textarea", "Describe the picture.")
    one.page.click("#avl-run")
    live = "const view = window.avlPlayer.view; return view.run && !view.recorded && view.run.arms.length"
    one.until(f"(() => {{ {live} && view.run.arms.every((arm) => arm.tokens.length > 2); }})()")
    one.page.click("#avl-stop")
    one.wait("done")
    reasons = one.page.evaluate("window.avlPlayer.view.run.arms.map((arm) => arm.end && arm.end.reason)")
    assert reasons == ["stopped", "stopped"]
    assert min(one.tokens()) > 2
    assert hosting.ZERO.split(".")[0] in one.page.locator("#avl-header, body").first.inner_text()
    # the page is as before, and what was stopped is in the list of runs after it is loaded again
    space.answers()
    one.run()
    one.page.reload()
    one.page.wait_for_selector("#avl-player .avl-player[data-ready]")
    one.wait("done")
    one.page.wait_for_selector("#avl-sweep .avl-sweep[data-ready]")
    one.page.click("#avl-sweep [data-id=sweepFold] > summary")
    one.until("!document.querySelector('#avl-sweep [data-id=sweepGo]').disabled")
    space.answers(pace=0.1)
    one.page.click("#avl-sweep [data-id=sweepGo]")
    one.until("document.querySelectorAll('#avl-sweep [data-id=sweepRows] tbody tr').length > 1")
    one.page.click("#avl-stop")
    one.page.wait_for_selector("#avl-sweep [data-id=sweepDownloads]:not([hidden])")
    space.answers()
    with one.page.expect_download() as download:
        one.page.click("#avl-sweep [data-id=sweepCsv]")
    assert len(Path(download.value.path()).read_text("utf-8").splitlines()) > 1
    # on a Space, Gradio's page asks other sites for a header and fonts; our policy lets none of it in
    assert [error for error in one.errors if not OUTSIDE.search(error)] == []


def test_a_worker_that_is_killed_is_a_sentence_and_the_next_run_has_a_new_one(space: Space) -> None:
    """In the middle of a run."""
    before = space.told()["worker"]
    space.answers(pace=0.3)
    _, text = space.program.post([{"url": data_uri()}, "What is in the picture?"])
    event = json.loads(text)["event_id"]
    limit = time.monotonic() + 30
    while not space.program.health()[1]["running"]:
        assert time.monotonic() < limit
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(space.told()["worker"] or before, signal.SIGKILL)
    space.answers()
    kind, told = space.program.read(event)[-1]
    assert (kind, told["error"]) == ("error", zero.DIED)
    assert space.run().error is None
    assert space.told()["worker"] != before


def test_its_end_leaves_no_process(space: Space) -> None:
    worker = space.told()["worker"]
    space.process.popen.terminate()
    assert space.process.popen.wait(20) == 0
    limit = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "(zombie)" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < limit
        time.sleep(0.1)
