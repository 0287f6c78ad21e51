"""Each statement of the paper agrees with what was made to agree, disagrees with what was made to disagree, and else says why not."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
import torch

from avl.evaluation.figures import concordance, modalities, reading, settings, sparsity
from avl.evaluation.figures.answers import Answer, PictureAttention
from avl.evaluation.figures.made import CannotMakeError
from avl.evaluation.figures.statements import LEAST, Statement
from avl.evaluation.figures.written import Written
from avl.evaluation.rows import Row
from avl.policies import AVL
from avl.trace import Grid

N, LAYERS, STEPS = 40, 4, 24
HALVES = [range(20), range(10, 30), range(20, 40), range(0, 40, 2)]
"""The top half of each layer's tokens: any two share at most half of it."""
GRID = (Grid(0, 0, 5, 8, False, (0.0, 0.0, 80.0, 50.0)),)


def ranked(order, weights):
    """Scores [N] with ``weights[r]`` at token ``order[r]``."""
    scores = np.zeros(N)
    scores[list(order)] = weights
    return scores / scores.sum()


def as_the_paper_says(steps=STEPS):
    """Few tokens hold most; layers differ; the top half stays, and within it the top moves after three steps."""
    weights, scores = 0.8 ** np.arange(N), np.zeros((steps + 1, LAYERS, N))
    for t in range(steps + 1):
        for layer, half in enumerate(HALVES):
            best = np.roll(list(half), 0 if t <= 3 else 6)
            scores[t, layer] = ranked([*best, *(one for one in range(N) if one not in half)], weights)
    time = np.arange(steps + 1) / STEPS
    shares = {
        "system": 0.20 - 0.05 * time,
        "image": 0.50 - 0.10 * time,
        "instruction": 0.29 * np.exp(-8 * time) + 0.01,
    }
    shares["generated"] = 1 - sum(shares.values())
    return Answer("a.png", "what?", "this", shares, PictureAttention.of(scores, GRID))


def otherwise(steps=STEPS):
    """Attention is even, alike in all layers, upside down for ten steps and then as at first; the instruction gains."""
    weights, scores = 1 - 1e-3 * np.arange(N), np.zeros((steps + 1, LAYERS, N))
    for t in range(steps + 1):
        scores[t, :] = ranked(range(N) if t == 0 or t > 10 else range(N)[::-1], weights)
    time = np.arange(steps + 1) / STEPS
    shares = {"system": 0.01 + 0.02 * time, "image": 0.04 + 0.03 * time, "instruction": 0.1 + 0.4 * time}
    shares["generated"] = 1 - sum(shares.values())
    return Answer("a.png", "what?", "this", shares, PictureAttention.of(scores))


MAKERS = {"1": modalities.figure_1, "3": sparsity.figure_3, "4": concordance.figure_4, "5": concordance.figure_5}


@pytest.mark.parametrize(("made", "verdict"), [(as_the_paper_says, "yes"), (otherwise, "no")], ids=["agrees", "does not"])
@pytest.mark.parametrize("number", MAKERS)
def test_recorded_attention(number, made, verdict):
    figure = MAKERS[number]([made() for _ in range(LEAST)])
    assert {one.claim: one.agrees for one in figure.statements} == {one.claim: verdict for one in figure.statements}
    assert all(one.figure == number == figure.number and not one.reason for one in figure.statements)


def test_values_by_hand():
    """Known ones: half of the top half in common, 8 of 40 tokens hold 80 %, and half of the top 30 % moved on."""
    answers = [as_the_paper_says()]
    few, _ = sparsity.figure_3(answers).statements
    assert few.values == pytest.approx([100 * 8 / 40])
    most, last, three = concordance.figure_4(answers).statements
    assert [one.values[0] for one in (most, last, three)] == pytest.approx([50, 50, 50])
    stays, shifts = concordance.figure_5(answers).statements
    assert stays.values == pytest.approx([100])
    assert shifts.values == pytest.approx([50])


