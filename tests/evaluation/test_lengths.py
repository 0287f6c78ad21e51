"""Attention and agreement over length: figures with known answers, the same from traces, and the command on the bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import build_model, picture, shared_processor

import avl
from avl import cli
from avl.cache.layout import Row
from avl.cache.recorder import Recorder
from avl.engine.start import ready
from avl.evaluation.lengths import agreement, attention, report
from avl.evaluation.lengths.bins import bins, means
from avl.evaluation.lengths.documents import Behind
from avl.models.inputs import prepare
from avl.trace import Agreement, End, Scores, Trace, unpack_scores

STEPS = 40


@pytest.fixture(scope="module")
def small():
    model, processor = build_model("next-mistral"), shared_processor("next-mistral")
    ready(model, processor)
    return model, processor, prepare(model, processor, [picture(3)], "what is here ?")[0]


@pytest.fixture(scope="module")
def answered(small):
    model, _, inputs = small
    return attention.long_answer(model, inputs, STEPS, p=30)


def test_bins_hold_every_step_once():
    assert bins(31) == [(1, 32)]
    assert bins(32) == [(1, 32), (32, 33)]
    assert bins(100) == [(1, 32), (32, 64), (64, 101)]
    assert means([*[1.0] * 31, *[3.0, np.nan]]) == [1, 3]
    assert np.isnan(means([np.nan] * 5)).all()


def test_an_answer_goes_on_beyond_its_end(small, answered):
    """The choice is the model's own but for ends of sequence, so until its first end the answer is what the engine gives."""
    model, processor, _ = small
    assert len(answered.tokens) == STEPS + 1
    assert not set(attention.ends_of(model)) & set(answered.tokens)
    (end,) = Trace(list(avl.stream(model, processor, picture(3), "what is here ?", avl.Full(), max_new_tokens=8))).of(End)
    assert answered.tokens[: len(end.tokens)] == list(end.tokens)


def test_concordance_is_that_of_a_trace(small, answered):
    model, processor, _ = small
    run = avl.stream(model, processor, picture(3), "what is here ?", avl.Full(), max_new_tokens=8, scores=True)
    events = Trace(list(run)).of(Scores)
    n = model_images(model, small[2])
    scores = [np.stack([unpack_scores(layer, n) for layer in event.image]) for event in events]
    count = max(1, round(0.3 * n))
    tops = [[set(np.argsort(-layer, kind="stable")[:count]) for layer in one] for one in scores]
    for back, name in ((None, "prompt"), (1, "1"), (3, "3")):
        for step in range(1, len(tops)):
            origin = 0 if back is None else step - back
            if origin < 0:
                assert np.isnan(answered.concordance[name][step - 1])
                continue
            shared = np.mean([len(a & b) / count for a, b in zip(tops[origin], tops[step], strict=True)])
            assert answered.concordance[name][step - 1] == pytest.approx(
                shared, abs=2 / count
            )  # traces round, so that ties may fall otherwise


def model_images(model, inputs) -> int:
    return int((inputs["input_ids"] == model.config.image_token_id).sum())


def test_text_is_told_apart_by_age():
    """Positions 5 to 7 are a picture; the newest token is 1100. Two heads' groups, of which one reads less."""
    recorder = Recorder(Row(0, 20, (5, 6, 7)), 1)
    positions = torch.tensor([[0, 6, 1100, 1085, 1084, 100], [3, 5, 1100, 1085, 1084, 50]])
    recorder.note(0, torch.tensor([[0.1, 0.5, 0.1, 0.1, 0.1, 0.1], [0.2, 0.3, 0.1, 0.1, 0.1, 0.2]]), positions)
    image = np.zeros(1101, bool)
    image[[5, 6, 7]] = True
    on_image, by_age = attention._ages(recorder, image)
    assert on_image == pytest.approx(0.4)
    expected = [0.15, 0.2, 0.1, 0, 0.05, 0.1]  # first 4; 0 and 15 ago; 16 ago; none; 1000 ago; 1050 ago
    np.testing.assert_allclose(by_age, np.array(expected) / 0.6, rtol=1e-6)


def test_policies_agree_as_the_engine_says(small):
    """Teacher-forced along the engine's own answer, the divergences are those of its Agreement events."""
    model, processor, inputs = small
    policies = [avl.Full(), avl.AVL(S=40, C=20, K=3), avl.H2O(keep=40)]
    trace = Trace(list(avl.race(model, processor, picture(3), "what is here ?", policies, max_new_tokens=24, agreement=True)))
    told = trace.of(Agreement)
    found = list(agreement.along(model, inputs, told[0].tokens, policies))
    for event, one in zip(told, found, strict=True):
        assert one.kl == pytest.approx(event.kl[1:], abs=1e-5)
        assert one.surprise == pytest.approx(event.nll[1:], abs=1e-3)
        assert one.same == [token is None for token in event.top[1:]]
    assert set(found[0].kl) == {0.0}
    assert set(found[0].stored) == set(found[0].read) == {1.0}
    assert max(found[1].stored) < 0.8
    assert max(found[1].kl) > 0


@pytest.mark.parametrize(("first", "last", "holds"), [(0.9, 0.81, False), (0.9, 0.83, True), (0.54, 0.54, None), (0.5, 0.9, None)])
def test_continuity_is_measured_against_chance(first, last, holds):
    answer = attention.LongAnswer([], 50, {"prompt": [0.5] * 40, "3": [first] * 31 + [last] * 9})
    assert report.continuity(answer)["holds"] is holds


def test_a_record_is_plain_and_its_table_shows_gaps(answered):
    documents = [Behind(label, 64, points, 0.5, 0.4) for label, points in (("full", (1.0, 0.5)), ("a", (0.0, 0.5)))]
    found = report.record({}, answered, [], documents)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert [one["difference"] for one in found["documents"]] == [[0, 0], [-1, 0]]
    assert "Continuity" in report.table(found)
    short = attention.LongAnswer([1] * 3, 50, {"prompt": [0.5] * 2, "3": [float("nan")] * 2}, [0.1] * 2, [[0.0] * 6] * 2)
    assert report.record({}, short, [])["attention"]["concordance"]["3"] == [None]


def test_the_command(tmp_path: Path, capsys):
    arguments = ["lengths", "--max-new-tokens", "34", "--policies", "avl:S=40", "streamingllm", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(arguments) == 0
    found = json.loads((tmp_path / "lengths.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert found["bins"] == [[1, 32], [32, 34]]
    assert [one["policy"] for one in found["policies"]] == [avl.AVL(S=40).label, avl.StreamingLLM().label]
    assert (tmp_path / "lengths.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-new-tokens", "5000"], "tokens, the model's context has 2048"),
        (["-p", "0"], "-p 0 is out of range"),
        (["--documents", "5", "--model", "llava-1.5-7b"], "--documents asks the bundled model's questions"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_cannot_be_is_refused(arguments, sentence, capsys):
    assert cli.main(["lengths", *arguments]) == 1
    assert sentence in capsys.readouterr().err
