"""The report in a browser, from a file: it unpacks itself, asks the network for nothing, and says where it cannot."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fake import Fake
from PIL import Image

import avl
from avl import trace
from avl.engine.request import GenerationRequest
from avl.ui import report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run() -> trace.Trace:
    request = GenerationRequest((Image.new("RGB", (32, 32)),), "What? é 中 \u2028 </script>", (avl.Full(), avl.AVL(S=45, C=30)))
    return trace.Trace(list(Fake(pace=0, prefill=0)(request, threading.Event())))


@pytest.fixture
def file(run: trace.Trace, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(report.page(run), "utf-8")
    return path


def test_every_file_of_a_report_comes_out_as_it_went_in(file: Path, run: trace.Trace, tab: Any) -> None:
    """The trace and the steps are those of the server; the page saved from the page is that page."""
    one = tab(file.as_uri())
    one.page.goto(file.as_uri())
    one.page.wait_for_selector(".avl-player[data-ready]")
    one.page.wait_for_selector("[data-id=latency] .main-svg")  # plotly.js came out too
    for button, whole in (("saveJson", run.to_json()), ("saveCsv", report.steps_csv(run)), ("saveHtml", file.read_text("utf-8"))):
        with one.page.expect_download() as waiting:
            one.page.click(f"[data-id={button}]")
        assert Path(waiting.value.path()).read_bytes().decode().strip() == whole.strip(), button
    assert one.page.locator("#wait").count() == 0
    assert one.errors == []
    assert one.outside == []


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("delete window.DecompressionStream", "cannot unpack the report: open the file in"),
        ("window.atob = () => 'x'", "the file may be damaged"),
    ],
    ids=["old browser", "damaged"],
)
def test_a_report_that_cannot_be_unpacked_says_so(file: Path, tab: Any, before: str, words: str) -> None:
    one = tab(file.as_uri())
    one.before_load(before)
    one.page.goto(file.as_uri())
    told = one.page.locator("#wait[role=alert]")
    told.wait_for()
    assert words in told.inner_text()
    assert one.outside == []
