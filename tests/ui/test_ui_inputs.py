"""What a visitor chooses, in headless Chromium: pictures, scenes, questions, links, the tour, hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_ui_page import PAYLOADS

from avl.ui import gallery

pytestmark = pytest.mark.browser


def test_scenes_examples_and_questions(real: Any, tab: Any) -> None:
    one = tab(real.url).open()
    page = one.page
    picture = page.locator("#avl-picture img").first.get_attribute("src")
    page.click(".avl-example.avl-new")
    one.until("(before) => document.querySelector('#avl-picture img').src !== before", arg=picture)
    chips = page.locator(".avl-chip")
    chips.nth(1).wait_for()
    chips.nth(1).click()
    wanted = chips.nth(1).inner_text()
    one.until("(text) => document.querySelector('#avl-question textarea').value === text", arg=wanted)
    page.click("#avl-run")
    one.wait("done")
    assert "Right answer" in one.text("measured")
    assert one.errors == []


def test_several_pictures(real: Any, tab: Any) -> None:
    one = tab(real.url).open()
    page = one.page
    page.click("#avl-more button")
    shelf = Path(__file__).resolve().parents[2] / "assets" / "gallery"
    page.locator("#avl-more input[type=file]").set_input_files([str(shelf / "scene-4.png"), str(shelf / "scene-9.png")])
    page.locator("#avl-more-pictures").get_by_text("scene-9").wait_for()
    one.set("#avl-tokens", 3)
    page.click("#avl-run")
    one.wait("done")
    told = page.evaluate("(() => { const { start, images } = window.avlPlayer.view.run; return [start.n_image, images.length]; })()")
    assert told == [3 * 576, 3]
    grids = page.locator("[data-id=grid] option")
    assert [grids.nth(i).inner_text() for i in range(3)] == [f"picture {i}: whole picture, 24 × 24 tokens" for i in (1, 2, 3)]
    page.select_option("[data-id=grid]", "2")
    one.until("window.avlPlayer.view.grid === 2")
    assert "Right answer" not in one.text("measured"), "the answer of the first picture alone is not known to be right"
    page.click(".avl-example >> nth=2")
    page.locator("#avl-more-pictures").get_by_text("scene-9").wait_for(state="detached")
    assert one.errors == []


def test_bad_input_is_said_on_the_page(serve: Any, tab: Any, tmp_path: Path) -> None:
    server = serve("--pace", "0.01")
    one = tab(server.url).open()
    page = one.page
    page.fill("#avl-question textarea", "   ")
    page.click("#avl-run")
    page.wait_for_selector("[data-id=alert]:not([hidden])")
    assert "question is empty" in one.text("alert")
    page.fill("#avl-question textarea", "What is it?")
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"\x89PNG\r\n\x1a\n" + b"nonsense" * 50)
    page.locator("#avl-picture button[aria-label='Remove Image']").first.click()
    page.click("#avl-run")
    one.until("document.querySelector('[data-id=alert]').textContent.includes('no picture')")
    page.locator("#avl-picture input[type=file]").first.set_input_files(str(junk))
    page.wait_for_selector("#avl-picture img")
    page.click("#avl-run")
    one.until("document.querySelector('[data-id=alert]').textContent.includes('not a picture')")
    assert page.locator("#avl-run").is_enabled()
    assert "Traceback" not in page.inner_text("body")
    # the server is as it was
    page.click(".avl-example >> nth=0")
    one.until("document.querySelector('#avl-question textarea').value !== 'What is it?'")
    one.set("#avl-tokens", 4)
    page.click("#avl-run")
    one.wait("done")
    assert page.locator("[data-id=alert]").is_hidden()


def test_hostile_text_stays_text(serve: Any, tab: Any) -> None:
    options = [part for payload in PAYLOADS for part in ("--text", payload)]
    server = serve("--pace", "0.005", *options)
    one = tab(server.url).open("?S=%3Cimg%20src=x%20onerror=alert(1)%3E&ex=${alert(1)}")
    page = one.page
    fired: list[str] = []
    page.on("dialog", lambda dialog: (fired.append(dialog.message), dialog.dismiss()))
    page.fill("#avl-question textarea", " ".join(PAYLOADS))
    page.click("#avl-run")
    one.wait("done")
    for card in page.locator(".avl-answer").all():
        text = card.evaluate("(node) => node.textContent")
        for payload in PAYLOADS:
            assert payload in text
    assert page.locator("#avl-player img, #avl-player script").count() == 0
    page.keyboard.press("End")
    assert fired == []
    assert one.errors == []
    assert one.outside == []


def test_a_link_restores_settings_example_layer_and_step(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.005")
    one = tab(server.url).open("?ex=scene-9&a=H2O&a.keep=40&b=AVL&S=20&C=off&K=2&P=off&T=70&n=12&B=1&l=6&t=4")
    page = one.page
    asked = next(example for example in gallery.examples(True) if example.key == "scene-9").questions[0]
    one.until("(text) => document.querySelector('#avl-question textarea').value === text", arg=asked)
    one.until("document.querySelector(\"select[aria-label='Policy of arm 1']\").value === 'H2O'")
    page.click("#avl-run")
    one.wait("done")
    arms = page.evaluate("window.avlPlayer.view.run.start.arms.map((arm) => arm.policy)")
    assert (arms[0]["name"], arms[0]["keep"]) == ("H2O", 40)
    assert {key: arms[1][key] for key in "SCKPT"} == {"S": 20, "C": None, "K": 2, "P": None, "T": 70}
    assert page.evaluate("[window.avlPlayer.view.layer, window.avlPlayer.view.ts[0]]") == [6, 4]
    link = page.evaluate("window.avlLink()")
    assert "ex=scene-9" in link
    assert "C=off" in link
    # an upload has no name, so no link can carry it
    page.locator("#avl-picture button[aria-label='Remove Image']").first.click()
    one.until("!window.avlLink().includes('ex=')")
    assert one.errors == []


def test_tour_help_and_equal_budget(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.005")
    one = tab(server.url).open()
    page = one.page
    page.select_option("select[aria-label='Policy of arm 1']", "H2O")
    page.locator(".avl-equal").first.click()
    one.until("window.avlLink().includes('a.keep=52')")  # A-VL's cache grows with the answer, H2O's does not: their means are the same
    one.set("#avl-tokens", 20)
    page.click("#avl-run")
    one.wait("done")
    page.click("[data-id=tour]")
    for number in range(6):
        assert page.locator(".avl-tour small").inner_text() == f"{number + 1} of 6"
        page.locator(".avl-tour button").nth(1).click()
    assert page.locator(".avl-tour").is_hidden()
    page.locator("[data-id=memoryHead] .avl-help").click()
    assert "re-select the core (triangles)" in page.locator("#avl-player .avl-help-text:visible").inner_text()
    assert "share" in one.text("layersNote")
    assert one.errors == []
