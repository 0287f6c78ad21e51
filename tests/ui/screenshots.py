"""Take the pictures of every state of the page into assets/screenshots: ``python tests/ui/screenshots.py [--only NAME …]``.

The running, finished and phone pictures come from the real page with the bundled model; line, error and LLaVA-1.6 tiles from the made-up
engine, because they need a pace or a shape that the bundled model does not have.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from conftest import FakePages, Process, Server, Tab, free_port  # noqa: E402 (the path is set above)
from headless import find_chromium  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

OUT = HERE.parents[1] / "assets" / "screenshots"
SETTLE = 900  # milliseconds for pictures to load and charts to draw


def shoot(tab: Tab, name: str, full: bool = True) -> None:
    tab.page.wait_for_timeout(SETTLE)
    tab.page.mouse.move(0, 0)
    if full:
        # a viewport as high as the page: the settings stick to it, and a shorter one would cut them
        size = tab.page.viewport_size
        tab.page.set_viewport_size({"width": size["width"], "height": tab.page.evaluate("document.documentElement.scrollHeight")})
        tab.page.wait_for_timeout(SETTLE)
    path = OUT / f"{name}.png"
    tab.page.screenshot(path=path, full_page=full)
    if full:
        tab.page.set_viewport_size(size)
    shrink(path)
    print(path.name, path.stat().st_size // 1024, "KiB")


def shrink(path: Path) -> None:
    """256 colors are enough for flat surfaces, and a third of the size."""
    from PIL import Image

    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def first(browser: Any, real: Server, _: Any) -> None:
    tab = Tab(browser, real.url).open()
    tab.wait("recorded")
    shoot(tab, "first-paint")
    tab.page.click("[data-id=tour]")
    shoot(tab, "tour", full=False)
    tab.close()


def finished(browser: Any, real: Server, _: Any) -> None:
    for scheme in ("light", "dark"):
        tab = Tab(browser, real.url, color_scheme=scheme).open()
        tab.page.click("#avl-run")
        tab.wait("done", 300_000)
        shoot(tab, "desktop-finished" if scheme == "light" else "desktop-dark")
        if scheme == "light":
            tab.set("[data-id=step]", 12)
            shoot(tab, "scrubbed", full=False)
        tab.close()


def running(browser: Any, real: Server, _: Any) -> None:
    tab = Tab(browser, real.url).open()
    tab.set("#avl-tokens", 256)
    tab.set("#avl-batch", 16)
    tab.page.click("#avl-run")
    live = "const view = window.avlPlayer.view; return view.run && !view.recorded && view.run.arms.length"
    tab.until(f"(() => {{ {live} && view.run.arms.every((arm) => arm.tokens.length > 12); }})()")
    shoot(tab, "running", full=False)
    tab.page.click("#avl-stop")
    tab.wait("done", 300_000)
    shoot(tab, "stopped", full=False)
    tab.close()


def phone(browser: Any, real: Server, _: Any) -> None:
    for scheme in ("light", "dark"):
        tab = Tab(browser, real.url, width=390, height=844, device_scale_factor=2, color_scheme=scheme).open()
        tab.wait("recorded")
        if scheme == "light":
            shoot(tab, "phone-first", full=False)
        tab.page.click("#avl-run")
        tab.wait("done", 300_000)
        shoot(tab, "phone-finished" if scheme == "light" else "phone-dark", full=False)
        tab.close()


def line(browser: Any, _: Any, fake: Any) -> None:
    server = fake("--pace", "0.05")
    one, two = Tab(browser, server.url).open(), Tab(browser, server.url).open()
    for tab in (one, two):
        tab.set("#avl-tokens", 256)
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 1")
    two.page.click("#avl-run")
    two.wait("queued")
    shoot(two, "queue", full=False)
    one.close()
    two.close()


def error(browser: Any, _: Any, fake: Any) -> None:
    tab = Tab(browser, fake("--pace", "0.05").url).open()
    tab.page.fill("#avl-question textarea", " ")
    tab.page.click("#avl-run")
    tab.page.wait_for_selector("[data-id=alert]:not([hidden])")
    shoot(tab, "error", full=False)
    tab.close()


def tiles(browser: Any, _: Any, fake: Any) -> None:
    tab = Tab(browser, fake("--pace", "0.01", "--kind", "tiles", "--layers", "32", "--gpu").url).open()
    tab.set("#avl-tokens", 30)
    tab.page.click("#avl-run")
    tab.wait("done", 300_000)
    tab.page.select_option("[data-id=grid]", "1")
    shoot(tab, "tiles")
    tab.close()


def policies(browser: Any, real: Server, _: Any) -> None:
    """All policies at equal memory, with their agreement."""
    for width in (1280, 390):
        tab = Tab(browser, real.url, width=width).open("?b=AVL&S=20&C=10&P=60&T=50&agreement=1")
        tab.page.evaluate("document.querySelector('#avl-controls [data-id=all]').click()")
        tab.until("document.querySelectorAll('#avl-controls .avl-choice').length > 2")
        tab.page.click("#avl-run")
        tab.wait("done", 300_000)
        shoot(tab, "policies" if width > 390 else "phone-policies")
        tab.close()


def conversation(browser: Any, real: Server, _: Any) -> None:
    """Two questions, the second asked of what the first one left; and where that is missed in the picture."""
    for width, before in ((1280, ""), (390, "phone-")):
        tab = Tab(browser, real.url, width=width).open()
        tab.wait("recorded")
        tab.page.click(".avl-two")
        tab.until("window.avlPlayer.view.run.start.turn === 2 && window.avlPlayer.view.complete === window.avlPlayer.view.opened")
        for panel, name in (("conversation", "ask-on"), ("tokens", "ask-on-picture")):
            tab.page.locator(f"[data-panel={panel}]").evaluate("node => node.scrollIntoView({ block: 'start' })")
            shoot(tab, f"{before}{name}", full=False)
        tab.close()


STATES = {
    "conversation": conversation,
    "first": first,
    "finished": finished,
    "running": running,
    "phone": phone,
    "queue": line,
    "error": error,
    "tiles": tiles,
    "policies": policies,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(STATES), default=list(STATES))
    chosen = parser.parse_args().only
    OUT.mkdir(parents=True, exist_ok=True)
    logs = Path(tempfile.mkdtemp())
    fake = FakePages(logs / "fake.txt")
    port = free_port()
    app = Process(["app.py", "--device", "cpu", "--port", str(port)], logs / "real.txt")
    try:
        real = Server(app, port)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
            for name in chosen:
                STATES[name](browser, real, fake)
            browser.close()
    finally:
        app.stop()
        fake.process.stop()


if __name__ == "__main__":
    main()
