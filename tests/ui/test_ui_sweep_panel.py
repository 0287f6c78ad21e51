"""Sweeps and predictions on the page, in a browser: plan, run, stop, table, grid, settings taken over, another GPU."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

PANEL = "#avl-sweep"
DONE = f"{PANEL} [data-id=sweepDownloads]:not([hidden])"


def opened(serve: Any, tab: Any, query: str = "?n=16", pace: str = "0.002", **options: Any) -> Any:
    one = tab(serve("--pace", pace, "--prefill", "0.005").url, **options).open(query)
    one.page.wait_for_selector(f"{PANEL} .avl-sweep[data-ready]")
    one.page.click(f"{PANEL} [data-id=sweepFold] > summary")
    one.until(f"!document.querySelector('{PANEL} [data-id=sweepGo]').disabled")
    return one


def text(one: Any, part: str) -> str:
    return one.page.locator(f"{PANEL} [data-id={part}]").inner_text()


def planned(one: Any, words: str) -> None:
    one.until(f"(words) => document.querySelector('{PANEL} [data-id=sweepGo]').textContent.includes(words)", arg=words)


def swept(one: Any) -> None:
    one.page.click(f"{PANEL} [data-id=sweepGo]")
    one.until(f"document.querySelector('{PANEL} [data-id=sweepState]').textContent.startsWith('Finished')")
    one.page.wait_for_selector(DONE)


def lines(one: Any) -> list[list[str]]:
    rows = f"[...document.querySelectorAll('{PANEL} [data-id=sweepRows] tbody tr')]"
    return one.page.evaluate(f"{rows}.map((row) => [...row.cells].map((cell) => cell.innerText.trim()))")


def test_a_sweep_from_its_plan_to_settings_that_are_taken_over(serve: Any, tab: Any) -> None:
    one = opened(serve, tab, "?n=24")
    page = one.page
    for name, value in (("from", "20"), ("to", "60"), ("step", "10")):
        page.fill(f"{PANEL} [data-id=sweep-{name}1]", value)
    planned(one, "5 points")
    assert "5 points. Predicted: stores 25 % to 61 %" in text(one, "sweepPlan")
    assert "C=30, K=3" in text(one, "sweepBase"), "the rest is that of the settings"
    one.until(f"document.querySelectorAll('{PANEL} [data-id=sweepPlanChart] .scatterlayer .trace').length === 2")
    swept(one)
    found = lines(one)
    assert [line[0] for line in found] == ["Full attention", "20", "30", "40", "50", "60"]
    assert ["✓" in line[1] for line in found[1:]] == [False, False, True, True, True]
    assert found[1][1].startswith("✗ differs at token 10")
    assert "C is lowered from 30 to 20 to fit." in found[1][1]
    assert all("MiB" in line[2] and "ms" in line[4] and "ms" in line[5] for line in found)
    assert text(one, "sweepVerdict").startswith("S=40 is the smallest value that keeps the whole answer")
    assert page.locator(f"{PANEL} .avl-sweep-best th").inner_text() == "40"
    # what a model says is text
    page.locator(f"{PANEL} tbody summary").nth(1).click()
    assert "<b>blue</b>" in page.locator(f"{PANEL} tbody details[open] p").inner_text()
    assert page.locator(f"{PANEL} tbody td b b").count() == 0
    # full attention, stored, read, and a mark where the answer is the same
    assert page.evaluate(f"document.querySelector('{PANEL} [data-id=sweepMemory]').data.map((line) => line.x.length)") == [2, 5, 5, 3]
    assert page.evaluate(f"document.querySelector('{PANEL} [data-id=sweepTime]').data[1].y.every((ms) => ms > 0)")
    page.locator(f"{PANEL} tr[data-point='3'] button").click()
    assert "Policy 2 is now A-VL S=50" in text(one, "sweepApplied")
    assert page.evaluate("window.avlInputs().settings.arms[1].S") == 50
    assert page.locator("#avl-arm1-S").input_value() == "50"
    for button, read in (("sweepCsv", lambda told: [line["S"] for line in csv.DictReader(io.StringIO(told))]), ("sweepJson", json.loads)):
        with page.expect_download() as download:
            page.click(f"{PANEL} [data-id={button}]")
        got = read(Path(download.value.path()).read_text("utf-8"))
        assert got == ["", "20", "30", "40", "50", "60"] if button == "sweepCsv" else len(got["rows"]) == 6
    # a run is as before: the sweep left it alone, and its panel stands
    one.run()
    assert len(lines(one)) == 6
    assert one.errors == []


def test_a_sweep_comes_back_after_a_reload(serve: Any, tab: Any) -> None:
    one = opened(serve, tab)
    page = one.page
    for name, value in (("from", "20"), ("to", "40"), ("step", "20")):
        page.fill(f"{PANEL} [data-id=sweep-{name}1]", value)
    planned(one, "2 points")
    swept(one)
    before = lines(one), text(one, "sweepVerdict")
    page.reload()
    page.wait_for_selector(DONE)
    assert (lines(one), text(one, "sweepVerdict")) == before
    assert text(one, "sweepState") == "Finished: 2 points."
    with page.expect_download():
        page.click(f"{PANEL} [data-id=sweepCsv]")
    # one that the server gave up leaves no trace
    page.evaluate("sessionStorage.setItem('avl-sweep', 'gone')")
    page.reload()
    one.until("sessionStorage.getItem('avl-sweep') === ''")
    assert page.locator(f"{PANEL} [data-id=sweepFold]").get_attribute("open") is None
    assert one.errors == []


def test_off_is_a_value_too(serve: Any, tab: Any) -> None:
    one = opened(serve, tab)
    page = one.page
    page.select_option(f"{PANEL} [data-id=sweepName1]", "C")
    for name, value in (("from", "10"), ("to", "20"), ("step", "10")):
        page.fill(f"{PANEL} [data-id=sweep-{name}1]", value)
    planned(one, "2 points")
    page.check(f"{PANEL} [data-id=sweepOff1]")
    planned(one, "3 points")
    swept(one)
    assert [line[0] for line in lines(one)] == ["Full attention", "10", "20", "off"]
    # off has no place on the axis
    assert page.evaluate(f"document.querySelector('{PANEL} [data-id=sweepMemory]').data.map((line) => line.x.length)")[1:3] == [2, 2]
    page.select_option(f"{PANEL} [data-id=sweepPolicy]", "H2O")
    one.until(f"document.querySelector('{PANEL} [data-id=sweepOffBox1]').hidden")  # its budget is always on
    assert one.errors == []


def test_a_grid_of_two_parameters(serve: Any, tab: Any) -> None:
    one = opened(serve, tab)
    page = one.page
    page.select_option(f"{PANEL} [data-id=sweepName2]", "C")
    for number, values in ((1, ("20", "60", "20")), (2, ("10", "30", "10"))):
        for name, value in zip(("from", "to", "step"), values, strict=True):
            page.fill(f"{PANEL} [data-id=sweep-{name}{number}]", value)
    planned(one, "8 points")
    assert page.locator(f"{PANEL} [data-id=sweepPlanHeat]").is_visible()
    page.click(f"{PANEL} [data-id=sweepSkippedCount]")
    assert text(one, "sweepSkippedCount") == "1 combination cannot run"
    assert "S=20, C=30:" in text(one, "sweepSkippedList")
    swept(one)
    assert len(lines(one)) == 9
    assert "points keep the whole answer" in text(one, "sweepVerdict")
    assert page.locator(f"{PANEL} [data-id=sweepCurves]").is_hidden()
    page.click(f"{PANEL} [data-id=sweepHeatTable] > summary")
    one.until(f"document.querySelectorAll('{PANEL} [data-id=sweepHeatTable] tbody tr').length === 3")
    page.select_option(f"{PANEL} [data-id=sweepShade]", "same")
    cells = page.evaluate(
        f"[...document.querySelectorAll('{PANEL} [data-id=sweepHeatTable] tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert [row[0] for row in cells] == ["20", "40", "60"]
    assert cells[0][3] == "–", "it was not run"
    assert cells[1][1:] == ["100 %"] * 3
    assert cells[0][1] == "56 %", "9 of 16 tokens"
    assert one.errors == []


def test_what_is_wrong_is_said_in_place_and_nothing_runs(serve: Any, tab: Any) -> None:
    one = opened(serve, tab)
    page = one.page
    page.fill(f"{PANEL} [data-id=sweep-step1]", "0")
    one.until(f"document.querySelector('{PANEL} [data-id=sweepPlan]').textContent.includes('step above 0')")
    assert page.locator(f"{PANEL} [data-id=sweepGo]").is_disabled()
    page.fill(f"{PANEL} [data-id=sweep-step1]", "30")
    planned(one, "4 points")
    page.fill(f"{PANEL} [data-id=sweepRepeats]", "99")
    page.click(f"{PANEL} [data-id=sweepGo]")
    page.wait_for_selector(f"{PANEL} [data-id=sweepProblem]:not([hidden])")
    assert text(one, "sweepProblem").startswith("Repeats must be from 1 to 20")
    assert page.locator(f"{PANEL} [data-id=sweepBusy]").is_hidden()
    page.fill(f"{PANEL} [data-id=sweepRepeats]", "2")
    one.until(f"!document.querySelector('{PANEL} [data-id=sweepGo]').disabled")
    swept(one)
    assert page.locator(f"{PANEL} [data-id=sweepProblem]").is_hidden()
    assert "2 runs of each point" in text(one, "sweepOf")
    assert one.state() != "refused", "the run on screen has nothing to do with it"


def test_stop_ends_a_sweep_and_run_waits_for_it(serve: Any, tab: Any) -> None:
    one = opened(serve, tab, "?n=60", "0.2")  # full attention takes 12 s: time to press Stop
    page = one.page
    page.click(f"{PANEL} [data-id=sweepGo]")
    one.until(f"document.querySelector('{PANEL} [data-id=sweepState]').textContent.startsWith('Full attention')")
    assert page.locator("#avl-run").is_disabled()
    assert page.locator(f"{PANEL} [data-id=sweepGo]").is_disabled()
    page.click("#avl-stop")
    one.until(f"document.querySelector('{PANEL} [data-id=sweepState]').textContent === 'Stopped: 0 of 10 points measured.'")
    assert page.locator("#avl-run").is_enabled()
    # and the other way round: a sweep that waits behind a run could not be stopped alone
    page.click("#avl-run")
    one.until("window.avlPlayer.view.state === 'running'")
    one.until(f"document.querySelector('{PANEL} [data-id=sweepGo]').disabled")
    page.click("#avl-stop")
    one.wait("done")
    one.until(f"!document.querySelector('{PANEL} [data-id=sweepGo]').disabled")
    assert one.errors == []


def test_another_gpu_is_predicted_while_fields_are_edited(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002", "--prefill", "0.005").url).open()
    page = one.page
    page.click(f"{PANEL} [data-id=whatIfFold] > summary")
    page.wait_for_selector(f"{PANEL} [data-id=whatIfFound]:not([hidden])")
    assert text(one, "whatIfLargest").startswith("Largest batch on H100 80 GB:")
    assert page.locator(f"{PANEL} [data-id=whatIfPolicy] option:checked").inner_text().startswith("A-VL S=45")
    page.fill(f"{PANEL} [data-id=whatIfBatch]", "4, 400")
    page.select_option(f"{PANEL} [data-id=whatIfGpu]", "t4")
    page.select_option(f"{PANEL} [data-id=whatIfModel]", "llava-1.5-7b")
    one.until(f"document.querySelector('{PANEL} [data-id=whatIfLargest]').textContent.includes('T4')")
    rows = page.locator(f"{PANEL} [data-id=whatIfRows] tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["4", "400"]
    assert rows[1].count("does not fit") == 2
    one.until(f"document.querySelector('{PANEL} [data-id=whatIfMs]').data.length === 4")
    assert "floor" in text(one, "whatIfNotes"), "it says what it is"
    page.fill(f"{PANEL} [data-id=whatIfBatch]", "4, many")
    one.until(f"document.querySelector('{PANEL} [data-id=whatIfProblem]').textContent.includes('batch')")
    page.fill(f"{PANEL} [data-id=whatIfBatch]", "2")
    one.until(f"document.querySelector('{PANEL} [data-id=whatIfProblem]').textContent === ''")
    assert one.errors == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_panels_are_accessible_and_fit(serve: Any, tab: Any, width: int, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    one = opened(serve, tab, "?n=12", width=width, color_scheme=scheme)
    page = one.page
    swept(one)
    page.select_option(f"{PANEL} [data-id=sweepName2]", "K")
    page.click(f"{PANEL} [data-id=whatIfFold] > summary")
    page.wait_for_selector(f"{PANEL} [data-id=whatIfFound]:not([hidden])")
    for table in page.locator(f"{PANEL} .avl-table > summary").all():
        if table.is_visible():
            table.click()
    found = Axe().run(page, context=PANEL).response["violations"]
    assert [f"{fault['id']}: {node['target']} {node['failureSummary'][:300]}" for fault in found for node in fault["nodes"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    out = page.evaluate(
        """(width) => [...document.querySelectorAll('#avl-sweep .avl *')].filter((node) => {
            const box = node.getBoundingClientRect();
            return box.width && box.right > width + 1 && !node.closest('.avl-scroll, .avl-table, svg, .avl-sr');
        }).map((node) => node.tagName + ' ' + node.className).slice(0, 5)""",
        width,
    )
    assert out == []
