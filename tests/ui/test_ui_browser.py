"""The page in headless Chromium, over a real server: the made-up engine where pace or shape matters, the bundled model for the main job."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from test_ui_page import PAYLOADS

from avl.ui import gallery

pytestmark = pytest.mark.browser


def test_main_job(real: Any, tab: Any) -> None:
    """Run, see both answers grow, move the layer slider, stop: with the bundled model, as a visitor does it."""
    one = tab(real.url).open()
    page = one.page
    # the question box keeps its example; a batch and many tokens, so that there is time to look and to stop
    one.set("#avl-tokens", 256)
    one.set("#avl-batch", 16)
    # notes how long both answers are, over and over
    page.evaluate("""() => {
        window.seen = [];
        const look = () => {
            const run = window.avlPlayer.view.run;
            const answers = [...document.querySelectorAll('.avl-answer')];
            // not the recorded run that the page opens with
            if (run && run.arms.length && !window.avlPlayer.view.recorded) window.seen.push(answers.map((node) => node.childElementCount));
        };
        setInterval(look, 40);
    }""")
    page.click("#avl-run")
    one.until("[0, 1].every((arm) => new Set(window.seen.map((lengths) => lengths[arm])).size > 3)")
    for arm in range(2):
        lengths = [lengths[arm] for lengths in page.evaluate("window.seen")]
        assert lengths == sorted(lengths)
    for card in page.locator(".avl-arm").all():
        assert "ms" in card.inner_text()
        assert card.locator(".avl-answer").inner_text().strip()
        assert "% of full" in card.inner_text()
    pixels = "document.querySelector('[data-id=overlay]').toDataURL()"
    first = page.evaluate(pixels)
    one.set("#avl-layer", 0)
    one.until("window.avlPlayer.view.layer === 0")
    one.until(f"(first) => {pixels} !== first", arg=first)
    assert one.text("layerName").startswith("0 of 0–")
    page.click("#avl-stop")
    one.wait("done", 10_000)
    real.wait_idle()
    reasons = page.evaluate("window.avlPlayer.view.run.arms.map((arm) => arm.end && arm.end.reason)")
    assert all(reason in ("stopped", "eos", "length") for reason in reasons)
    assert "Stopped" in one.text("status") or "stopped" not in reasons
    # and again, to the end
    one.set("#avl-tokens", 12)
    page.click("#avl-run")
    one.until("window.avlPlayer.view.run.start && window.avlPlayer.view.run.start.limit === 12 && window.avlPlayer.view.run.finished")
    one.wait("done")
    assert "measured" in one.text("measured")
    assert "A-VL stored" in one.text("verdict")
    assert "no evidence about real LLaVA" in page.locator("#avl-header").inner_text()
    assert "batch 1" in page.locator("#avl-header").inner_text()
    assert "n/a (no NVIDIA GPU)" in one.text("deviceNote")
    assert one.errors == []
    assert one.outside == []


def test_predicted_is_what_the_engine_measures(real: Any, tab: Any) -> None:
    """The closed forms of the page against the real engine, for every policy: a mismatch is a bug."""
    one = tab(real.url).open()
    page = one.page
    one.set("#avl-tokens", 20)
    pairs = [("Full", "AVL"), ("H2O", "FastV"), ("StreamingLLM", "AVL")]
    for first, second in pairs:
        page.select_option("select[aria-label='Policy of arm 1']", first)
        page.select_option("select[aria-label='Policy of arm 2']", second)
        page.click("#avl-run")
        one.until(
            "(names) => { const run = window.avlPlayer.view.run; return run && run.start && window.avlPlayer.view.state === 'done' && "
            "names.every((name, i) => run.start.arms[i].policy.name === name); }",
            arg=[first, second],
        )
        off = page.evaluate(
            "window.avlPlayer.view.run.arms.map((arm) => { const p = window.avlPlayer.predicted(arm);"
            "return [arm.spec.label, p.storedBytes, arm.meanBytes(arm.storedBytes), p.readBytes, arm.meanBytes(arm.readBytes)]; })"
        )
        for label, stored, stored_measured, read, read_measured in off:
            assert stored == pytest.approx(stored_measured, rel=1e-6), label
            assert read == pytest.approx(read_measured, rel=1e-6), label


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
    assert "right answer" in one.text("measured")
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
    assert "right answer" not in one.text("measured"), "the answer of the first picture alone is not known to be right"
    page.click(".avl-example >> nth=2")
    page.locator("#avl-more-pictures").get_by_text("scene-9").wait_for(state="detached")
    assert one.errors == []


def test_stop_mid_run(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.05")
    one = tab(server.url).open()
    one.set("#avl-tokens", 256)
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 3")
    began = time.monotonic()
    one.page.click("#avl-stop")
    one.wait("done", 5000)
    assert time.monotonic() - began < 2
    server.wait_idle(1)
    assert "Stopped" in one.text("status")
    assert one.page.locator("#avl-run").is_enabled()
    assert one.page.locator("#avl-stop").is_disabled()
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.state === 'running' && window.avlPlayer.view.run.last > 0")
    one.page.click("#avl-stop")
    one.wait("done", 5000)


def test_a_closed_tab_ends_its_run(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.05")
    one = tab(server.url).open()
    one.set("#avl-tokens", 256)
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 1")
    assert server.health()["running"] == 1
    one.close()
    server.wait_idle(5)


def test_a_second_visitor_waits_in_line_and_sees_the_place(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.05")
    first, second, third = (tab(server.url).open() for _ in range(3))
    for one in (first, second, third):
        one.set("#avl-tokens", 256)
    first.page.click("#avl-run")
    first.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 1")
    second.page.click("#avl-run")
    second.wait("queued")
    assert second.text("status") == "Waiting in line: 1 run before yours."
    third.page.click("#avl-run")
    third.wait("queued")
    assert third.text("status") == "Waiting in line: 2 runs before yours."
    assert server.health() == {"state": "ready", "model": "fake model", "running": 1, "waiting": 2}
    third.page.click("#avl-stop")
    third.wait("done", 5000)
    assert "Stopped before it began" in third.text("status")
    first.page.click("#avl-stop")
    second.wait("running", 5000)
    assert first.state() == "done"
    second.close()
    server.wait_idle(5)


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


def test_a_failing_run_is_said_and_leaves_no_path(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0", "--fail-at", "3")
    one = tab(server.url).open()
    one.page.click("#avl-run")
    one.wait("done")
    assert "failed inside (RuntimeError)" in one.text("alert")
    assert "/a/path" not in one.page.inner_text("body")
    server.wait_idle(2)


def test_raw_calls_with_wrong_values_do_not_hang(serve: Any) -> None:
    """The endpoint behind the button answers raw HTTP too: out-of-range values come back as the same sentences."""
    import urllib.request

    server = serve("--pace", "0.01")

    def post(path: str, body: Any) -> Any:
        request = urllib.request.Request(server.url + "gradio_api/" + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request, timeout=10).read())

    config = json.loads(urllib.request.urlopen(server.url + "config", timeout=10).read())
    go = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "avl-run")
    run = next(one for one in config["dependencies"] if [go, "click"] in [list(target) for target in one["targets"]])
    session = "test-session"
    for chosen, word in [({"arms": [{"policy": "AVL", "S": 1e9}]}, "S must be"), (None, "settings are missing"), ("${x}", "settings")]:
        post("queue/join", {"data": [None, "q", chosen, None], "fn_index": run["id"], "session_hash": session})
        with urllib.request.urlopen(server.url + f"gradio_api/queue/data?session_hash={session}", timeout=20) as stream:
            said = ""
            for line in stream:
                said += line.decode()
                if "process_completed" in said or "close_stream" in said:
                    break
        assert word in said
    server.wait_idle(1)


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
    one.until("window.avlLink().includes('a.keep=49') || window.avlLink().includes('a.keep=48')")
    one.set("#avl-tokens", 20)
    page.click("#avl-run")
    one.wait("done")
    page.click("[data-id=tour]")
    for number in range(6):
        assert page.locator(".avl-tour small").inner_text() == f"{number + 1} of 6"
        page.locator(".avl-tour button").nth(1).click()
    assert page.locator(".avl-tour").is_hidden()
    page.locator("[data-id=memoryHead] .avl-help").click()
    assert "saw-tooth" in page.locator("#avl-player .avl-help-text:visible").inner_text()
    assert "share" in one.text("layersNote")
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
    assert "RECORDED" in other.page.locator("[data-id=badge]").inner_text()
    with other.page.expect_download() as waiting:
        other.page.click("[data-id=saveCsv]")
    assert Path(waiting.value.path()).read_text().startswith("arm,policy")
    assert other.errors == []
    assert other.outside == []
