"""What a finished run shows, in headless Chromium: grids, playhead, recorded attention, the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avl.ui import gallery, report

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("kind", "layers"), [("tiles", 32), ("two", 5)])
def test_grids_of_any_shape_and_any_number_of_layers(serve: Any, tab: Any, kind: str, layers: int) -> None:
    server = serve("--pace", "0.005", "--kind", kind, "--layers", str(layers), "--side", "12")
    one = tab(server.url).open()
    page = one.page
    one.set("#avl-tokens", 14)
    page.select_option("select[aria-label='Policy of arm 1']", "H2O")
    page.click("#avl-run")
    one.wait("done")
    assert page.locator(".avl-thumb").count() == layers
    assert page.locator("[data-id=grid] option").count() == 2
    page.select_option("[data-id=grid]", "1")
    for view in ("drift", "consensus", "scores", "plain", "sets"):
        page.select_option("[data-id=view]", view)
        one.until("(view) => window.avlPlayer.view.mode === view", arg=view)
    for arm in range(2):
        page.locator(".avl-segment").nth(arm).click()
    page.locator("[data-id=overlay]").click(position={"x": 30, "y": 30})
    one.until("document.querySelector('[data-id=patch]').textContent.startsWith('Patch row')")
    assert one.errors == []


def test_tokens_without_a_place_in_the_picture(serve: Any, tab: Any) -> None:
    """The picture stands without patches, and a sentence says why; everything else works."""
    server = serve("--pace", "0.005", "--kind", "none", "--side", "12")
    one = tab(server.url).open()
    page = one.page
    one.set("#avl-tokens", 5)
    page.click("#avl-run")
    one.wait("done")
    one.until("document.querySelector('[data-id=patch]').textContent.startsWith('Where this model')")
    page.locator("[data-id=overlay]").click(position={"x": 30, "y": 30})
    for view in ("drift", "consensus", "scores", "plain", "sets"):
        page.select_option("[data-id=view]", view)
        one.until("(view) => window.avlPlayer.view.mode === view", arg=view)
    assert one.errors == []


def test_playhead_keyboard_and_zoom(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.02")
    one = tab(server.url).open()
    page = one.page
    one.set("#avl-tokens", 120)
    page.evaluate("window.mounted = document.querySelector('[data-id=memory]')")
    page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 10")
    page.evaluate("Plotly.relayout(document.querySelector('[data-id=memory]'), {'xaxis.range': [2, 8]})")
    one.until("window.avlPlayer.view.run.last > 20")
    one.wait("done")
    # the chart is the same node, and the visitor's zoom is still there
    assert page.evaluate("window.mounted === document.querySelector('[data-id=memory]') && window.mounted.isConnected")
    assert page.evaluate("document.querySelector('[data-id=memory]').layout.xaxis.range") == [2, 8]
    page.locator(".avl-answer").first.focus()
    page.keyboard.press("Home")
    one.until("window.avlPlayer.view.ts[0] === 0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    one.until("window.avlPlayer.view.ts[0] === 2")
    layer = page.evaluate("window.avlPlayer.view.layer")
    page.keyboard.press("ArrowDown")
    one.until("(layer) => window.avlPlayer.view.layer === layer + 1", arg=layer)
    page.locator(".avl-token >> nth=5").click()
    one.until("window.avlPlayer.view.ts[0] === 5")
    page.keyboard.press("Space")
    one.until("window.avlPlayer.view.playing && window.avlPlayer.view.ts[0] > 6")
    page.keyboard.press("Space")
    # what is drawn while scrubbing stays within a frame
    cost = page.evaluate("""async () => {
        const slider = document.querySelector('[data-id=step]');
        window.avlPlayer.measures.overlayMs.length = 0;
        for (let t = 0; t < 100; t++) {
            slider.value = t;
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            await new Promise(requestAnimationFrame);
        }
        const times = [...window.avlPlayer.measures.overlayMs].sort((a, b) => a - b);
        return times[Math.floor(times.length / 2)];
    }""")
    assert cost < 2
    page.locator("[data-id=memoryTable] summary").click()
    steps = page.evaluate("window.avlPlayer.view.run.last")
    assert page.locator("[data-id=memoryTable] tbody tr").count() in (steps, steps + 1)
    assert page.locator(".modebar-btn--logo").count() == 0
    assert "Share" not in page.locator("#avl-player").inner_html()
    assert one.errors == []


def test_repeats_and_recorded_attention(serve: Any, tab: Any) -> None:
    """The spread in the result; the paper's figures from the scores, in words, as pictures and as tables; the link carries both."""
    server = serve("--pace", "0.005")
    one = tab(server.url).open("?r=3&scores=1")
    page = one.page
    one.set("#avl-tokens", 16)
    page.click("#avl-run")
    one.wait("done")
    one.until("document.querySelector('[data-id=measured]').textContent.includes('over 3 runs')")
    assert one.text("runs") == "median of 3 runs"
    assert page.locator("[data-id=compared] option").count() == 4
    page.select_option("[data-id=compared]", "30")
    one.until("document.querySelector('[data-id=continuityTitle]').textContent.includes('top 30 %')")
    # the full-attention arm has no sets, but its attention was recorded
    page.locator(".avl-segment").first.click()
    one.until("document.querySelectorAll('[data-id=compared] option').length === 3")
    said = {"continuityNote": "Figure 5", "layersNote": "Figure 4", "sharesNote": "Figure 1", "sparsityNote": "22.88 %"}
    for name, words in said.items():
        assert words in one.text(name)
        assert "This run" in one.text(name)
    for name, rows in [("continuity", 8), ("layers", 8), ("shares", 16), ("sparsity", 51)]:
        page.locator(f"[data-id={name}Table] summary").click()
        # a table is filled when it was opened
        one.until(f"document.querySelectorAll('[data-id={name}Table] tbody tr').length === {rows}")
    page.select_option("[data-id=view]", "scores")
    one.until("document.querySelector('[data-id=legend]').textContent.includes('attention of')")
    assert {"r=3", "scores=1"} <= set(page.evaluate("window.avlLink()").split("&"))
    assert one.errors == []


