"""What a finished run shows, in headless Chromium: grids, playhead, recorded attention, the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from avl.policies.lattice import lattice
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
    page.locator(".avl-segment").nth(1).click()
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
    assert cost < 5, "of pictures that differ: what stays is not drawn again"
    page.locator("[data-id=memoryTable] summary").click()
    page.locator("[data-id=memoryTable] tbody tr").first.wait_for()  # filled when it was opened
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
    one.see("continuity")
    assert one.text("runs") == "median of 3 runs"
    assert page.locator("[data-id=compared] option").count() == 4
    page.select_option("[data-id=compared]", "30")
    one.until("document.querySelector('[data-id=continuityTitle]').textContent.includes('top 30 %')")
    # the full-attention arm has no sets, but its attention was recorded
    page.locator(".avl-segment").first.click()
    one.until("document.querySelectorAll('[data-id=compared] option').length === 3")
    said = {"continuityNote": "Figure 5", "layersNote": "Figure 4", "sharesWords": "Figure 1", "sparsityWords": "22.88 %"}
    for name, words in said.items():
        one.see(re.sub("Note|Words", "", name))
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


def test_a_panel_that_fails_says_so_and_takes_no_other_along(tab: Any, tmp_path: Path) -> None:
    recorded = gallery.recording(True)
    assert recorded is not None
    html = report.page(recorded)
    marked = 'data-id="measured"'
    assert html.count(marked) == 1
    file = tmp_path / "report.html"
    file.write_text(html.replace(marked, ""), "utf-8")
    one = tab(file.as_uri())
    one.page.goto(file.as_uri())
    one.page.wait_for_selector(".avl-player[data-ready]")
    one.page.locator("[data-id=memoryTable] summary").click()
    # no condition in a string: a report forbids evaluating one
    one.page.locator("[data-id=memoryTable] tbody tr").nth(10).wait_for()
    assert "This panel failed (Result)" in one.page.locator("[data-panel=result]").inner_text()
    assert one.page.locator(".avl-alert:visible").count() == 1
    assert len(one.errors) == 1, "what is wrong is in the console, once"


def test_a_recording_without_predictions_shows_dashes(tab: Any, tmp_path: Path) -> None:
    recorded = gallery.recording(True)
    assert recorded is not None
    document = recorded.to_dict()
    for arm in document["events"][0]["arms"]:
        for field in ("title", "pruned_from", "predicted"):
            del arm[field]
    for known, name in ((True, "new"), (False, "old")):
        file = tmp_path / f"{name}.html"
        html = report.page(recorded) if known else report.offline(json.dumps(document), "")
        file.write_text(html, "utf-8")
        one = tab(file.as_uri())
        one.page.goto(file.as_uri())
        one.page.wait_for_selector(".avl-player[data-ready]")
        shown = one.page.locator("[data-id=measured] tr").nth(1).locator("td").all_inner_texts()
        assert len(shown) == 2
        assert all(text.endswith("(–)") != known for text in shown), shown
        assert one.errors == []


def test_a_crop_is_explained_and_zoomed(serve: Any, tab: Any, tmp_path: Path) -> None:
    """As LLaVA-1.5 does: before the run in words, after it in the picture, where a click still finds its patch."""
    wide = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((800, 100)).convert("RGB").save(wide)
    one = tab(serve("--pace", "0.002", "--kind", "cropped").url).open("?n=6")
    page = one.page
    page.locator("#avl-picture button[aria-label='Remove Image']").first.click()
    page.locator("#avl-picture input[type=file]").first.set_input_files(str(wide))
    size = page.locator("#avl-gallery [data-id=size]")
    one.until("document.querySelector('#avl-gallery [data-id=size]').textContent.includes('middle square')")
    assert "88 % is cut off" in size.inner_text()
    page.click("#avl-run")
    one.wait("done")
    assert "88 % of this picture is cut off" in one.text("crop")
    shape = "(() => { const { width, height } = document.querySelector('[data-id=overlay]'); return width / height; })()"
    assert page.evaluate(shape) == pytest.approx(1, abs=0.02)
    corners = """(() => {
        const canvas = document.querySelector('[data-id=overlay]');
        return [[2, 2], [canvas.clientWidth - 2, canvas.clientHeight - 2]].map(([x, y]) => window.avlPlayer.overlay.tokenAt(x, y));
    })()"""
    assert page.evaluate(corners) == [0, 575]
    page.click("[data-id=zoom]")
    one.until(f"{shape} > 7.6 && {shape} < 8.4")
    assert page.evaluate(corners) == [-1, -1]
    page.click("[data-id=zoom]")
    one.until(f"{shape} < 1.1")
    assert page.evaluate(corners) == [0, 575]
    assert one.errors == []


def test_tokens_without_a_place_are_said_to_have_none(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002", "--kind", "nowhere").url).open("?n=6")
    one.page.click("#avl-run")
    one.wait("done")
    assert "These tokens have no place in the picture" in one.text("legend")
    assert "core, read 173" in one.text("legend")
    for view in ("drift", "consensus", "sets"):
        one.page.select_option("[data-id=view]", view)
        one.until("document.querySelector('[data-id=legend]').textContent.includes('no place')")
    one.page.locator("[data-id=overlay]").click(position={"x": 30, "y": 30})
    assert one.text("patch") == ""
    assert one.page.locator(".avl-thumb canvas:visible").count() == 0
    assert one.page.locator(".avl-thumb").count() == 8
    assert one.errors == []


def test_tiles_stand_together_over_their_picture(serve: Any, tab: Any) -> None:
    """InternVL's and Idefics' tiles are one view, not one each; the whole picture, which comes last in the prompt, is the other."""
    one = tab(serve("--pace", "0.002", "--kind", "cut", "--side", "8").url).open("?n=6")
    page = one.page
    one.run()
    names = page.locator("[data-id=grid] option").all_inner_texts()
    assert names == ["2 × 3 tiles, 16 × 24 tokens", "whole picture, 8 × 8 tokens"]
    assert "Drawn: 384 of 448 image tokens. In both grids" in one.text("legend")
    assert not page.locator("[data-id=crop]").is_visible(), "nothing of the picture is cut off"
    at = """([x, y]) => { const canvas = document.querySelector('[data-id=overlay]');
        return window.avlPlayer.overlay.tokenAt(x * (canvas.clientWidth - 2) + 1, y * (canvas.clientHeight - 2) + 1); }"""
    assert [page.evaluate(at, corner) for corner in ([0, 0], [1, 0], [0, 1], [1, 1])] == [0, 2 * 64 + 7, 3 * 64 + 56, 5 * 64 + 63]
    there_and_back = """() => { const { lattices } = window.avlPlayer.view;
        return lattices.every((one) => one.tokens.every((token) => one.token(...one.cell(token)) === token)); }"""
    assert page.evaluate(there_and_back)
    assert page.evaluate("window.avlPlayer.view.lattices[0].cell(6 * 64)") is None, "a token of the whole picture is in no tile"
    page.locator("[data-id=overlay]").click(position={"x": 3, "y": 3})
    one.until("document.querySelector('[data-id=patch]').textContent.startsWith('Patch row 1, column 1 (token 0)')")
    page.select_option("[data-id=grid]", "1")
    one.until("document.querySelector('[data-id=legend]').textContent.includes('Drawn: 64 of 448')")
    assert page.evaluate(at, [1, 1]) == 447
    assert one.errors == []


def test_counts_are_those_of_the_grid_that_is_drawn(serve: Any, tab: Any) -> None:
    """LLaVA-1.6 has two grids: the finer one comes first, and the legend's numbers add up to it."""
    one = tab(serve("--pace", "0.002", "--kind", "tiles", "--layers", "40").url).open("?n=6")
    page = one.page
    page.click("#avl-run")
    one.wait("done")
    n_image = page.evaluate("window.avlPlayer.view.run.start.n_image")
    assert page.evaluate("window.avlPlayer.view.grid") == 1
    assert page.locator("[data-id=grid]").input_value() == "1"
    for grid, cells in ((1, 36 * 48), (0, 576)):
        page.select_option("[data-id=grid]", str(grid))
        one.until("(words) => document.querySelector('[data-id=legend]').textContent.includes(words)", arg=f"Drawn: {cells} of {n_image}")
        own, _, both = one.text("legend").replace("\n", " ").partition("Drawn:")
        assert sum(int(number) for number in re.findall(r"(?:read|kept|evicted|prefill) (\d+)", own)) == cells
        assert sum(int(number) for number in re.findall(r"(?:core|secondary|minor|dropped) (\d+)", both)) == n_image
    # forty layers are one stop for the keyboard
    assert page.locator(".avl-thumb[tabindex='0']").count() == 1
    page.locator(".avl-thumb[tabindex='0']").focus()
    before = page.evaluate("window.avlPlayer.view.layer")
    page.keyboard.press("ArrowRight")
    one.until("(layer) => document.activeElement.textContent === String(layer)", arg=before + 1)
    page.keyboard.press("End")
    one.until("document.activeElement.textContent === '39' && window.avlPlayer.view.layer === 39")


