"""How the page looks and reads: accessible by axe-core, nothing clipped, on a phone and a desk, light and dark."""

from __future__ import annotations

from typing import Any

import pytest
from fake import WORDS

from avl.ui import gallery

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


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
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
def test_a_finished_answer_is_read_from_its_beginning(pace: str, serve: Any, tab: Any) -> None:
    """Boxes grow to 40 % of the window; what is longer scrolls in both at once. Also where the last tokens came with the end of the run."""
    words = [part for word in WORDS * 4 for part in ("--text", word)]  # enough that 256 tokens do not end it
    one = tab(serve("--pace", pace, *words).url, width=390).open("?n=256")
    page = one.page
    one.run()
    one.until("[...document.querySelectorAll('.avl-answer')].every((node) => node.scrollTop === 0 && node.childElementCount === 256)")
    heights = page.evaluate(
        "[...document.querySelectorAll('.avl-answer')].map((node) => [node.clientHeight, node.scrollHeight - node.clientHeight])"
    )
    assert len(heights) == 2
    for height, hidden in heights:
        assert 0.38 * 900 < height <= 0.4 * 900 + 1
        assert hidden > 0
    page.evaluate("document.querySelector('.avl-answer').scrollTop = 1e6")
    one.until(
        "(() => { const b = document.querySelectorAll('.avl-answer')[1]; return b.scrollTop >= b.scrollHeight - b.clientHeight - 2; })()"
    )
    page.evaluate("document.querySelectorAll('.avl-answer')[1].scrollTop = 0")
    one.until("document.querySelector('.avl-answer').scrollTop === 0")


PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True}
SEEN = """(selector) => { const box = document.querySelector(selector).getBoundingClientRect();
    const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return box.top >= 0 && box.bottom <= innerHeight && Boolean(top) && Boolean(top.closest(selector)); }"""


