"""The port while the model loads: its health, its page, and the moment when the real page takes it over."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from fake import Fake, about
from programs import Program, news

from avl.ui import address, front, page, serve
from avl.ui.progress import Progress

GB = 10**9
HOSTS = ("localhost", "127.0.0.1")


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[front.Front, Progress, Program]]]:
    """``loading("llava-1.5-7b")`` -> the front of a start, its progress, and a program that asks it."""
    monkeypatch.setattr(front, "TOLD_SECONDS", 0.6)
    fronts: list[front.Front] = []

    def begin(model: str = "llava-1.5-7b") -> tuple[front.Front, Progress, Program]:
        progress = Progress(model)
        host, port, sockets = address.listen("127.0.0.1", None)
        fronts.append(front.Front(sockets, HOSTS, progress))
        return fronts[-1], progress, Program(f"http://{host}:{port}/")

    yield begin
    for one in fronts:
        one.stop()


def test_nothing_heavy_is_imported_before_the_port_answers() -> None:
    """torch and Gradio take seconds each; the port has to answer before."""
    source = "import sys, avl.cli, avl.ui.serve, avl.ui.front, avl.ui.limits; print(*{m.partition('.')[0] for m in sys.modules})"
    out = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "gradio", "transformers", "numpy", "PIL", "fastapi"} & set(out.split())


def test_health_and_page_say_what_is_loading(loading: Any) -> None:
    _, progress, program = loading()
    status, state = program.health()
    assert (status, state["state"], state["model"], state["progress"]) == (503, "loading", "llava-1.5-7b", None)
    assert state["reason"].endswith(".")
    progress.count("Downloading the weights", 3_250_000_000, 14 * GB, "bytes")
    status, state = program.health()
    assert (status, state["what"], state["detail"]) == (503, "Downloading the weights", "3.2 of 14.0 GB")
    assert state["progress"] == {"done": 3_250_000_000, "total": 14 * GB, "unit": "bytes"}
    status, headers, text = program.request("GET", "/")
    assert status == 200
    assert "Downloading the weights" in text.decode()
    assert 'max="14000000000" value="3250000000"' in text.decode()
    assert headers["cache-control"] == "no-store"
    progress.step("Building the <page>")
    assert "Building the &lt;page&gt;" in program.request("GET", "/")[2].decode()
    assert program.health()[1]["progress"] is None
    assert program.request("HEAD", "/loading", seconds=5)[0] == 200, "it ends, though there is more to come"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/config"), ("POST", "/gradio_api/call/compare"), ("POST", "/gradio_api/upload"), ("GET", "/metrics")]
)
def test_everything_else_is_told_to_come_back(loading: Any, method: str, path: str) -> None:
    status, headers, text = loading()[2].request(method, path, b"{}" if method == "POST" else None)
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(text)["detail"] == "The model is loading: try again in a minute."


def test_it_is_as_careful_as_the_page(loading: Any) -> None:
    """Host names, headers, and a policy that lets in the page's own script and style and nothing else."""
    _, _, program = loading()
    assert program.request("GET", "/", Host="other.example")[0] == 400
    assert program.request("GET", "/healthz", Host="localhost")[0] == 503
    headers = program.request("GET", "/")[1]
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'self' https://huggingface.co" in policy


def test_a_page_that_watches_hears_every_change_and_the_end(loading: Any) -> None:
    begun, progress, program = loading()
    told = news(program)
    assert next(told)["what"] == "Starting"
    progress.step("Building the page")
    assert next(told)["what"] == "Building the page"
    progress.count("Loading the weights", 7, 291, "weights")
    assert next(told)["detail"] == "7 of 291 weights"
    ended = threading.Thread(target=begun.fail, args=("there is no model of that name",))
    ended.start()
    last = next(told)
    assert (last["state"], last["reason"]) == ("failed", "there is no model of that name")
    assert list(told) == []
    status, state = program.health()
    assert (status, state["state"], state["reason"]) == (503, "failed", "there is no model of that name")
    assert "there is no model of that name" in program.request("GET", "/")[2].decode()
    ended.join(10)
    assert not ended.is_alive()