@pytest.mark.parametrize("number", ["1", "5"])
def test_short_answers_decide_nothing_about_long_ones(number):
    figure = MAKERS[number]([as_the_paper_says(steps=6)] * 9)
    assert {one.agrees for one in figure.statements} == {"cannot say"}
    assert all("no answer has 20 decode steps" in one.reason for one in figure.statements)
    with pytest.raises(CannotMakeError, match="no answer has one"):
        MAKERS[number]([as_the_paper_says(steps=0)])


def test_a_language_models_instruction():
    def answer(ends):
        shares = {"system": np.full(STEPS + 1, 0.3), "instruction": np.linspace(0.5, ends, STEPS + 1)}
        return Answer("", "why?", "so", {**shares, "generated": 1 - sum(shares.values())})

    for ends, verdict in ((0.05, "yes"), (0.45, "no")):
        figure = modalities.figure_1([answer(ends)] * LEAST)
        assert [one.agrees for one in figure.statements] == [verdict]
        assert "image" not in figure.data["shares"]


def statement(values, **changes):
    given = {"figure": "1", "claim": "c", "quantity": "q", "sign": "<", "limit": 10, "limit_from": "ours", "unit": "%", "over": "answers"}
    return Statement(**given | changes, values=tuple(values))


@pytest.mark.parametrize(
    ("one", "verdict", "reason"),
    [
        (statement([1, 2, 3, 4, 5]), "yes", ""),
        (statement([11, 12, 13, 14, 15]), "no", ""),
        (statement([1, 2, 30, 40, 9, 11]), "cannot say", "the limit is inside the interval"),
        (statement([1, 2, 3, 4]), "cannot say", "fewer than 5 answers decide nothing, 4 here"),
        (statement([], missing="it was too short"), "cannot say", "it was too short"),
        (statement([10] * 5), "no", ""),
        (statement([10] * 5, sign="<="), "yes", ""),
        (statement([10] * 5, sign=">="), "yes", ""),
        (statement([1, 1, 1, 1, 100], statistic="mean"), "cannot say", "the limit is inside the interval"),
    ],
)
def test_the_rule(one, verdict, reason):
    assert (one.agrees, one.reason) == (verdict, reason)
    told = one.to_dict()
    assert (told["agrees"], told["count"]) == (verdict, len(one.values))
    assert "10" in told["rule"]


def timed(slicing, in_place, kernel=120.0, rounds=7):
    """Times of two batches: torch takes 100 for full attention, the kernel 500 for what is sliced."""
    times = {"full, torch": 100.0, "full, kernel": kernel, "slice, torch": slicing, "slice, kernel": 500.0, "in place": in_place}
    return [reading.Timed(reading.SHAPES[-1], batch, {way: (us,) * rounds for way, us in times.items()}) for batch in (1, 2)]


@pytest.mark.parametrize(("slicing", "in_place", "verdict"), [(105.0, 40.0, "yes"), (50.0, 110.0, "no")])
def test_reading(slicing, in_place, verdict):
    figure = reading.figure_8(timed(slicing, in_place), torch.device("cpu"), torch.float32)
    assert [one.agrees for one in figure.statements] == [verdict] * 3
    assert figure.data["cells"][0]["fastest"] == {"full": "full, torch", "slice": "slice, torch", "in place": "in place"}


def test_full_attention_is_the_faster_one():
    """Reading in place may not look good because torch reads the whole cache slowly."""
    figure = reading.figure_8(timed(50.0, 40.0, kernel=30.0), torch.device("cpu"), torch.float32)
    assert [one.agrees for one in figure.statements] == ["yes", "no", "yes"]
    assert figure.data["cells"][0]["fastest"]["full"] == "full, kernel"


def task(score):
    """A task of 12 samples on each of which a policy has ``score(policy)``."""
    return lambda policy: Row(policy.label, policy.to_dict(), {"read": (score(policy),) * 12}, 0.9, 0.9, 0.0, "2026-11-26")


def good(policy):
    if not isinstance(policy, AVL):
        return 0.8
    if policy.P is not None:
        return 0.8 if policy.P >= 80 else 0.7
    if policy.T is not None or policy.S >= 40:
        return 0.8 - (0 if policy.C is None else 0.002 * policy.K)
    return 0.78


