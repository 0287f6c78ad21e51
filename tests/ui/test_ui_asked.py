"""What an answer belongs to: runs that never begin, inputs that change, links, reloads; in headless Chromium."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from avl._paths import ASSETS
from avl.ui import gallery

pytestmark = pytest.mark.browser

SCENE = str(ASSETS / "traces" / "scene.json")
SENTENCE = "this request cannot be run: choose another"


def shown(one: Any) -> dict[str, Any]:
    """What a visitor sees of a run, and what it can still do."""
    return one.page.evaluate("""() => ({
        answers: [...document.querySelectorAll('.avl-answer')].map((node) => node.textContent),
        tokens: window.avlPlayer.view.run.arms.map((arm) => arm.tokens.length),
        result: !document.querySelector('[data-panel=result]').hidden,
        verdict: document.querySelector('[data-id=verdict]').textContent,
        pixels: document.querySelector('[data-id=overlay]').toDataURL(),
        asked: document.querySelector('[data-id=asked]').textContent,
    })""")


def plays(one: Any) -> None:
    one.page.evaluate("window.avlPlayer.store.set({ speed: 0.05 })")  # not over before it is seen
    one.page.click("[data-id=play]")
    one.until("window.avlPlayer.view.playing")
    one.page.click("[data-id=play]")
    one.page.locator(".avl-answer").first.focus()
    one.page.keyboard.press("End")


def open_recorded(serve: Any, tab: Any, *options: str) -> Any:
    one = tab(serve("--recorded", SCENE, *options).url).open()
    one.wait("recorded")
    one.page.wait_for_timeout(300)  # its picture
    return one


@pytest.mark.parametrize("live", [False, True], ids=["recorded", "live"])
def test_a_run_that_fails_before_it_starts_leaves_the_last_one_whole(serve: Any, tab: Any, live: bool) -> None:
    one = open_recorded(serve, tab, *(() if live else ("--refuse", SENTENCE)))
    if live:
        one.set("#avl-tokens", 12)
        one.page.click("#avl-run")
        one.wait("done")
        one.page.wait_for_timeout(300)
    before = shown(one)
    if live:
        one.page.fill("#avl-question textarea", " ")  # refused by the limits
    one.page.click("#avl-run")
    one.wait("refused")
    assert ("This request cannot be run" in one.text("alert")) != live
    assert one.text("badge") == ("DONE" if live else "RECORDED")
    assert "nothing was run" in one.text("status")
    assert f"These are the {'previous' if live else 'recorded'} answers: nothing new was run." == one.text("stale")
    assert shown(one) == before
    assert before["result"]
    plays(one)
    assert one.page.locator("#avl-run").is_enabled()
    with one.page.expect_download():
        one.page.click("[data-id=saveJson]")
    assert one.errors == []


def test_a_run_that_is_stopped_in_the_queue_leaves_the_last_one_whole(serve: Any, tab: Any) -> None:
    other, one = (open_recorded(serve, tab, "--pace", "0.4") for _ in range(2))
    before = shown(one)
    other.set("#avl-tokens", 256)
    other.page.click("#avl-run")
    other.until("window.avlPlayer.view.state === 'running' && !window.avlPlayer.view.recorded")
    one.page.click("#avl-run")
    one.wait("queued")
    assert one.text("badge") == "QUEUED"
    assert one.text("stale") == "These are the recorded answers, until your run starts."
    assert shown(one) == before
    one.page.click("#avl-stop")
    one.wait("recorded", 5000)
    assert one.text("status") == "Stopped before it began."
    assert one.text("badge") == "RECORDED"
    assert shown(one) == before
    plays(one)
    assert other.errors + one.errors == []


def test_a_run_that_fails_in_its_prompt_shows_nothing_of_itself_or_of_others(serve: Any, tab: Any) -> None:
    """As where the device runs out of memory in prefill: no cell claims to be stored."""
    one = open_recorded(serve, tab, "--fail-at", "0")
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.source === 'live' && window.avlPlayer.view.state === 'done'")
    assert one.text("badge") == "FAILED"
    assert [card.inner_text() for card in one.page.locator(".avl-answer").all()] == ["", ""]
    for panel in ("race", "tokens", "analysis", "result"):
        assert one.page.locator(f"[data-panel={panel}]").is_hidden(), panel


def test_a_lost_connection_is_told(serve: Any, tab: Any) -> None:
    one = open_recorded(serve, tab, "--prefill", "3")
    before = shown(one)
    one.page.route(
        re.compile("queue/(join|data)"), lambda route: route.fulfill(json={"event_id": "x"}) if "join" in route.request.url else None
    )
    one.page.evaluate("window.avlPlayer.store.set({ state: 'queued', heard: performance.now() - 60000 })")
    one.wait("lost", 5000)
    assert "stopped answering" in one.text("alert")
    assert one.text("badge") == "LOST"
    assert shown(one) == before


def test_answers_say_what_they_belong_to(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.005").url).open()
    page = one.page
    one.set("#avl-tokens", 12)
    page.fill("#avl-question textarea", "What is on the sign?")
    page.click("#avl-run")
    one.wait("done")
    first = gallery.examples(True)[0]
    assert one.text("askedWord") == "Asked:"
    assert one.text("asked") == "What is on the sign?"
    for words in (first.name, "race", "12 new tokens at most", "greedy", "576 image + 40 text tokens"):
        assert words in one.text("askedFacts")
    assert one.text("stale") == ""
    changes = [
        (lambda: page.fill("#avl-question textarea", "Why?"), "question"),
        (lambda: one.set("#avl-arm1-S", 60), "question and settings"),
        (lambda: page.click(".avl-example >> nth=1"), "picture, question and settings"),
    ]
    for change, what in changes:
        change()
        one.until("(words) => document.querySelector('[data-id=stale]').textContent.includes(words)", arg=f"You changed the {what} since")
        assert one.text("askedWord") == "Answers to:"
        assert one.text("asked") == "What is on the sign?"
    page.click(".avl-example >> nth=0")
    one.until("(text) => document.querySelector('#avl-question textarea').value === text", arg=first.questions[0])
    page.fill("#avl-question textarea", "What is on the sign?")
    one.set("#avl-arm1-S", 45)
    one.until("document.querySelector('[data-id=stale]').textContent === ''")
    # another upload is another picture, even under the same name
    page.locator("#avl-picture button[aria-label='Remove Image']").first.click()
    one.until("document.querySelector('[data-id=stale]').textContent.includes('picture')")
    assert one.errors == []


def test_a_drawn_seed_is_shown_and_reproduces_the_settings(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?temp=0.7&top=0.9&seed=random&n=6")
    one.page.click("#avl-run")
    one.wait("done")
    found = re.search(r"temperature 0.7, top-p 0.9, seed (\d+)", one.text("askedFacts"))
    assert found
    assert one.page.evaluate("window.avlPlayer.view.run.start.seed") == int(found[1])
    assert one.text("stale") == "", "a random seed asks for no particular one"


def test_a_shown_seed_typed_in_gives_the_same_answers(real: Any, tab: Any) -> None:
    one = tab(real.url).open("?temp=1.5&seed=random&n=24")
    answers = []
    for _ in range(2):
        one.run()
        answers.append(one.page.evaluate("window.avlPlayer.view.run.arms.map((arm) => arm.tokens.join())"))
        seed = one.page.evaluate("window.avlPlayer.view.run.start.seed")
        if len(answers) == 1:
            one.page.evaluate("document.querySelector('.avl-more').open = true")
            one.page.fill("#avl-seed", str(seed))
    assert answers[0] == answers[1]
    assert f"seed {seed}" in one.text("askedFacts")


def test_a_link_restores_everything_but_pictures(serve: Any, tab: Any) -> None:
    server = serve("--pace", "0.002", "--recorded", SCENE)
    one = tab(server.url, permissions=["clipboard-read", "clipboard-write"]).open("?ex=scene-7&n=14")
    page = one.page
    one.until("document.querySelector('#avl-question textarea').value.length > 0 && window.avlLink().includes('scene-7')")
    page.fill("#avl-question textarea", "What color is the heart?\nSay it: ${x} & <b>")
    one.set("#avl-arm1-S", 20)
    page.click(".avl-more summary")
    for field, value in [("temperature", "0.7"), ("topp", "0.95"), ("seed", "5"), ("repeats", "2")]:
        page.fill(f"#avl-{field}", value)
    page.select_option("#avl-mode", "isolated")
    page.click("#avl-run")
    one.wait("done")
    page.locator(".avl-segment").first.click()
    page.select_option("[data-id=view]", "consensus")
    one.set("#avl-layer", 6)
    one.set("[data-id=step]", 4)
    page.click("[data-id=copy]")
    one.until("document.querySelector('[data-id=copy]').textContent !== 'Copy link'")
    link = page.evaluate("navigator.clipboard.readText()")
    state = """() => [window.avlInputs().settings, window.avlInputs().question, window.avlInputs().link, window.avlPlayer.view.mode,
        window.avlPlayer.view.layer]"""
    other = tab(server.url).open(link.split("/")[-1])
    other.until(
        "(wanted) => JSON.stringify(window.avlInputs().question) === JSON.stringify(wanted)",
        arg=page.evaluate("window.avlInputs().question"),
    )
    assert other.page.evaluate(state) == page.evaluate(state)
    # nothing else is shown in its place
    other.until("document.querySelector('[data-id=status]').textContent === 'Not run yet: press Run.'")
    assert other.page.locator(".avl-answer").count() == 0
    other.page.click("#avl-run")
    other.wait("done")
    assert other.page.evaluate("[window.avlPlayer.view.focus, window.avlPlayer.view.ts[0]]") == [0, 4]
    assert one.errors + other.errors == []


def test_a_link_to_what_was_recorded_shows_the_recording(serve: Any, tab: Any) -> None:
    recorded = gallery.recording(True)
    assert recorded is not None
    assert recorded.meta["link"] == f"ex={gallery.examples(True)[0].key}"
    one = open_recorded(serve, tab)
    link = one.page.evaluate("window.avlLink()")
    assert "n=64" in link
    matching = link.replace("n=64", "n=96")
    other = tab(one.url).open(f"?{matching}&t=9")
    other.until("document.querySelectorAll('.avl-answer').length === 2")
    other.until("window.avlPlayer.view.ts[0] === 9")
    strange = tab(one.url).open("?utm_source=x")
    strange.wait("recorded")


def reload(one: Any) -> list[str]:
    """Load the page again; return the dialogs that this opened."""
    asked: list[str] = []
    one.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    one.page.evaluate("setTimeout(() => location.reload())")
    one.page.wait_for_function("performance.getEntriesByType('navigation')[0].type === 'reload'")
    one.until("window.avlPlayer && window.avlPlayer.view.run && window.avlPlayer.view.source !== 'recorded'")
    one.errors.clear()  # Gradio's own, about the stream that was cut
    return asked


def test_a_reload_keeps_the_inputs_and_goes_on_with_the_run(serve: Any, tab: Any) -> None:
    one = open_recorded(serve, tab, "--pace", "0.2", "--away", "60")
    page = one.page
    page.fill("#avl-question textarea", "What is it?")
    one.set("#avl-tokens", 200)
    page.click("#avl-run")
    one.until("!window.avlPlayer.view.recorded && window.avlPlayer.view.run.last > 1")
    assert reload(one) == [], "leaving loses nothing, so nobody is asked"
    assert one.text("badge") == "LIVE"
    assert "Decoding" in one.text("status")
    assert one.text("asked") == "What is it?"
    one.until("window.avlPlayer.view.run.last > 4")
    one.until("document.querySelector('#avl-question textarea').value === 'What is it?'")
    assert page.evaluate("window.avlInputs().settings.max_new_tokens") == 200
    one.until("document.querySelector('[data-id=stale]').textContent === ''")
    # and Stop ends it
    page.click("#avl-stop")
    one.wait("done", 5000)
    assert one.text("status") == "Stopped. The caches of this run are freed."
    assert page.locator("#avl-run").is_enabled()
    stopped = one.tokens()
    assert min(stopped) > 3
    # what is over is opened again
    reload(one)
    one.until("window.avlPlayer.view.source === 'last'")
    assert one.text("badge") == "LAST RUN"
    assert one.text("status") == "Your last run. It was stopped early."
    assert one.tokens() == stopped
    one.until("document.querySelector('[data-id=stale]').textContent === ''")
    one.wait("done")
    assert one.errors == []


def test_stop_during_repeats_tells_how_many_are_done(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.2", "--prefill", "0.01").url).open("?r=20&n=3")
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.arms.some((arm) => arm.repeats.length > 1)")
    assert re.fullmatch(r"Answers complete. Timing repeats: \d+ of 20 done …", one.text("status"))
    one.page.click("#avl-stop")
    one.wait("done", 8000)
    done = one.page.evaluate("Math.min(...window.avlPlayer.view.run.arms.map((arm) => arm.repeats.length)) + 1")
    assert one.text("status") == f"Stopped: {done} of 20 runs done."
    assert 1 < done < 20


def test_no_path_of_the_server_is_on_the_page(serve: Any, tab: Any) -> None:
    """Neither in its configuration nor in its values; Gradio's own folder for uploads is no part of the project."""
    import urllib.request

    server = serve("--pace", "0.005")
    config = urllib.request.urlopen(server.url + "config").read().decode()
    root = str(Path(__file__).resolve().parents[2])
    assert root not in config
    assert "site-packages" not in config
    one = tab(server.url).open()
    one.until("window.Plotly")
    assert "site-packages" not in one.page.content()