def test_one_line_is_one_quantity(serve: Any, tab: Any) -> None:
    """KV read: number, bar and share are the mean over the steps, the last step stands below; tokens are counted alike everywhere."""
    one = tab(serve("--pace", "0.002").url).open("?n=22")  # the last step, t = 21, is an update
    page = one.page
    page.click("#avl-run")
    one.wait("done")
    found = page.evaluate("""() => { const run = window.avlPlayer.view.run, arm = run.arms[1];
        const card = document.querySelectorAll('.avl-arm')[1], bar = card.querySelectorAll('.avl-bar')[1];
        return { mean: arm.meanBytes(arm.readBytes), full: run.meanFullBytes(arm.last), last: arm.readBytes[arm.last],
            stored: arm.storedBytes[arm.last],
            text: bar.querySelector('b').textContent, share: bar.querySelector('small').textContent,
            fill: parseFloat(bar.querySelector('i').style.backgroundSize),
            below: card.querySelector('.avl-impl').textContent }; }""")
    unit = 2**20
    assert found["text"] == f"{found['mean'] / unit:.2f} MiB"
    assert found["share"] == f"{100 * found['mean'] / found['full']:.0f} % of full"
    assert found["fill"] == pytest.approx(100 * found["mean"] / found["full"], abs=0.1)
    assert found["below"] == f"KV read: mean; this step {found['last'] / unit:.2f} MiB (update)"
    assert found["last"] > found["stored"] > found["mean"]
    page.locator("[data-id=memoryHead] .avl-help").click()
    assert "its read can pass stored" in page.locator("#avl-player .avl-help-text:visible").inner_text()
    assert [card.inner_text() for card in page.locator(".avl-arm-state").all()] == ["hit the token limit, 22 tokens"] * 2
    assert one.text("where") == "token 22 of 22"
    assert re.search(r"Tokens generated\s+22, hit the token limit\s+22, hit", one.text("measured"))