def test_a_failed_start_waits_for_nobody_who_does_not_watch(loading: Any) -> None:
    begun, _, _ = loading()
    began = time.monotonic()
    begun.fail("no")
    assert time.monotonic() - began < 0.5


def test_the_server_s_folders_are_not_shown(loading: Any, tmp_path: Path) -> None:
    folder = tmp_path / "some where" / "my-llava"
    folder.mkdir(parents=True)
    assert serve._shown(str(folder)) == "my-llava"
    assert serve._shown("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    begun, _, program = loading(serve._shown(str(folder)))

    def work() -> Any:
        raise OSError(f"{folder} holds no config.json")

    with pytest.raises(OSError, match="holds no config"):
        serve._watched(work, begun, str(folder), apart=True)
    assert program.health()[1]["reason"] == "my-llava holds no config.json"


def test_whoever_connects_while_the_page_takes_over_is_served_by_it(loading: Any) -> None:
    """The port never refuses: who comes in between waits."""
    begun, _, program = loading()
    built = page.build(Fake(pace=0, prefill=0), about())
    answers: list[tuple[int, bytes]] = []

    def ask() -> None:
        status, _, text = program.request("GET", "/healthz")
        answers.append((status, text))

    between: list[threading.Thread] = []
    join = begun.join

    def joined() -> None:
        begun.join = join
        join()
        between.extend(threading.Thread(target=ask) for _ in range(3))
        for thread in between:
            thread.start()
        time.sleep(0.2)
        assert not answers, "nobody listens now"

    begun.join = joined
    try:
        with front.gradio_on(begun, program.host, program.port):
            built.launch(server_name=program.host, server_port=program.port, prevent_thread_lock=True, quiet=True)
        for thread in between:
            thread.join(10)
        assert [(status, json.loads(text)["state"]) for status, text in answers] == [(200, "ready")] * 3
        assert program.request("GET", "/loading")[0] == 404, "a page that missed the end asks here, and loads itself again"
    finally:
        assert built.transport is not None
        built.transport.close()
        built.blocks.close(verbose=False)


@pytest.mark.browser
def test_the_page_shows_progress_and_becomes_the_real_one(loading: Any, tab: Any) -> None:
    begun, progress, program = loading()
    url = f"http://{program.host}:{program.port}/"
    shown = tab(url, width=390, height=800, color_scheme="dark")
    shown.page.goto(url)
    assert shown.page.locator("h1").inner_text() == "Loading llava-1.5-7b"
    assert shown.page.locator("progress").get_attribute("value") is None
    progress.count("Downloading the weights", 7 * GB, 14 * GB, "bytes")
    shown.page.wait_for_selector("progress[value='7000000000'][max='14000000000']")
    assert shown.page.get_by_role("status").inner_text() == "Downloading the weights"
    assert shown.page.locator("#detail").inner_text() == "7.0 of 14.0 GB"
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 20, 26)", "the real page's dark"
    built = page.build(Fake(pace=0, prefill=0), about())
    try:
        with front.gradio_on(begun, program.host, program.port):
            built.launch(server_name=program.host, server_port=program.port, prevent_thread_lock=True, quiet=True)
        shown.page.wait_for_selector("#avl-player .avl-player[data-ready]")
        assert shown.errors == []
        assert shown.outside == []
    finally:
        assert built.transport is not None
        built.transport.close()
        built.blocks.server.config.timeout_graceful_shutdown = 1
        built.blocks.close(verbose=False)


@pytest.mark.browser
def test_the_page_says_why_a_start_failed(loading: Any, tab: Any) -> None:
    begun, _, program = loading()
    url = f"http://{program.host}:{program.port}/"
    shown = tab(url)
    shown.page.goto(url)
    shown.page.wait_for_selector("#clock:not(:empty)")
    threading.Thread(target=begun.fail, args=("llava-1.5-7b does not fit: 26.3 GiB are needed, 15.0 GiB are free",)).start()
    shown.page.wait_for_selector("[data-state=failed]")
    assert shown.page.locator("h1").inner_text() == "llava-1.5-7b did not start"
    assert "26.3 GiB are needed" in shown.page.get_by_role("status").inner_text()
    assert shown.outside == []