def test_a_phone_can_stop_a_run_and_read_the_charts(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.05").url, **PHONE).open("?n=200")
    page = one.page
    fold = page.locator(".avl-drawer > summary")
    assert fold.evaluate("(node) => getComputedStyle(node, '::before').content") == '"▸"'
    fold.tap()
    assert fold.evaluate("(node) => getComputedStyle(node, '::before').content") == '"▾"'
    fold.tap()
    page.tap("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 3")
    one.until("scrollY > 300")  # it goes to the answers
    page.wait_for_timeout(700)
    assert page.evaluate(SEEN, "#avl-stop"), "in reach from wherever the page is scrolled to"
    page.tap("#avl-stop")
    one.wait("done", 8000)
    one.until("document.querySelectorAll('[data-id=memory] .plot-container').length === 1")
    assert page.locator(".modebar").count() == 0, "it never hides without a pointer that hovers, and stands over the data"
    small = page.evaluate("""() => [...document.querySelectorAll(
        '.avl :is(button, select, summary, input:not([type=range])), #avl-go button')]
        .filter((node) => node.offsetParent).map((node) => [node, node.getBoundingClientRect()])
        .filter(([node, box]) => box.height < 24 || box.width < 24).map(([node]) => node.className + node.textContent)""")
    assert small == []
    first = ["#avl-run", "#avl-stop", "[data-id=play]", "[data-id=back]", "[data-id=forth]"]
    assert all(page.locator(one).bounding_box()["height"] >= 44 for one in first)
    assert one.errors == []


def test_a_desk_keeps_run_and_settings_beside_the_results(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?n=20")
    page = one.page
    page.click("#avl-run")
    one.wait("done")
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_timeout(200)
    assert page.evaluate(SEEN, "#avl-run")
    # the charts' tool bar stands above the data, and is no stop for the keyboard
    page.locator("[data-id=memory]").scroll_into_view_if_needed()
    page.locator("[data-id=memory]").hover()
    bar, plot = (page.locator(f"[data-id=memory] {part}").first.bounding_box() for part in (".modebar", ".nsewdrag"))
    assert bar["y"] + bar["height"] <= plot["y"] + 1
    assert page.evaluate("[...document.querySelectorAll('.modebar-btn')].every((node) => node.tabIndex < 0)")


def test_enter_runs_and_shift_enter_starts_a_line(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?n=4")
    page = one.page
    box = page.locator("#avl-question textarea")
    box.fill("What is")
    box.press("End")
    box.press("Shift+Enter")
    box.type("it?")
    assert box.input_value() == "What is\nit?"
    page.wait_for_timeout(300)
    assert one.state() == "idle"
    box.press("Enter")
    one.wait("done")
    assert page.evaluate("window.avlPlayer.view.run.start.question") == "What is\nit?"
    assert box.input_value() == "What is\nit?"
    assert "Shift+Enter" in page.locator("#avl-question").inner_text()
    # from the top of the page: two links, past everything
    page.evaluate("document.activeElement.blur()")
    page.locator(".avl-skip").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "avl-run"


def test_a_status_never_moves_what_stands_below(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.05").url).open("?n=60")
    page = one.page
    page.click("#avl-run")
    one.until("document.querySelectorAll('.avl-answer').length === 2")
    page.evaluate("""() => {
        window.tops = new Set();
        const note = () => window.tops.add(
            [...document.querySelectorAll('.avl-answer')].map((node) => Math.round(node.getBoundingClientRect().top + scrollY)).join());
        new MutationObserver(note).observe(document.querySelector('#avl-player'), { subtree: true, childList: true, characterData: true });
    }""")
    one.until("window.avlPlayer.view.run.last > 10")
    page.click("#avl-stop")
    one.wait("done")
    page.wait_for_timeout(200)
    tops = page.evaluate("[...window.tops]")
    assert len(tops) == 1, tops
    assert len(set(tops[0].split(","))) == 1, "both cards alike"


def test_a_wrong_field_is_marked_and_a_wrong_picture_told_at_once(serve: Any, tab: Any, tmp_path: Any) -> None:
    one = tab(serve("--pace", "0.002", "--context", "2048").url).open()
    page = one.page
    page.click(".avl-more summary")
    for field, wrong, right in [
        ("batch", "999", "4"),
        ("batch", "2.5", "2"),
        ("temperature", "3", "0.75"),
        ("seed", "-1", ""),
        ("topp", "0", "0.9"),
    ]:
        page.fill(f"#avl-{field}", wrong)
        assert page.locator(f"#avl-{field}").get_attribute("aria-invalid") == "true", field
        page.fill(f"#avl-{field}", right)
        assert page.locator(f"#avl-{field}").get_attribute("aria-invalid") is None, field
    size = page.locator("#avl-gallery [data-id=size]")
    assert size.inner_text() == "576 image tokens."
    for name, content, words in [("text.png", b"hello", "not a picture"), ("cut.png", b"\x89PNG\r\n\x1a\n" + b"x" * 99, "not a picture")]:
        (tmp_path / name).write_bytes(content)
        page.locator("#avl-picture button[aria-label='Remove Image']").first.click()
        one.until("document.querySelector('#avl-gallery [data-id=size]').textContent === ''")
        page.locator("#avl-picture input[type=file]").first.set_input_files(str(tmp_path / name))
        one.until("(words) => document.querySelector('#avl-gallery [data-id=size]').textContent.includes(words)", arg=words)
    page.click(".avl-example >> nth=1")
    one.until("document.querySelector('#avl-gallery [data-id=size]').textContent === '576 image tokens.'")
    told = page.locator(".avl-predicted").first
    before = told.inner_text()
    # several pictures: their tokens together, in the prediction too; and more than the model takes is said before Run
    page.click("#avl-more button")
    files = [str(example.path) for example in gallery.examples(True)[:3]]
    page.locator("#avl-more input[type=file]").set_input_files(files[:1])
    one.until("document.querySelector('#avl-gallery [data-id=size]').textContent.startsWith('2 pictures, 1152 image tokens')")
    one.until("(before) => document.querySelector('.avl-predicted').textContent !== before", arg=before)
    mib = [float(text.split(" of ")[1].split()[0]) for text in (before, told.inner_text())]
    assert 1.7 < mib[1] / mib[0] < 2
    page.locator("#avl-more-pictures input[type=file]").set_input_files(files)
    one.until("document.querySelector('#avl-gallery [data-id=size]').textContent.includes('more than this model’s context of 2048')")
    one.until("!document.querySelector('[data-id=problem]').hidden")
    assert "this model takes 2048" in page.locator("[data-id=problem]").inner_text()
    page.click("#avl-run")
    one.wait("refused")
    assert "this model takes 2048" in one.text("alert")


def test_the_strip_shows_that_there_is_more(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open()
    page = one.page
    right, left = page.locator("[data-id=right]"), page.locator("[data-id=left]")
    assert (right.is_visible(), left.is_visible()) == (True, False)
    right.click()
    one.until("!document.querySelector('[data-id=left]').hidden")
    for _ in range(6):  # by script: the arrow may go while a smooth scroll ends, and Playwright would wait for it
        page.evaluate("document.querySelector('[data-id=right]').click()")
        page.wait_for_timeout(500)
    one.until("document.querySelector('[data-id=right]').hidden")
    assert (right.is_visible(), left.is_visible()) == (False, True)
