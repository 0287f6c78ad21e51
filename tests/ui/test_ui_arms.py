"""Up to eight policies on the page: their settings, the table of all, which two are shown, agreement with full attention."""

from __future__ import annotations

from typing import Any

import pytest

from avl.policies import POLICIES

pytestmark = pytest.mark.browser

ALL = "a=Full&b=AVL&c=H2O&d=SnapKV&e=PyramidKV&f=FastV&g=StreamingLLM&h=AVL&h.S=20&h.C=10&n=14"
BOXES = "#avl-controls .avl-choice"


def rows(tab: Any) -> list[list[str]]:
    return tab.page.evaluate(
        "[...document.querySelectorAll('.avl-policies tbody tr')].map((row) => [...row.children].map((cell) => cell.innerText.trim()))"
    )


def pair(tab: Any) -> list[int]:
    return tab.page.evaluate("window.avlPlayer.view.pair")


def pick(tab: Any, name: str, place: str) -> None:
    tab.page.get_by_label(f"Show {name} as {place}", exact=True).check()


def cards(tab: Any) -> list[str]:
    return tab.page.locator(".avl-arm h2").all_inner_texts()


def test_policies_are_added_folded_removed_and_set_to_equal_memory(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?a=H2O&a.keep=80&b=AVL&S=30")
    page = one.page
    boxes = page.locator(BOXES)
    assert page.locator(".avl-equal").all_inner_texts() == ["Match A-VL’s KV size", "Match H2O’s KV size"]
    assert page.locator(".avl-arm-fold").count() == 0
    page.click("[data-id=add]")
    assert boxes.count() == 3
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Policy of arm 3"
    assert page.locator(".avl-arm-fold").nth(1).locator("summary").inner_text() == "S 30 · C 30 · K 3 · P 90 · T 60"
    page.select_option("select[aria-label='Policy of arm 3']", "AVL")
    one.until("document.querySelector('.avl-arm-fold .avl-equal').textContent === 'Match policy 2’s KV size'")
    page.locator(".avl-arm-fold summary").first.click()
    page.locator(".avl-equal").first.click()
    one.until("!window.avlLink().includes('a.keep=80')")
    stored = "[...document.querySelectorAll('.avl-predicted')].map((node) => node.querySelector('b')?.textContent)"
    one.until(f"(() => {{ const [a, b] = {stored}; return a && a === b; }})()")
    for _ in range(5):
        page.click("[data-id=add]")
    assert boxes.count() == 8
    assert page.locator("[data-id=add]").is_disabled()
    page.click("[data-id=all]")
    one.until("document.querySelectorAll('#avl-controls .avl-choice').length === 7")
    assert page.locator(f"{BOXES} select[aria-label^='Policy of']").evaluate_all("(all) => all.map((one) => one.value)") == list(POLICIES)
    assert "Each policy but full attention stores" in page.locator("[data-id=told]").inner_text()
    one.until(f"(() => {{ const all = {stored}.slice(1).map(parseFloat); return Math.max(...all) - Math.min(...all) <= 1; }})()")
    page.click("[data-id=told] button")
    assert boxes.count() == 8
    for _ in range(6):
        page.locator(f"{BOXES} .avl-choice-head button").last.click()
    assert boxes.count() == 2
    assert page.locator(f"{BOXES} .avl-choice-head button").count() == 0
    assert one.errors == []


def test_a_button_that_the_server_refuses_says_why_and_changes_nothing(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?a=Full&b=AVL&S=2&C=1&P=10&T=10&c=FastV")
    page = one.page
    before = page.evaluate("window.avlLink()")
    page.locator(".avl-arm-fold summary").last.click()
    page.locator(".avl-equal").last.click()
    one.until("document.querySelectorAll('.avl-predicted')[2].textContent.includes('FastV cannot store')")
    assert page.evaluate("window.avlLink()") == before
    page.click("[data-id=all]")
    one.until("document.querySelector('[data-id=told]').textContent.includes('FastV cannot store')")
    page.click("[data-id=told] button")
    for number in (3, 2):
        page.get_by_label(f"Remove policy {number}").click() if number == 3 else page.select_option(
            "select[aria-label='Policy of arm 2']", "Full"
        )
    page.click("[data-id=all]")
    one.until("document.querySelector('[data-id=told]').textContent.includes('stores everything')")
    assert page.locator(BOXES).count() == 2


def test_one_table_of_all_policies_chooses_the_two_that_are_shown(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open(f"?{ALL}&agreement=1")
    page = one.page
    one.run()
    found = rows(one)
    assert [row[0].split("\n")[0] for row in found] == [policy.title for policy in POLICIES.values()] + ["A-VL"]
    assert found[0][4:6] == ["–", "100 %\n9.73 MiB"]
    assert found[1][4] == "✗ differs\nat token 10"
    assert found[2][4] == "✓ identical"
    assert [row[-1] for row in found] == ["–", "93 %", *["100 %"] * 6]
    assert all("hit the token limit, 14 tokens" in row[3] for row in found)
    assert pair(one) == [0, 1]
    pick(one, "H2O", "B")
    assert pair(one) == [0, 2]
    one.until("document.querySelectorAll('.avl-arm h2')[1].textContent.startsWith('H2O')")
    assert page.evaluate("window.avlPlayer.view.focus") == 2, "the picture shows the one that was chosen"
    one.until("document.querySelector('[data-id=memoryKeys]').textContent.includes('H2O: stored')")
    assert "H2O" in page.locator(".avl-results thead").inner_text()
    pick(one, "H2O", "A")
    assert pair(one) == [2, 0], "they swap"
    one.until("document.querySelectorAll('.avl-arm h2')[0].textContent.startsWith('H2O')")
    # a lane that is not shown comes into view in B's place
    page.locator("[data-id=track]").click(position={"x": 300, "y": 26 * 5 + 10})
    assert pair(one) == [2, 5]
    # the next run of as many arms shows the same two; so does a link
    one.run()
    assert pair(one) == [2, 5]
    assert page.evaluate("window.avlPlayer.view.focus") == 5
    # sort, and back
    head = page.get_by_role("columnheader", name="KV stored")
    for state, first in (("ascending", "A-VL"), ("descending", "Full attention"), (None, "Full attention")):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == state
        assert rows(one)[0][0].split("\n")[0] == first
    assert one.errors == []


def test_a_link_names_the_two_that_are_shown(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url, permissions=["clipboard-read", "clipboard-write"]).open(f"?{ALL}&arms=4-2")
    one.run()
    assert pair(one) == [3, 1]
    one.page.click("[data-id=copy]")
    one.until("document.querySelector('[data-id=copy]').textContent === 'Copied'")
    assert "arms=4-2" in one.page.evaluate("navigator.clipboard.readText()")


def test_two_arms_have_no_table_and_unmeasured_arms_no_strip(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url).open("?n=6")
    one.run()
    for panel in ("policies", "agreement"):
        assert one.page.locator(f"[data-panel={panel}]").is_hidden()


def test_the_table_tells_what_a_stop_left(serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.2").url).open(f"?{ALL.replace('n=14', 'n=200')}&mode=isolated")
    one.page.click("#avl-run")
    one.until("window.avlPlayer.view.run && window.avlPlayer.view.run.arms.length === 8 && window.avlPlayer.view.run.arms[0].last > 3")
    found = rows(one)
    assert "token" in found[0][3]
    assert {row[3] for row in found[1:]} == {"waiting"}
    one.page.click("#avl-stop")
    one.wait("done")
    one.until("!document.querySelector('.avl-policies').innerText.includes('waiting')")
    found = rows(one)
    assert "stopped" in found[0][3]
    assert {row[3] for row in found[1:]} == {"not started"}
    assert one.errors == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_strip_marks_where_a_policy_would_go_on_otherwise(width: int, serve: Any, tab: Any) -> None:
    one = tab(serve("--pace", "0.002").url, width=width).open(f"?{ALL}&agreement=1")
    page = one.page
    one.run()
    one.see("agreement")
    strip = page.locator(".avl-strip-of")
    assert strip.count() == 1, "full attention agrees with itself"
    assert "agrees with full attention at 93 % of 14 tokens; mean KL 0.12 nats; perplexity of full’s answer 1.37" in strip.inner_text()
    words = page.locator(".avl-fed-answer .avl-fed")
    assert words.count() == 14
    off = page.locator(".avl-fed-answer .avl-otherwise")
    assert off.count() == 1
    assert off.locator("small").inner_text() == "<b>blue</b>", "text, never markup"
    off.click()
    assert page.evaluate("window.avlPlayer.view.ts[0]") == 9
    one.until("document.querySelector('.avl-fed-answer .avl-now')?.dataset.t === '9'")
    assert "this policy’s likeliest “<b>blue</b>”, KL 1.500 nats" in page.locator(".avl-here").inner_text()
    words.nth(2).hover()
    assert page.evaluate("window.avlPlayer.view.word") == {"arm": 0, "t": 2}
    page.locator("[data-id=agreementTable] summary").click()
    one.until("document.querySelectorAll('[data-id=agreementTable] tbody tr').length === 14")
    cells = page.locator("[data-id=agreementTable] tbody tr").nth(9).locator("td").all_inner_texts()
    assert cells[1:] == ["<b>blue</b>", "1.500"]
    pick(one, "H2O", "A")
    one.until("document.querySelectorAll('.avl-strip-of').length === 2")
    assert page.locator("[data-id=agreementTable] thead th").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert one.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_many_arms_are_accessible(serve: Any, tab: Any, scheme: str) -> None:
    """axe-core on the table, the strip and folded and open settings."""
    from axe_playwright_python.sync_playwright import Axe

    one = tab(serve("--pace", "0.002").url, color_scheme=scheme).open(f"?{ALL}&agreement=1")
    one.run()
    one.page.locator(".avl-arm-fold summary").first.click()
    one.page.locator("[data-id=agreementTable] summary").click()
    found = Axe().run(one.page, context="[data-panel=policies], [data-panel=agreement], #avl-controls").response["violations"]
    assert [f"{fault['id']}: {node['target']} {node['failureSummary'][:300]}" for fault in found for node in fault["nodes"]] == []
    # the space key checks a choice, it does not play
    one.page.get_by_label("Show SnapKV as B", exact=True).focus()
    one.page.keyboard.press(" ")
    assert pair(one) == [0, 3]
    assert not one.page.evaluate("window.avlPlayer.view.playing")