def bad(policy):
    if not isinstance(policy, AVL):
        return 0.8
    if policy.P is not None:
        return 0.7 if policy.P == 80 else 0.8
    if policy.T is not None:
        return 0.5
    return 0.6 if policy.C is None else 0.5 + 0.001 * policy.K


@pytest.mark.parametrize(("score", "verdict"), [(good, "yes"), (bad, "no")])
@pytest.mark.parametrize("make", [settings.figure_9, settings.figure_10])
def test_scores(make, score, verdict):
    asked = []
    figure = make(lambda policy: asked.append(policy) or task(score)(policy), "a task")
    assert {one.claim: one.agrees for one in figure.statements} == {one.claim: verdict for one in figure.statements}
    assert figure.data["full"]["scores"] == {"read": 0.8}
    assert figure.data["samples"] == 12


def test_a_setting_that_evicts_nothing_shows_nothing():
    figure = settings.figure_10(lambda policy: replace(task(good)(policy), stored=1.0 if policy == AVL(S=100, T=60) else 0.9), "a task")
    assert [one.agrees for one in figure.statements] == ["cannot say", "yes", "yes"]
    assert "T=60 evicts nothing on this task" in figure.statements[0].reason


def test_a_task_that_the_model_cannot_do():
    with pytest.raises(CannotMakeError, match="full attention scores 0"):
        settings.figure_9(task(lambda policy: 0.0), "a task")


def test_files(tmp_path):
    """Every figure as an SVG that says what it is, data with all of its values, and an index complete after each."""
    made = {"command": "avl figures", "model": {"name": "m", "dtype": "float32", "device": "cpu"}, "date": "2026-11-26"}
    made["machine"] = {"gpu": None, "cpu": "c", "threads": 1, "cores": 2, "torch": "2", "transformers": "5"}
    written = Written(tmp_path, made)
    answers = [as_the_paper_says(), otherwise()]
    drawn = [make(answers) for make in MAKERS.values()]
    drawn += [reading.figure_8(timed(50.0, 40.0), torch.device("cpu"), torch.float32)]
    drawn += [make(task(good), "a task & more") for make in (settings.figure_9, settings.figure_10)]
    for count, figure in enumerate(drawn, 1):
        written.add(figure)
        assert len(json.loads((tmp_path / "figures.json").read_text("utf-8"))["figures"]) == count
        svg = tmp_path / f"figure-{figure.number}.svg"
        root = ET.fromstring(svg.read_bytes())
        name = "{http://www.w3.org/2000/svg}"
        assert (root.find(f"{name}title").text, root.find(f"{name}desc").text) == (figure.title, figure.description)
        assert svg.stat().st_size < 150_000
        before = svg.read_bytes()
        written.add(figure) if count == 1 else None
        assert svg.read_bytes() == before, "the same figure gives the same file"
        kept = json.loads((tmp_path / f"figure-{figure.number}.json").read_text("utf-8"))
        assert kept["model"]["name"] == "m"
        assert [len(one["values"]) for one in kept["statements"]] == [len(one.values) for one in figure.statements]
    written.skip("2", "it is a drawing")
    text = (tmp_path / "figures.md").read_text("utf-8")
    assert "Figure 2 is left out: it is a drawing." in text
    assert all(f"(figure-{figure.number}.svg)" in text for figure in drawn)
    assert not list(tmp_path.glob("*.part"))


def test_a_map_lies_as_its_grid_does_and_is_a_strip_without_one(tmp_path):
    numbered = np.broadcast_to(np.arange(1.0, N + 1), (2, LAYERS, N))
    with_newlines = PictureAttention.of(numbered, (Grid(0, 3, 2, 4, True, (0.0, 0.0, 80.0, 50.0)),))
    assert sparsity._map(with_newlines, 1).tolist() == [[4, 5, 6, 7], [9, 10, 11, 12]]
    assert sparsity._map(PictureAttention.of(numbered), 1).shape == (1, N)
    figure = sparsity.figure_3([otherwise()])
    path = figure.draw(tmp_path / "strip.svg", figure.title, figure.description)
    assert path.stat().st_size > 1000
