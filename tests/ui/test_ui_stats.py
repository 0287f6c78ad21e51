"""The statistics behind "faster" and "too close to call": pure functions of numbers, run in a blank page."""

from __future__ import annotations

import random
from typing import Any

import pytest

from avl.ui.components import FOLDER

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def compare(browser: Any) -> Any:
    page = browser.new_page()
    page.add_script_tag(content=(FOLDER / "stats.js").read_text("utf-8"))

    def call(a: list[float], b: list[float], runs: tuple[list[float], list[float]] = ([], []), stopped: bool = False) -> dict[str, Any]:
        arms = [{"steps": steps, "runs": medians, "stopped": stopped} for steps, medians in zip((a, b), runs, strict=True)]
        return page.evaluate("([a, b]) => compareTimes(a, b)", arms)

    yield call
    page.close()


def noisy(middle: float, spread: float, n: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [middle * draw.lognormvariate(0, spread) for _ in range(n)]


def test_the_same_distribution_is_never_called_faster(compare: Any) -> None:
    """One run of 66 steps each, and 3 to 20 repeats: a false winner in less than one case of ten."""
    wrong = sum(compare(noisy(3, 0.2, 66, seed), noisy(3, 0.2, 66, seed + 1000))["kind"] == "apart" for seed in range(60))
    assert wrong == 0
    for n in (5, 9, 20):
        found = [compare([], [], (noisy(3, 0.1, n, seed), noisy(3, 0.1, n, seed + 1000)))["kind"] for seed in range(60)]
        assert found.count("apart") <= 6, n


def test_a_clear_difference_is_told(compare: Any) -> None:
    found = compare(noisy(4, 0.05, 66, 1), noisy(2, 0.05, 66, 2))
    assert (found["kind"], found["basis"], found["n"]) == ("apart", "steps", 66)
    assert found["ratio"] == pytest.approx(0.5, rel=0.05)
    found = compare([], [], (noisy(4, 0.02, 5, 1), noisy(3.6, 0.02, 5, 2)))
    assert (found["kind"], found["basis"], found["n"]) == ("apart", "runs", 5)


def test_repeats_that_would_tell(compare: Any) -> None:
    def evenly(n: int, by: float = 1) -> list[float]:
        return [by * (2 + 0.2 * i / (n - 1)) for i in range(n)]

    close = compare([], [], (evenly(3), evenly(3, 1.09)))
    assert close["kind"] == "close"
    assert 3 < close["repeats"] <= 20
    # as many as that, with the same spread, do tell
    n = close["repeats"]
    assert [compare([], [], (evenly(some), evenly(some, 1.09)))["kind"] for some in (n - 1, n)] == ["close", "apart"]
    assert compare([], [], (evenly(3), evenly(3, 1.02)))["repeats"] is None


def test_one_percent_is_no_news(compare: Any) -> None:
    assert compare([], [], ([2.0] * 9, [2.01] * 9))["kind"] == "close"
    assert compare([], [], ([2.0] * 9, [2.0] * 9)) == {"kind": "close", "basis": "runs", "n": 9, "ratio": 1, "repeats": None}


def test_only_steps_that_both_made_are_compared(compare: Any) -> None:
    """A step takes longer the longer the answer is: a run that was stopped early would look faster."""
    growing = [1 + 0.02 * t for t in range(200)]
    found = compare(growing, growing[:60], stopped=True)
    assert (found["kind"], found["n"], found["ratio"]) == ("close", 60, 1)
    found = compare(growing, growing[:19], stopped=True)
    assert (found["kind"], found["n"]) == ("few", 19)
    # answers of different lengths: their runs' medians are over different ranges
    runs = ([2.0, 2.0, 2.0], [1.3, 1.3, 1.3])
    assert compare(growing, growing[:60], runs)["basis"] == "steps"
    assert compare(growing, growing[:190], runs)["basis"] == "runs"
    assert compare(growing, growing, runs, stopped=True)["basis"] == "steps"
    assert compare([], [], ([2.0, 2.0], [1.0, 1.0]))["kind"] == "few", "two runs are no spread"
