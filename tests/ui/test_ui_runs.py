"""Runs in headless Chromium: the main job, stopping, waiting in line, failures, calls with wrong values."""

from __future__ import annotations

import json
import re
import statistics
from typing import Any

import pytest
from fake import about
from slack import slack

from avl.policies import POLICIES
from avl.ui import settings as controls

pytestmark = pytest.mark.browser


def test_a_visitor_runs_looks_stops_and_runs_again(real: Any, tab: Any) -> None:
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
            const lengths = answers.map((node) => node.childElementCount);
            // not the recorded run that the page opens with, nor what is left of it until the next frame
            const drawn = run && run.arms.length && lengths.every((length, arm) => length <= run.arms[arm].tokens.length);
            if (drawn && !window.avlPlayer.view.recorded) window.seen.push(lengths);
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
    one.until("document.querySelector('#avl-player [data-id=layerName]').textContent.startsWith('0 of 0–')")
    page.evaluate("document.getElementById('avl-stop').click()")  # nothing happens where the run has ended by itself
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
    assert "do not transfer to full-size LLaVA" in page.locator("#avl-header").inner_text()
    assert "batch size 1" in page.locator("#avl-header").inner_text()
    assert page.locator("#avl-header").inner_text().count("No NVIDIA GPU") == 1
    assert page.locator("[data-id=devicePart]").is_hidden(), "without a device there is no memory of one to draw"
    assert one.errors == []
    assert one.outside == []


def test_predicted_is_what_the_engine_measures(real: Any, tab: Any) -> None:
    """The cost model against the real engine, for every registered policy and for both readings of Table 3's update."""
    names = [*POLICIES, *(["Full"] if len(POLICIES) % 2 else [])]
    links = [f"?a={first}&b={second}&n=20" for first, second in zip(names[::2], names[1::2], strict=True)]
    links.append("?a=SnapKV&a.keep=35&a.pool=5&b=AVL&S=45&C=30&K=3&update=after&n=20")
    labels = []
    one = tab(real.url)
    for link in links:
        page = one.open(link).page
        page.click("#avl-run")
        one.until("window.avlPlayer.view.state === 'done' && !window.avlPlayer.view.recorded")
        found = page.evaluate(
            "window.avlPlayer.view.run.arms.map((arm) => { const p = window.avlPlayer.predicted(arm);"
            "return [arm.spec.label, p.storedBytes, arm.meanBytes(arm.storedBytes), p.readBytes, arm.meanBytes(arm.readBytes)]; })"
        )
        for label, stored, stored_measured, read, read_measured in found:
            labels.append(label)
            assert stored == pytest.approx(stored_measured, rel=1e-9), label
            assert read == pytest.approx(read_measured, rel=1e-9), label
        shown = page.locator("[data-id=measured] tr").nth(1).locator("td").all_inner_texts()
        assert all(re.fullmatch(r"([\d.]+ %) \(\1\)", text) for text in shown), shown
    assert {label.split(" S=")[0].split(" keep=")[0].split(" layer=")[0] for label in labels} == {cls.title for cls in POLICIES.values()}
    assert any(label.endswith("update=after") for label in labels)
    assert one.errors == []


