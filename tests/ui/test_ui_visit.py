"""Runs of a visit in the page: listed, opened, compared, downloaded; pictures that are dropped; another model's recording."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from avl._paths import ASSETS
from avl.ui import gallery

pytestmark = pytest.mark.browser

SCENE = str(ASSETS / "traces" / "scene.json")
DROP = """async (colors) => {
  const files = new DataTransfer();
  for (const color of colors) {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 64;
    const at = canvas.getContext('2d');
    at.fillStyle = color;
    at.fillRect(0, 0, 64, 64);
    files.items.add(new File([await new Promise((done) => canvas.toBlob(done))], color + '.png', { type: 'image/png' }));
  }
  const target = document.querySelector('#avl-picture img') || document.querySelector('#avl-picture button');
  const options = { bubbles: true, cancelable: true, dataTransfer: files };
  return ['dragover', 'drop'].map((type) => target.dispatchEvent(new DragEvent(type, options)));
}"""


def visited(one: Any) -> list[str]:
    return one.page.locator(".avl-visited b.avl-question").all_inner_texts()


def open_list(one: Any) -> None:
    one.see("history")
    one.page.locator("[data-panel=history] summary").click()
    one.page.wait_for_selector(".avl-visited")


def test_runs_are_listed_pinned_compared_opened_and_downloaded(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002", "--recorded", SCENE).url).open()
    page = one.page
    one.wait("recorded")
    one.set("#avl-tokens", 14)
    assert page.locator("[data-panel=history]").is_hidden()
    one.run()
    page.fill("#avl-question textarea", "Why <b>so</b>?")
    one.set("#avl-arm1-S", 60)
    one.run()
    one.until("document.querySelector('[data-id=visitCount]').textContent === 'Runs of this visit (2)'")
    open_list(one)
    first = gallery.examples(True)[0].questions[0]
    assert visited(one) == ["Why <b>so</b>?", first]
    row = page.locator(".avl-visited").first
    assert page.locator(".avl-visited img").count() == 2
    for words in ("finished", "on screen", "A-VL S=60", "stored 6", "read 4", "per token", "≠ differs from full at token 10"):
        assert words in row.inner_text()
    # by keyboard: pin the older one, and see it beside the one on screen
    pin = page.locator(".avl-visited [data-act=pin]").nth(1)
    assert pin.get_attribute("aria-label") == f"Pin: 12:00, {first}"
    pin.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("[document.activeElement.dataset.act, document.activeElement.getAttribute('aria-pressed')]") == ["pin", "true"]
    table = page.locator("[data-id=versusTable]")
    rows = [line.split("\t") for line in table.inner_text().splitlines() if line.count("\t") == 2]
    assert ["question", first, "Why <b>so</b>?"] in rows
    assert ["setting S", "45", "60"] in rows
    assert [line[0] for line in rows].count("KV stored") == 2
    # open it: the pinned run is on screen itself
    page.locator(".avl-visited [data-act=open]").nth(1).click()
    one.until("window.avlPlayer.view.source === 'earlier'")
    assert one.text("badge") == "EARLIER RUN"
    assert one.text("status") == "Your run of 12:00. Finished."
    assert one.text("stale") == "This run had other inputs than the page has now (question and settings). Press Run for new answers."
    assert page.locator(".avl-again").is_hidden(), "it would ask something else"
    one.until("document.querySelector('[data-id=versusTable]').hidden")
    assert one.tokens() == [14, 14]
    # all as one table
    one.see("history")
    with page.expect_download() as saved:
        page.click("[data-id=visitCsv]")
    lines = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text("utf-8"))))
    assert [line["question"] for line in lines] == ["Why <b>so</b>?"] * 2 + [first] * 2
    # a new run is what the page shows then
    one.run()
    assert one.text("badge") == "DONE"
    one.until("document.querySelectorAll('.avl-visited').length === 3")
    assert one.errors == []


def test_a_run_in_progress_says_so_and_what_expired_goes(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.4")
    one = tab(server.url).open("?n=1")
    page = one.page
    one.run()
    page.evaluate("localStorage.setItem('avl-runs', JSON.stringify([...JSON.parse(localStorage.getItem('avl-runs')), 'gone-since']))")
    one.set("#avl-tokens", 250)
    page.click("#avl-run")
    one.until("window.avlPlayer.view.run.last > 1")
    open_list(one)
    one.until("document.querySelectorAll('.avl-visited').length === 2")
    one.until("document.querySelector('.avl-visited').innerText.includes('in progress')")
    assert page.locator(".avl-visited [data-act=open]").nth(1).is_disabled(), "it would hide the one that goes on"
    assert one.text("visitSaid").startswith("1 run left the list")
    # another tab of the visitor joins it by hand, and leaves it to the first one
    other = one.context.new_page()
    other.goto(server.url)
    other.wait_for_selector("[data-panel=history]:not([hidden])")
    assert other.evaluate("window.avlPlayer.view.run") is None, "a tab beside it is left alone"
    other.locator("[data-panel=history] summary").click()
    other.locator(".avl-visited [data-act=open]").first.click()
    other.wait_for_function("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 2", polling=150)
    assert other.locator("#avl-stop").is_enabled()
    other.close()
    page.click("#avl-stop")
    one.wait("done", 8000)
    one.until("document.querySelector('.avl-visited').innerText.includes('stopped')")


def test_a_run_that_cannot_be_joined_is_one_sentence(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002", "--recorded", SCENE).url).open()
    one.wait("recorded")
    one.page.evaluate("window.avlPlayer.receiver.join('gone-since')")
    one.until("!document.querySelector('[data-id=alert]').hidden")
    assert one.text("alert") == "The server no longer has this run: it keeps a visitor’s newest 24 for an hour."
    assert one.text("badge") == "RECORDED"
    assert one.page.locator("#avl-run").is_enabled()
    one.run()
    assert one.page.locator("[data-id=alert]").is_hidden()


def test_text_tokens_follow_the_playhead_and_the_layer(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?n=20&l=3")
    page = one.page
    one.run()
    one.see("text_tokens")
    state = "document.querySelector('[data-id=textKept]').textContent"
    # of the prompt's 40 every third left, and at steps 4, 8, 12 and 16 a word of the answer
    one.until(f"{state} === 'A-VL, layer 3: kept 41 of 59 text tokens'")
    assert page.locator(".avl-word").count() == 40 + 20 + 1
    assert page.locator(".avl-gone").count() == 18
    assert "576 image tokens" in page.locator(".avl-word-image").inner_text()
    one.set("[data-id=step]", 4)
    one.until(f"{state} === 'A-VL, layer 3: kept 29 of 44 text tokens'")
    assert page.locator(".avl-newest").count() == 1
    assert page.locator(".avl-ahead").count() == 15
    one.set("#avl-layer", 2)
    one.until(f"{state} === 'A-VL, layer 2: kept 31 of 44 text tokens'")
    page.locator(".avl-segment").first.click()
    one.see("text_tokens")
    one.until(f"{state} === 'Full attention, layer 2: kept 44 of 44 text tokens'")
    assert page.locator(".avl-gone").count() == 0
    # a step touches the words that it changes, not all of them
    page.locator(".avl-segment").nth(1).click()
    one.see("text_tokens")
    one.until(f"{state} === 'A-VL, layer 2: kept 31 of 44 text tokens'")
    page.evaluate("""() => {
        window.touched = 0;
        new MutationObserver((found) => { window.touched += found.length; })
            .observe(document.querySelector('[data-id=words]'), { attributes: true, childList: true, subtree: true });
    }""")
    one.set("[data-id=step]", 5)
    one.until(f"{state} === 'A-VL, layer 2: kept 32 of 45 text tokens'")
    assert 0 < page.evaluate("window.touched") <= 3
    assert one.errors == []


def test_text_tokens_are_hidden_where_a_recording_has_none(serve: Any, tab: Any) -> None:
    one = tab(serve("--recorded", SCENE).url).open()
    one.wait("recorded")
    assert one.page.evaluate("window.avlPlayer.view.run.start.text.length > 0") == one.page.locator("[data-panel=text_tokens]").is_visible()


def test_several_pictures_are_dropped_at_once(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open()
    page = one.page
    counted = "(words) => document.querySelector('[data-id=size]').textContent.startsWith(words)"
    assert page.evaluate(DROP, ["red", "green", "blue"]) == [False, False], "the browser does not leave the page for the file"
    one.until(counted, "3 pictures, 1728 image tokens")
    # a single one replaces the picture, several replace all
    page.evaluate(DROP, ["yellow"])
    one.until("(document.querySelector('#avl-picture img') || { src: '' }).src.includes('yellow')")
    one.until(counted, "3 pictures")
    page.evaluate(DROP, ["black", "white"])
    one.until(counted, "2 pictures, 1152 image tokens")
    one.set("#avl-tokens", 4)
    one.run()
    assert one.text("askedFacts").startswith("black.png, white.png")
    assert one.errors == []


def test_an_example_is_asked_at_once(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?n=6")
    page = one.page
    example = gallery.examples(True)[2]
    page.hover(".avl-card >> nth=2")
    page.get_by_role("button", name=f"Ask about {example.name} at once").click()
    one.wait("done")
    assert one.text("asked") == example.questions[0]
    assert one.text("askedFacts").startswith(example.name)
    assert one.text("stale") == ""
    # while a run goes on it is chosen alone
    slow = tab(serve("--pace", "0.05").url).open()
    slow.page.click("#avl-run")
    slow.until("window.avlPlayer.view.run")
    slow.page.locator(".avl-ask").nth(1).click(force=True)
    slow.until("document.querySelector('[data-id=size]').textContent.startsWith('Chosen. A run is in progress')")
    assert one.errors + slow.errors == []


def test_a_real_model_opens_with_the_bundled_recording(serve: Any, tab: Any) -> None:
    one = tab(serve("--real", "--pace", "0.002").url).open()
    page = one.page
    one.wait("recorded")
    assert one.text("status").endswith("with the bundled small LLaVA. Press Run to ask fake model.")
    # the page asks something else than the recording, and nobody changed it
    one.until("window.avlInputs() && window.avlInputs().link === 'ex=coffee'")
    page.fill("#avl-question textarea", "What is it?")
    page.wait_for_timeout(300)
    assert one.text("askedWord") == "Asked:"
    assert one.text("stale") == ""
    assert page.evaluate("document.querySelector('#avl-player .avl').classList.contains('avl-old')") is False
    assert page.locator(".avl-again").is_hidden()
    page.click("[data-id=tour]")
    for _ in range(6):
        page.locator(".avl-tour-buttons button").nth(1).click()
    one.set("[data-id=step]", 4)
    assert page.evaluate("window.avlPlayer.view.ts[0]") == 4
    with page.expect_download():
        page.click("[data-id=saveJson]")
    one.set("#avl-tokens", 6)
    one.run()
    assert one.text("badge") == "DONE"
    linked = tab(one.url).open("?ex=cat")
    linked.until("document.querySelector('[data-id=status]').textContent === 'Not run yet: press Run.'")
    assert one.errors + linked.errors == []


def test_on_a_phone_the_list_fits(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url, width=390, height=844, has_touch=True, is_mobile=True).open("?n=8")
    # wherever the page is scrolled to, nothing lies over Run: Gradio's labels would
    assert (
        one.page.evaluate("""async () => {
        const covered = [];
        for (let top = 0; top < 1200; top += 40) {
            scrollTo(0, top);
            await new Promise(requestAnimationFrame);
            const box = document.querySelector('#avl-run').getBoundingClientRect();
            const over = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
            if (!over.closest('#avl-run')) covered.push([top, over.outerHTML.slice(0, 60)]);
        }
        return covered;
    }""")
        == []
    )
    for _ in range(2):
        one.run()
    open_list(one)
    one.until("document.querySelectorAll('.avl-visited').length === 2")
    one.page.locator(".avl-visited [data-act=pin]").nth(1).tap()
    assert one.page.evaluate("document.documentElement.scrollWidth") == 390
    heights = one.page.evaluate("""[...document.querySelectorAll('[data-panel=history] :is(button, summary), .avl-ask')]
        .map((node) => node.offsetHeight).filter(Boolean)""")
    assert min(heights) >= 44
