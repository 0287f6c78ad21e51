"""How the page looks and reads: accessible by axe-core, nothing clipped, on a phone and a desk, light and dark."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.browser

# Faults of Gradio's own markup, by rule and part of the selector; everything else has to be clean
GRADIO_FAULTS: dict[str, str] = {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(serve: Any, tab: Any, scheme: str) -> None:
    """axe-core, before and after a run, in both themes."""
    from axe_playwright_python.sync_playwright import Axe

    server = serve("--pace", "0.005")
    one = tab(server.url, color_scheme=scheme).open("?scores=1")
    one.set("#avl-tokens", 12)
    for after in (False, True):
        if after:
            one.page.click("#avl-run")
            one.wait("done")
            for table in one.page.locator("#avl-player details summary").all():
                if table.is_visible():
                    table.click()
        found = Axe().run(one.page).response["violations"]
        ours = [
            f"{fault['id']}: {node['target']} {node['failureSummary'][:300]}"
            for fault in found
            for node in fault["nodes"]
            if not (fault["id"] in GRADIO_FAULTS and GRADIO_FAULTS[fault["id"]] in str(node["target"]))
        ]
        assert ours == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling(serve: Any, tab: Any, width: int, scheme: str) -> None:
    server = serve("--pace", "0.005")
    one = tab(server.url, width=width, color_scheme=scheme).open()
    one.set("#avl-tokens", 30)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    one.page.click("#avl-run")
    one.wait("done")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    sticking_out = one.page.evaluate(
        """(width) => [...document.querySelectorAll('.avl *')].filter((node) => {
            const box = node.getBoundingClientRect();
            return box.width && box.right > width + 1 && !node.closest('.avl-strip, .avl-scroll, svg, .avl-sr');
        }).map((node) => node.className + ' ' + Math.round(node.getBoundingClientRect().right)).slice(0, 5)""",
        width,
    )
    assert sticking_out == []
    assert one.page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")


@pytest.mark.parametrize("pace", ["0.0005", "0.003"])
def test_a_finished_answer_shows_its_end(pace: str, serve: Any, tab: Any) -> None:
    """Also where the last tokens came together with the end of the run."""
    one = tab(serve("--pace", pace).url, width=390).open()
    one.set("#avl-tokens", 96)
    one.page.click("#avl-run")
    one.wait("done")
    answers = one.page.evaluate(
        "[...document.querySelectorAll('.avl-answer')].map((node) => [node.scrollHeight - node.clientHeight, node.scrollTop])"
    )
    assert len(answers) == 2
    for hidden, scrolled in answers:
        assert hidden > 0
        assert scrolled >= hidden - 2
