"""Looking at a run: a word's attention over the picture, both policies side by side, zoom, the sticky timeline, elapsed prefill."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.browser

PIXELS = """(name) => { const canvas = document.querySelector(`[data-id=${name}]`), { width, height } = canvas;
    return Array.from(canvas.getContext('2d').getImageData(0, 0, width, height).data).reduce((a, b) => (a * 31 + b) % 1000003, 7); }"""


def hover(one: Any, arm: int, token: int) -> None:
    one.page.locator(".avl-answer").nth(arm).locator(".avl-token").nth(token).hover()


def test_a_word_shows_where_its_attention_went(serve: Any, tab: Any) -> None:
    """In both pictures side by side, at the same token; away from the text the sets are back."""
    one = tab(serve("--pace", "0.002").url).open("?scores=1&n=12")
    page = one.page
    one.run()
    before = page.evaluate(PIXELS, "overlay")
    hover(one, 0, 3)
    one.until("document.querySelector('[data-id=legend]').textContent.includes('attention that chose')")
    assert "mean over layers" in one.text("legend")
    heat = page.evaluate(PIXELS, "overlay")
    assert heat != before
    hover(one, 0, 9)
    one.until("window.avlPlayer.view.word.t === 9")
    one.until(f"({PIXELS})('overlay') !== {heat}")
    page.mouse.move(5, 5)
    one.until("document.querySelector('[data-id=legend]').textContent.includes('core, read')")
    assert page.evaluate(PIXELS, "overlay") == before
    page.click("[data-id=both]")
    hover(one, 1, 5)
    for name in ("legend", "legendB"):
        one.until(f"document.querySelector('[data-id={name}]').textContent.includes('attention that chose')")
    captions = [one.text("captionA"), one.text("captionB")]
    assert captions == ["Full attention", "A-VL"]
    assert one.errors == []


def test_without_recorded_attention_a_word_changes_nothing(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?n=8")
    one.run()
    assert "Hover a word" not in one.text("patch")
    hover(one, 1, 2)
    one.until("window.avlPlayer.view.word !== null")
    one.until("document.querySelector('[data-id=legend]').textContent.includes('core, read')")
    one.page.select_option("[data-id=view]", "heat")
    one.until("document.querySelector('[data-id=legend]').textContent.includes('tick “record attention”')")


def test_both_pictures_zoom_and_move_together(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?n=6")
    page = one.page
    one.run()
    page.click("[data-id=both]")
    page.locator("[data-id=overlay]").scroll_into_view_if_needed()
    whole = page.evaluate(PIXELS, "overlayB")
    corner = "window.avlPlayer.overlay.tokenAt(2, 2)"
    assert page.evaluate(corner) == 0
    page.click("[data-id=zoomIn]")
    page.click("[data-id=zoomIn]")
    one.until(f"{corner} > 0")
    one.until(f"({PIXELS})('overlayB') !== {whole}")
    middle = page.evaluate(corner)
    page.evaluate("document.querySelector('[data-id=overlay]').scrollIntoView({ block: 'center' })")
    box = page.locator("[data-id=overlay]").bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 250, box["y"] + 250, steps=5)
    page.mouse.up()
    one.until(f"{corner} < {middle}")
    assert page.evaluate("window.avlPlayer.view.patch") == -1, "a drag is no click"
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    page.click("[data-id=zoomReset]")
    one.until(f"{corner} === 0 && window.avlPlayer.view.region === null")
    assert page.locator("[data-id=zoomReset]").is_hidden()
    clear = page.evaluate(PIXELS, "overlayB")
    one.set("#avl-opacity", 0)
    one.until(f"({PIXELS})('overlayB') !== {clear}")
    page.select_option("[data-id=view]", "plain")
    plain = page.evaluate(PIXELS, "overlayB")
    page.select_option("[data-id=view]", "sets")
    one.until("window.avlPlayer.view.mode === 'sets'")
    page.wait_for_timeout(100)
    assert page.evaluate(PIXELS, "overlayB") == plain, "nothing lies over the picture at 0 %"
    assert one.errors == []


def test_the_timeline_stays_in_sight(serve: Any, tab: Any) -> None:
    """At the bottom of the page, at both widths, and it moves what is seen there."""
    for width in (1280, 390):
        one = tab(serve("--pace", "0.002").url, width=width).open("?n=30")
        one.run()
        one.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        one.page.wait_for_timeout(200)
        box = one.page.locator("[data-id=step]").bounding_box()
        assert box is not None
        assert 0 <= box["y"] < 120, "stuck to the top"
        one.set("#avl-player [data-id=step]", 4)
        one.until("window.avlPlayer.view.ts[0] === 4")
        one.close()


def test_prefill_tells_how_long_it_takes(serve: Any, tab: Any) -> None:
    one = tab(serve("--prefill", "3", "--pace", "0.002").url).open("?n=4")
    one.page.click("#avl-run")
    one.until("/Prefill: .* [12]\\.\\d s/.test(document.querySelector('[data-id=status]').textContent)")
    states = [card.inner_text() for card in one.page.locator(".avl-arm-state").all()]
    assert states[0].startswith("prefill … ")
    assert states[1] == "waiting"
    one.until("/prefill … [12]\\.\\d s/.test(document.querySelectorAll('.avl-arm-state')[1].textContent)")
    one.wait("done")
    assert one.errors == []


def test_an_answer_is_copied_and_asked_again(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url, permissions=["clipboard-read", "clipboard-write"]).open("?n=6")
    one.run()
    text = one.page.locator(".avl-answer").first.inner_text().strip()
    one.page.locator(".avl-arm button", has_text="Copy").first.click()
    one.until("document.querySelector('.avl-arm button:last-of-type') !== null")
    assert one.page.evaluate("navigator.clipboard.readText()").strip() == text
    one.page.evaluate("window.runBefore = window.avlPlayer.view.run")
    one.page.locator(".avl-arm button", has_text="Ask again").click()
    one.until("window.avlPlayer.view.run !== window.runBefore")
    one.wait("done")
    assert one.errors == []