def test_tokens_of_a_finished_answer_are_counted_alike(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.001", "--text", "a", "--text", "b").url).open("?a=AVL&n=60")  # "eos" after 6 tokens
    one.page.click("#avl-run")
    one.wait("done")
    assert [card.inner_text() for card in one.page.locator(".avl-arm-state").all()] == ["finished, 6 tokens"] * 2
    assert "Identical answers, 6 tokens each" in one.text("diverge")
    assert one.text("where") == "token 6 of 6"
    assert re.search(r"Tokens generated\s+6, finished\s+6, finished", one.text("measured"))


def test_a_stopped_run_is_not_judged(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.4").url).open("?n=200")
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 1")
    one.page.click("#avl-stop")
    one.wait("done")
    assert "Too few tokens to compare times" in one.text("verdict")
    assert "faster" not in one.text("verdict") + one.text("lead")


def test_tokens_held_by_spread_have_a_hatch_of_their_own(serve: Any, tab: Any) -> None:
    """Exactly the lattice of the layer on screen, in picture, legend and words; none where scores alone choose."""
    one = tab(serve("--pace", "0.001").url).open("?n=8&spread=33&P=off")
    page = one.page
    one.run()
    one.until("document.querySelector('[data-id=legend]').textContent.includes('held by spread 191')")  # ceil(33 % of 576)
    drawn = page.evaluate(
        """() => [0, 5].map((layer) => { const bits = window.avlPlayer.view.run.spread(1, layer);
        return [...bits.keys()].filter((token) => bits[token]); })"""
    )
    assert drawn == [sorted(lattice(576, 191, layer)) for layer in (0, 5)]
    assert page.evaluate("window.avlPlayer.view.run.spread(0, 0)") is None, "full attention has none"
    layer, token = page.evaluate("window.avlPlayer.view.layer"), drawn[0][0]
    page.evaluate("(patch) => window.avlPlayer.store.set({ patch })", token)
    one.until("document.querySelector('[data-id=patch]').textContent.includes('held by spread in 0')")
    # the hatch is painted where the tokens are: the canvas differs there from the same picture without it
    painted = """([layer, token]) => { const { overlay } = window.avlPlayer, [x, y, w, h] = overlay.rectangle(token);
        const pixels = overlay.context.getImageData(x, y, w, h).data; let blue = 0;
        for (let i = 0; i < pixels.length; i += 4) blue += pixels[i + 2] > 200 && pixels[i] < 120;
        return blue / (w * h); }"""
    held, free = lattice(576, 191, layer)[0], lattice(576, 576, layer)[-1]
    assert page.evaluate(painted, [layer, held]) > 0.2 > page.evaluate(painted, [layer, free])
    one.set("#avl-arm1-S", 20)
    assert page.evaluate("document.querySelector('#avl-arm1-spread').value") == "20", "spread is a part of what is stored"
    page.select_option("#avl-controls .avl-preset", label="LLaVA-1.5 7B: S45 C30 K3 P90 T50")
    assert "spread=off" in page.evaluate("window.avlLink()"), "the paper's settings run as in the paper"
    one.run()
    one.until("!document.querySelector('[data-id=legend]').textContent.includes('spread')")
    page.select_option("#avl-controls .avl-preset", label="LLaVA-1.5 7B: S45 C30 K3 P90 T50 spread 33")
    assert "spread=33" in page.evaluate("window.avlLink()")
    assert one.errors == []


def test_labels_of_the_analysis_follow_the_run(serve: Any, tab: Any) -> None:
    """The menu's words come from the run on screen; what chance would give comes from the sets that are drawn."""
    one = tab(serve("--pace", "0.001").url).open("?n=12&C=30")
    page = one.page

    def run() -> None:
        one.run()
        one.see("layers")
        one.until("document.querySelector('[data-id=layersNote]').textContent.includes('random sets')")

    run()
    option = page.locator("[data-id=compared] option").first
    assert "A-VL reads (30 %" in option.inner_text()
    assert "would share about 30 %" in one.text("layersNote")
    one.set("#avl-arm1-C", 10)
    run()
    assert "A-VL reads (10 %" in option.inner_text()
    assert "would share about 10 %" in one.text("layersNote")
    page.select_option("select[aria-label='Policy of arm 2']", "H2O")
    run()
    assert "H2O reads" in option.inner_text()
    share = page.evaluate("""() => { const run = window.avlPlayer.view.run, n = run.start.n_image, t = run.arms[1].last;
        const sizes = Array.from({ length: run.start.layers }, (_, layer) => run.counts(1, t, layer)[2] / n);
        return 100 * sizes.reduce((a, b) => a + b, 0) / sizes.length; }""")
    assert f"would share about {share:.0f} %" in one.text("layersNote")