def test_settings_ask_for_predictions_without_a_flood(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.01")
    one = tab(server.url)
    asked: list[str] = []
    one.page.on("request", lambda request: asked.append(request.post_data or "") if "component_server" in request.url else None)
    page = one.open("?a=PyramidKV&a.pool=5&b=AVL&update=after").page
    told = page.locator(".avl-predicted")
    one.until("[...document.querySelectorAll('.avl-predicted')].every((node) => node.textContent.includes('%'))")
    assert page.locator("#avl-arm0-pool").get_attribute("step") == "2"
    assert "update = after" in page.locator(".avl-choice-b .avl-params").inner_text().splitlines()
    before = told.first.inner_text()
    asked.clear()
    page.evaluate("""async () => {
        const slider = document.querySelector('#avl-arm0-keep');
        for (let value = 20; value <= 80; value++) {
            slider.value = value;
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            await new Promise((resolve) => setTimeout(resolve, 5));
        }
    }""")
    one.until("(before) => document.querySelector('.avl-predicted').textContent !== before", arg=before)
    facts = about(layers=8, n_image=576)
    arms = [{"policy": "PyramidKV", "keep": 80, "pool": 5}, {"policy": "AVL", "update": "after"}]
    expected = controls.predict({**controls.settings(facts), "arms": arms}, facts)
    stored, read = f"stores {100 * expected['arms'][0]['stored']:.0f} %", f"reads {100 * expected['arms'][1]['read']:.0f} %"
    one.until("(words) => document.querySelector('.avl-predicted').textContent.includes(words)", arg=stored)
    assert read in told.nth(1).inner_text()
    assert len(asked) < 15, "sixty positions of a slider"
    # an answer that comes late, after the settings have moved on, is never shown
    page.evaluate("""() => {
        const real = window.fetch, node = document.querySelector('.avl-predicted');
        let first = true;
        window.fetch = async (...asked) => {
            const answer = await real(...asked);
            if (first && String(asked[0]).includes('component_server')) {
                first = false;
                await new Promise((resolve) => setTimeout(resolve, 800));
            }
            return answer;
        };
        window.told = [];
        new MutationObserver(() => window.told.push(node.textContent)).observe(node, { childList: true, subtree: true });
    }""")
    one.set("#avl-arm0-keep", 20)
    page.wait_for_timeout(300)
    one.set("#avl-arm0-keep", 60)
    wanted = [controls.predict({**controls.settings(facts), "arms": [{"policy": "PyramidKV", "keep": keep}]}, facts) for keep in (20, 60)]
    late, latest = (f"stores {100 * one['arms'][0]['stored']:.0f} %" for one in wanted)
    one.until("(words) => window.told.some((text) => text.includes(words))", arg=latest)
    assert not any(late in text for text in page.evaluate("window.told"))
    page.click(".avl-more summary")
    page.fill("#avl-batch", "999")
    page.wait_for_selector("[data-id=problem]:not([hidden])")
    assert page.locator("[data-id=problem]").inner_text() == "Batch must be from 1 to 256, not 999."
    assert told.first.inner_text() == "Predicted: –"
    page.fill("#avl-batch", "2")
    page.wait_for_selector("[data-id=problem]", state="hidden")
    assert "%" in told.first.inner_text()
    assert one.errors == []


def test_a_prediction_takes_less_than_a_tenth_of_a_second(serve: Any, tab: Any) -> None:
    """With the most that is asked of it: two PyramidKV, whose layers all differ, in a 13B model with LLaVA-1.6's tiles, 256 tokens."""
    one = tab(serve("--layers", "40", "--side", "54").url).open("?a=PyramidKV&b=PyramidKV&b.keep=30&n=256")
    one.until("[...document.querySelectorAll('.avl-predicted')].every((node) => node.textContent.includes('%'))")
    calls = one.page.evaluate("""async () => {
        const slider = document.querySelector('#avl-arm0-keep');
        const calls = () => performance.getEntriesByType('resource').filter((entry) => entry.name.includes('component_server'));
        performance.clearResourceTimings();
        for (let value = 30; value < 50; value++) {
            slider.value = value;
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            while (calls().length < value - 29) await new Promise((resolve) => setTimeout(resolve, 20));
        }
        return calls().map((call) => call.duration);
    }""")
    assert len(calls) == 20
    print(f"a prediction takes {statistics.median(calls):.0f} ms, at most {max(calls):.0f} ms")
    assert statistics.median(calls) < 100, calls


def test_stop_mid_run(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.4")  # half a minute, if nobody stops it
    one = tab(server.url).open()
    one.until("window.Plotly")  # evaluating it takes a second in which the page shows nothing
    one.set("#avl-tokens", 256)
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 0")
    one.page.evaluate("""() => {
        const player = document.querySelector('#avl-player .avl-player');
        document.querySelector('#avl-stop').addEventListener('click', () => { window.stopClicked = performance.now(); }, { capture: true });
        const look = () => { if (player.dataset.state === 'done') window.stopDone ??= performance.now(); };
        new MutationObserver(look).observe(player, { attributes: true });
    }""")
    one.page.click("#avl-stop")
    one.until("window.stopDone")
    taken = one.page.evaluate("window.stopDone - window.stopClicked")
    assert taken < 2000 * slack(), f"{taken:.0f} ms from the click"
    server.wait_idle(slack())
    assert "Stopped" in one.text("status")
    assert one.page.locator("#avl-run").is_enabled()
    assert one.page.locator("#avl-stop").is_disabled()
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.state === 'running' && window.avlPlayer.view.run.last > 0")
    one.page.click("#avl-stop")
    one.wait("done")
    assert "Stopped" in one.text("status")


def test_a_closed_tab_ends_its_run(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.4")
    one = tab(server.url).open()
    one.set("#avl-tokens", 256)
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 0")
    assert server.health()["running"] == 1
    one.close()
    server.wait_idle(5)


def test_a_second_visitor_waits_in_line_and_sees_the_place(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.4")
    first, second, third = (tab(server.url).open() for _ in range(3))
    for one in (first, second, third):
        one.set("#avl-tokens", 256)
    first.page.click("#avl-run")
    first.until("window.avlPlayer.view.run && window.avlPlayer.view.run.last > 1")
    second.page.click("#avl-run")
    second.wait("queued")
    assert second.text("status") == "In queue: 1 run ahead of yours."
    third.page.click("#avl-run")
    third.wait("queued")
    assert third.text("status") == "In queue: 2 runs ahead of yours."
    assert server.health() == {"state": "ready", "model": "fake model", "running": 1, "waiting": 2}
    third.page.click("#avl-stop")
    third.wait("done", 5000)
    assert "Stopped before it began" in third.text("status")
    first.page.click("#avl-stop")
    second.wait("running", 5000)
    assert first.state() == "done"
    second.close()
    server.wait_idle(5)


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
        post("queue/join", {"data": [None, None, "q", chosen, None], "fn_index": run["id"], "session_hash": session})
        with urllib.request.urlopen(server.url + f"gradio_api/queue/data?session_hash={session}", timeout=20) as stream:
            said = ""
            for line in stream:
                said += line.decode()
                if "process_completed" in said or "close_stream" in said:
                    break
        assert word in said
    server.wait_idle(1)
