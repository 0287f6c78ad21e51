"""Ask on, in a browser: the conversation so far, kept beside re-read, what was evicted, and pages that were loaded again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.browser

ODD = "<img src=x onerror=alert(1)> and the price?"


@pytest.fixture
def asked(tab: Callable[..., Any], serve: Callable[..., Any]) -> Any:
    """A page with a finished first run of few tokens."""
    one = tab(serve("--pace", "0", "--prefill", "0").url).open()
    one.set("#avl-tokens", 12)
    one.run()
    return one


def ask(tab: Any, question: str, turn: int) -> None:
    tab.page.fill("#avl-ask-on", question)
    tab.page.press("#avl-ask-on", "Enter")
    tab.until(f"window.avlPlayer.view.run.start.turn === {turn}")
    tab.until("window.avlPlayer.view.complete === window.avlPlayer.view.opened")


def test_asking_on_shows_the_conversation_and_what_was_evicted(asked: Any) -> None:
    page = asked.page
    assert "Re-reading feeds all" in asked.text("askNote")
    page.fill("#avl-ask-on", "  ")
    page.press("#avl-ask-on", "Enter")
    assert "Type what you want" in asked.text("askNote")
    ask(asked, ODD, 2)
    assert asked.text("asked") == ODD
    assert "question 2" in asked.text("turn")
    assert "answer 12" in asked.text("turns")
    pair = page.evaluate("window.avlPlayer.view.pair.map((index) => window.avlPlayer.view.run.arms[index].spec)")
    assert [one["reread"] for one in pair] == [False, True]
    assert pair[0]["policy"] == pair[1]["policy"]
    assert page.input_value("#avl-ask-on") == ""
    told = asked.text("turnResults")
    assert "kept, 1 pass of 14 new tokens" in told
    assert "were evicted in layer" in told
    page.click("[data-id=showMissed]")
    asked.until("document.querySelector('[data-id=legend]').innerText.includes('wanted now and kept')")
    words = asked.text("legend").split()
    evicted, held = (int(word) for word in words if word.isdigit())
    assert f"{evicted} of {evicted + held} tokens" in told
    assert "changed" not in asked.text("stale")  # what the page would ask now is another conversation's first question
    page.uncheck("[data-id=reread]")
    ask(asked, "And then?", 3)
    assert page.evaluate("window.avlPlayer.view.run.arms.length") == 2
    assert "question 3" in asked.text("turn")
    assert asked.errors == []
    # the page is loaded again: the run is there, and is asked on
    page.reload()
    asked.until("window.avlPlayer && window.avlPlayer.view.run && window.avlPlayer.view.run.start.turn === 3")
    ask(asked, "Still there?", 4)
    asked.see("history")
    page.click("[data-id=visitBox] > summary")
    asked.until("document.querySelector('[data-id=visit]').innerText.includes('question 4 of')")
    assert asked.errors == []


def test_where_it_cannot_be_asked_it_says_why(asked: Any, serve: Callable[..., Any]) -> None:
    page = asked.page
    asked.set("#avl-batch", 2)
    asked.run()
    assert "one row" in asked.text("askNote")
    assert page.is_disabled("#avl-ask-on")
    asked.set("#avl-batch", 1)
    asked.run()
    assert page.is_enabled("#avl-ask-on")
    page.evaluate("window.avlPlayer.store.set({ id: 'gone' })")
    page.fill("#avl-ask-on", "And?")
    page.press("#avl-ask-on", "Enter")
    asked.until("document.querySelector('[data-id=askNote]').innerText.includes('no longer has this run')")
    assert page.input_value("#avl-ask-on") == "And?"
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
