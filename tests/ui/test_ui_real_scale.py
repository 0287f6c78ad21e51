"""What the page costs with a model of LLaVA-1.6-13B's size, attention recorded for 256 tokens: bytes, freezes, processor time in Chromium.

Processor time is the main thread's own (CDP, threadTicks); neighbors that share its caches and its core lengthen it all the same, by up to
half, so the quietest of several passes counts. What a clock measures may take as much longer as the machine has more work than cores.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_scale
from conftest import HERE, Process, Server, Tab, free_port
from PIL import Image
from slack import slack

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LIMITS = {
    "bytes sent per byte of trace": 1.1,
    "trace, MB": 12,
    "page done after the server, s": 1,
    "idle: long tasks in 11 s": 0,
    "scrubbing: main thread, ms per step": 8,  # of two frames: the thumb's own and the store's; a real drag has both in one
    "longest freeze of the run, s": 0.2,
    "report, MB": 14,
    "report, click to file, s": 2,
}
BY_CLOCK = {name for name in LIMITS if name.endswith(", s")}
BY_PROCESSOR = {"scrubbing: main thread, ms per step"}
IDLE_SECONDS = 11
SCRUBBED, PASSES = 20, 5
SHARED_CORE = 1.5
"""How much more processor time the same work takes beside busy neighbors."""

SCRUB = """async ([steps, last]) => {
  const slider = document.querySelector("#avl-player [data-id=step]");
  for (let i = 0; i < steps; i++) {
    slider.value = Math.max(0, last - steps) + i; // as a drag does
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  }
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    process = Process([str(HERE / "real_scale.py"), str(port)], tmp_path_factory.mktemp("real-scale") / "log.txt")
    yield Server(process, port)
    process.stop()


class Watch:
    """A tab's main thread and what it receives, by Chromium's own account."""

    def __init__(self, tab: Tab) -> None:
        self.page, self.received = tab.page, 0
        self.cdp = tab.context.new_cdp_session(tab.page)
        self.cdp.on("Network.dataReceived", self._count)
        self.cdp.send("Network.enable", {"maxTotalBufferSize": 1, "maxResourceBufferSize": 1})
        self.cdp.send("Performance.enable", {"timeDomain": "threadTicks"})
        tab.page.evaluate(
            "window.longTasks = []; new PerformanceObserver((list) => window.longTasks.push(...list.getEntries()"
            ".map((entry) => entry.duration))).observe({ type: 'longtask' })"
        )

    def _count(self, told: dict[str, Any]) -> None:
        self.received += told["dataLength"]

    def cpu_ms(self) -> float:
        """Processor time of the main thread so far."""
        metrics = {one["name"]: one["value"] for one in self.cdp.send("Performance.getMetrics")["metrics"]}
        return 1000 * metrics["TaskDuration"]

    def long_tasks(self) -> list[float]:
        """Milliseconds of each task of more than 50 since the last call."""
        return self.page.evaluate("window.longTasks.splice(0)")


def when_idle(server: Server, times: list[float]) -> None:
    """Note when the server has nothing left to run."""
    while not server.health()["running"]:
        time.sleep(0.02)
    while server.health()["running"]:
        time.sleep(0.05)
    times.append(time.monotonic())


def measure(one: Tab, server: Server, picture: Path, tokens: int) -> dict[str, float]:
    """Run once with the attention recorded, and use the page as a visitor does."""
    page, found = one.page, {}
    one.open(f"?scores=1&n={tokens}")
    page.wait_for_timeout(500)  # Gradio takes no file before its upload is wired, and tells nobody when that is
    page.locator("#avl-picture input[type=file]").set_input_files(picture)
    one.until("(n) => document.querySelector('#avl-gallery [data-id=size]').textContent.includes(`${n} image tokens`)", real_scale.N_IMAGE)
    watch, ended = Watch(one), []
    clock = threading.Thread(target=when_idle, args=(server, ended))
    clock.start()
    page.evaluate("window.runBefore = window.avlPlayer.view.run")
    began = watch.cpu_ms()
    page.click("#avl-run")
    one.until("window.avlPlayer.view.run !== window.runBefore")
    one.wait("done", 400_000)
    done = time.monotonic()
    clock.join()
    found["run: main thread, s"] = (watch.cpu_ms() - began) / 1000
    found["page done after the server, s"] = max(0.0, done - ended[0])
    found["longest freeze of the run, s"] = max([0.0, *watch.long_tasks()]) / 1000
    received = watch.received
    assert one.tokens() == [tokens, tokens]

    page.wait_for_timeout(1000)  # charts settle
    watch.long_tasks()
    began = watch.cpu_ms()
    page.wait_for_timeout(1000 * IDLE_SECONDS)
    found["idle: main thread, ms per s"] = (watch.cpu_ms() - began) / IDLE_SECONDS
    found["idle: long tasks in 11 s"] = len([ms for ms in watch.long_tasks() if ms > 50 * slack()])

    page.evaluate(SCRUB, [5, tokens - 1])  # warm
    passes = []
    for _ in range(PASSES):
        began = watch.cpu_ms()
        page.evaluate(SCRUB, [SCRUBBED, tokens - 1])
        passes.append((watch.cpu_ms() - began) / SCRUBBED)
    found["scrubbing: main thread, ms per step"] = min(passes)

    for name, button in (("trace", "saveJson"), ("report", "saveHtml")):
        began = time.monotonic()
        with page.expect_download() as waiting:
            page.click(f"[data-id={button}]")
        size = Path(waiting.value.path()).stat().st_size
        found[f"{name}, MB"] = size / 1e6
        if name == "report":
            found["report, click to file, s"] = time.monotonic() - began
        else:
            found["bytes sent per byte of trace"] = received / size
    return found


def allowed(name: str, wide: float) -> float:
    """Return a limit on a machine where clocks may run ``wide`` times as long."""
    return LIMITS[name] * (wide if name in BY_CLOCK else min(wide, SHARED_CORE) if name in BY_PROCESSOR else 1)


def table(found: dict[str, float], wide: float) -> str:
    """Return what was found beside what is allowed."""
    rows = [f"{f'(machine {wide:.1f} x busy)':38}{'measured':>10}{'at most':>10}"]
    for name, value in found.items():
        most = f"{allowed(name, wide):10.3g}" if name in LIMITS else ""
        rows.append(f"{name:38}{value:10.3g}{most}")
    return "\n".join(rows)


def test_the_page_at_the_size_of_llava_16(server: Server, tab: Any, tmp_path: Path) -> None:
    picture = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*real_scale.PICTURE, 3), np.uint8)).resize((96, 96)).resize(
        real_scale.PICTURE
    ).save(picture)
    one = tab(server.url, fresh=True)
    found = measure(one, server, picture, real_scale.TOKENS)
    wide = slack()
    print(f"\n{table(found, wide)}")
    beyond = [name for name in LIMITS if found[name] > allowed(name, wide)]
    assert beyond == []
    assert one.errors == []