def test_the_report_plays_offline(serve: Any, tab: Any, tmp_path: Path) -> None:
    server = serve("--pace", "0.005")
    one = tab(server.url).open()
    one.set("#avl-tokens", 20)
    one.page.click("#avl-run")
    one.wait("done")
    with one.page.expect_download() as waiting:
        one.page.click("[data-id=saveHtml]")
    file = tmp_path / "report.html"
    waiting.value.save_as(file)
    other = tab(file.as_uri())
    other.page.goto(file.as_uri())
    other.page.wait_for_selector(".avl-player[data-ready]")
    assert other.page.evaluate("window.avlPlayer.view.run.arms.map((arm) => arm.tokens.length)") == [20, 20]
    assert other.page.locator("[data-id=badge]").inner_text() == "REPORT"
    asked = other.page.locator("[data-id=askedPanel]").inner_text()
    question = one.page.locator("#avl-question textarea").input_value()
    for words in (question, "20 new tokens at most", "race", "greedy"):
        assert words in asked
    assert "Press Run" not in other.page.locator("body").inner_text()
    assert other.page.locator("[data-id=copy]").is_hidden(), "a file has no server to link to"
    with other.page.expect_download() as waiting:
        other.page.click("[data-id=saveCsv]")
    assert Path(waiting.value.path()).read_text().startswith("arm,policy")
    assert other.errors == []
    assert other.outside == []


def test_a_chart_needs_no_table(tab: Any, tmp_path: Path) -> None:
    recorded = gallery.recording(True)
    assert recorded is not None
    html = report.page(recorded)
    marked = 'data-id=\\"deviceTable\\"'
    assert html.count(marked) == 1
    file = tmp_path / "report.html"
    file.write_text(html.replace(marked, ""), "utf-8")
    one = tab(file.as_uri())
    one.page.goto(file.as_uri())
    one.page.wait_for_selector(".avl-player[data-ready]")
    one.page.locator("[data-id=memoryTable] summary").click()
    one.until("document.querySelectorAll('[data-id=memoryTable] tbody tr').length > 10")
    assert one.errors == []


def test_a_recording_without_predictions_shows_dashes(tab: Any, tmp_path: Path) -> None:
    recorded = gallery.recording(True)
    assert recorded is not None
    document = recorded.to_dict()
    for arm in document["events"][0]["arms"]:
        for field in ("title", "pruned_from", "predicted"):
            del arm[field]
    for known, name in ((True, "new"), (False, "old")):
        file = tmp_path / f"{name}.html"
        html = report.page(recorded)
        if not known:
            html = html.replace(recorded.to_json().replace("<", "\\u003c"), json.dumps(document).replace("<", "\\u003c"))
        file.write_text(html, "utf-8")
        one = tab(file.as_uri())
        one.page.goto(file.as_uri())
        one.page.wait_for_selector(".avl-player[data-ready]")
        shown = one.page.locator("[data-id=measured] tr").nth(1).locator("td").all_inner_texts()
        assert len(shown) == 2
        assert all(text.endswith("(–)") != known for text in shown), shown
        assert one.errors == []
