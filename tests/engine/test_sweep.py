"""``avl.sweep``: every row against a run of that policy alone, the verdict, stops, failures, and times that were warmed up."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator

import pytest
from random_models import build_model, picture, shared_processor

import avl
from avl.engine import sweep as sweeping
from avl.engine.request import GenerationRequest
from avl.policies.plan import plan
from avl.trace import Arm, End, Error, Event, Prefill, Repeat, Start, Step, Warning
from avl.trace.sweeps import Sweep, SweepEnd, SweepPoint, SweepProgress, SweepStart


@pytest.fixture(scope="module")
def small():
    return build_model("llava-llama"), shared_processor("llava-llama")


def alone(small, policy, **options) -> End:
    return next(event for event in avl.stream(*small, picture(2), "what is here ?", policy, 9, **options) if isinstance(event, End))


@pytest.mark.parametrize("options", [{}, {"batch": 2}, {"temperature": 1.0, "seed": 5}], ids=str)
def test_each_row_is_that_policys_own_run(small, options):
    policy = avl.AVL(S=60, C=30, K=2, T=60)
    found = avl.sweep(*small, picture(2), "what is here ?", {"S": [20, 60, 100]}, policy, 9, **options)
    rows = list(found)
    full = alone(small, avl.Full(), **options)
    assert [row.point for row in rows] == [None, 0, 1, 2]
    policies = [avl.Full(), *(avl.AVL(S=S, C=min(30, S), K=2, T=60) for S in (20, 60, 100))]
    for row, one in zip(rows, policies, strict=True):
        end = alone(small, one, **options)
        assert row.policy == one.to_dict()
        assert (row.text, row.tokens, row.reason) == (end.text, end.tokens, end.reason)
        assert (row.stored_bytes, row.read_bytes, row.peak_bytes) == (end.stored_bytes, end.read_bytes, end.peak_bytes)
        assert row.same == (end.tokens == full.tokens)
        assert row.tokens[: row.identical] == full.tokens[: row.identical]
        assert row.identical == len(full.tokens) or row.tokens[row.identical : row.identical + 1] != full.tokens[row.identical :][:1]
        if len(end.tokens) == len(full.tokens):
            assert row.stored_share == pytest.approx(end.stored_bytes / full.stored_bytes)
            assert row.read_share == pytest.approx(end.read_bytes / full.read_bytes)
        assert row.ttft_ms > 0
        assert row.median_ms > 0
    assert rows[1].notes[0] == "C is lowered from 30 to 20 to fit."
    assert found.verdict.reason == "done"
    assert found.verdict.measured == found.verdict.planned == 3
    assert found.verdict.kept == tuple(row.point for row in rows[1:] if row.same)


def test_everything_kept_is_full_attentions_answer(small):
    found = avl.sweep(*small, picture(2), "what is here ?", {"K": [1, 2, 3]}, avl.AVL(S=100, C=100), 9)
    rows = list(found)
    assert all(row.same for row in rows)
    assert all(row.stored_share == row.read_share == 1 for row in rows)
    assert found.verdict.cheapest == 0
    assert found.verdict.safe is not None


def test_it_warms_up_before_anything_is_timed(small, monkeypatch):
    asked: list[GenerationRequest] = []
    from avl.engine import scheduler

    real = scheduler.run

    def run(model, processor, request, stop):
        asked.append(request)
        return real(model, processor, request, stop)

    monkeypatch.setattr(scheduler, "run", run)
    list(avl.sweep(*small, picture(2), "what is here ?", {"S": [20, 60]}, avl.AVL(S=60), 9, batch=2))
    assert [type(request) for request in asked] == [GenerationRequest, sweeping.SweepRequest]
    warm, whole = asked
    assert warm.policies == (avl.Full(), avl.AVL(S=20))
    assert (warm.max_new_tokens, warm.batch, warm.mode) == (4, 2, "isolated")
    assert whole.policies == (avl.Full(), avl.AVL(S=20), avl.AVL(S=60))
    assert whole.mode == "isolated"


def test_repeats_add_runs_to_every_row(small):
    found = avl.sweep(*small, picture(2), "what is here ?", {"S": [20, 60]}, avl.AVL(S=60), 5, repeats=3)
    assert len(list(found)) == 9
    for row in found.result.rows:
        firsts, middles = zip(*row.runs, strict=True)
        assert len(firsts) == 3
        assert row.ttft_ms == sorted(firsts)[1]
        assert row.median_ms == sorted(middles)[1]
    assert sweeping.SINGLE_RUN not in found.result.start.notes


def test_one_run_says_so(small):
    found = avl.sweep(*small, picture(2), "what is here ?", {"S": [20]}, avl.AVL(S=60), 2)
    list(found)
    assert sweeping.SINGLE_RUN in found.result.start.notes


def test_sampling_without_a_seed_gives_all_points_the_same_one(small):
    found = avl.sweep(*small, picture(2), "what is here ?", {"K": [1, 2]}, avl.AVL(S=100, C=100), 9, temperature=1.0)
    assert all(row.same for row in found)
    assert found.result.start.seed is not None


def test_a_stop_keeps_what_was_measured(small):
    stop = threading.Event()
    found = avl.sweep(*small, picture(2), "what is here ?", {"S": [20, 40, 60]}, avl.AVL(S=60), 9, stop=stop)
    for row in found:
        if row.point == 1:
            stop.set()
    assert [row.point for row in found.result.rows] == [None, 0, 1]
    assert (found.verdict.reason, found.verdict.measured, found.verdict.planned) == ("stopped", 2, 3)
    assert found.verdict.text.startswith("2 of 3 points were measured.")


def test_a_stop_before_full_attentions_end_leaves_nothing_to_compare(small):
    stop = threading.Event()
    stop.set()
    found = avl.sweep(*small, picture(2), "what is here ?", {"S": [20, 40]}, avl.AVL(S=60), 9, stop=stop)
    assert list(found) == []
    assert found.verdict.kept == ()
    assert "nothing to compare with" in found.verdict.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"over": {"Q": [1]}}, "no parameter"),
        ({"over": {"layer": [99]}, "policy": avl.FastV()}, "no point of this sweep is valid"),
        ({"policy": "avl"}, "is not a policy"),
        ({"batch": 0}, "batch=0"),
        ({"max_new_tokens": 10**5}, "."),
        ({"stop": 1}, "cannot be asked"),
        ({"image": "no-such-file.png"}, "no-such-file"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(small, options, said):
    given = {"image": picture(2), "over": {"S": [20]}, "policy": avl.AVL(S=60), **options}
    with pytest.raises(ValueError, match=said):
        avl.sweep(*small, given.pop("image"), "what ?", given.pop("over"), given.pop("policy"), **given)


def test_an_unknown_argument_is_named(small):
    with pytest.raises(TypeError, match="no argument 'scores'"):
        avl.sweep(*small, picture(2), "what ?", {"S": [20]}, scores=True)


def test_json_and_csv_hold_every_row_and_what_was_skipped(small):
    found = avl.sweep(*small, picture(2), "what is here ?", {"S": [0, 20, 60], "C": [None, 40]}, avl.AVL(S=60), 5)
    rows = list(found)
    told = json.loads(found.result.to_json())
    assert [row["point"] for row in told["rows"]] == [None, 0, 1, 2]
    assert told["start"]["skipped"][0]["values"] == {"S": 0, "C": None}
    assert told["end"]["text"] == found.verdict.text
    lines = list(csv.DictReader(io.StringIO(found.result.to_csv())))
    assert [(line["S"], line["C"]) for line in lines] == [
        ("", ""),
        ("20", "off"),
        ("60", "off"),
        ("60", "40"),
        *[("0", "off"), ("0", "40"), ("20", "40")],
    ]
    assert [line["policy"] for line in lines[4:]] == ["skipped"] * 3
    assert float(lines[1]["stored_share"]) == pytest.approx(rows[1].stored_share)


# verdicts, on made-up answers: policy -> tokens


def told(over, answers, policy=None, *, repeats=1, fail_at=None) -> Sweep:
    """A sweep whose point with the values ``v`` answers ``answers[v]``; full attention answers 1 2 3 4."""
    chosen = plan(policy or avl.AVL(S=50, C=10), over)
    request = sweeping.sweep_request([picture(2)], "what ?", chosen, max_new_tokens=6, repeats=repeats)

    def run(asked: GenerationRequest, stop: threading.Event) -> Iterator[Event]:
        given = [[1, 2, 3, 4], *(answers[next(iter(point.values.values()))] for point in chosen.points)]
        yield start(asked)
        for arm, tokens in enumerate(given[: len(asked.policies)]):
            if isinstance(asked, sweeping.SweepRequest) and arm == fail_at:
                yield Error("The device ran out of memory.", arm)
                return
            yield Warning("slow", arm)
            yield Prefill(arm, 5.0, tokens[0], "a", (1,), 10, 10)
            for t, token in enumerate(tokens[1:], 1):
                yield Step(arm, t, token, "a", 2.0, 7.0, 1, 1, 10, 10, False)
            yield End(arm, "eos", "a", tuple(tokens), 5.0, 2.0, 9.0, *stored(asked.policies[arm], len(tokens)), 10)
        for number in range(1, asked.repeats):
            for arm in range(len(asked.policies)):
                yield Repeat(arm, number, 6.0, 3.0, 9.0, "eos", (9,) if arm == 1 else tuple(given[arm]))

    sweep = Sweep()
    for event in sweeping.with_sweeps(run)(request, threading.Event()):
        sweep.add(event)
    return sweep


def start(request: GenerationRequest) -> Start:
    arms = tuple(Arm(policy.label, policy.to_dict(), "reference") for policy in request.policies)
    return Start(
        arms, "isolated", request.question, "", {"name": "made up"}, {"cpu": "none"}, "2026-01-01", 100, 10, (), ((8, 8),), (), 2, 64,
        request.batch, request.max_new_tokens, 0.0, 1.0, None,
    )  # fmt: skip


def stored(policy, tokens: int) -> tuple[float, float]:
    from avl.policies import PromptShape
    from avl.policies.cost import mean_cost

    cost = mean_cost(policy, PromptShape(100, 10, 6, 2), range(1, tokens) if tokens > 1 else [0])
    return 32 * cost.stored, 32 * cost.read


SAME, OTHER = [1, 2, 3, 4], [1, 2, 9]


def test_the_smallest_value_that_keeps_the_answer():
    end = told({"S": [20, 30, 40, 50]}, {20: OTHER, 30: SAME, 40: SAME, 50: SAME}).end
    assert (end.kept, end.cheapest, end.safe) == ((1, 2, 3), 1, 1)
    assert end.text.startswith("S=30 is the smallest value that keeps the whole answer: it stores ")


def test_both_values_are_told_where_a_larger_one_fails():
    end = told({"S": [50, 40, 30, 20]}, {20: SAME, 30: OTHER, 40: SAME, 50: SAME}).end
    assert (end.kept, end.cheapest, end.safe) == ((0, 1, 3), 3, 1)
    assert "S=20 is the smallest value" in end.text
    assert "But S=30 does not keep it, although no less is stored or read there; from S=40 on all do." in end.text


def test_there_is_no_safe_value_where_the_largest_fails():
    end = told({"S": [20, 30, 40]}, {20: SAME, 30: OTHER, 40: OTHER}).end
    assert (end.cheapest, end.safe) == (0, None)
    assert "But 2 values do not keep it" in end.text


def test_for_an_interval_the_largest_value_is_the_cheapest():
    end = told({"K": [1, 2, 4]}, {1: SAME, 2: SAME, 4: OTHER}).end
    assert (end.cheapest, end.safe) == (1, 1)
    assert "K=2 is the largest value" in end.text


def test_a_short_answer_does_not_make_a_point_look_cheap():
    """Of sizes alone: S=39's answer of one token stores less than the longer one of S=38, and is still the costlier point."""
    sweep = told({"S": [38, 39]}, {38: SAME, 39: [1]}, avl.AVL(S=50))
    assert sweep.rows[2].stored_bytes < sweep.rows[1].stored_bytes
    assert (sweep.end.cheapest, sweep.end.safe) == (0, None)


def test_where_nothing_differs_in_cost_no_value_is_called_smallest_and_none_is_safe():
    end = told({"pool": [3, 5, 7]}, {3: SAME, 5: OTHER, 7: SAME}, avl.SnapKV(keep=50)).end
    assert (end.cheapest, end.safe) == (0, None)
    assert "pool=3 is the cheapest value" in end.text
    assert "But pool=5 does not keep it, although no less is stored or read there." in end.text


def test_off_is_a_value_like_others():
    end = told({"C": [10, None]}, {10: OTHER, None: SAME}, avl.AVL(S=50)).end
    assert (end.cheapest, end.safe) == (1, 1)
    assert end.text.startswith("C=off is the cheapest value")


def test_no_point_keeps_it():
    end = told({"S": [20, 30]}, {20: [1, 9], 30: OTHER}).end
    assert (end.kept, end.cheapest, end.safe) == ((), None, None)
    assert end.text == "No point keeps the whole answer; S=30 comes closest, with the first 2 of its 4 tokens."


def test_a_grid_has_one_cheapest_point_and_no_safe_one():
    end = told({"S": [20, 30], "C": [5, 10]}, {20: OTHER, 30: SAME}).end
    assert (end.kept, end.cheapest, end.safe) == ((2, 3), 2, None)
    assert end.text.startswith("2 of 4 points keep the whole answer; S=30, C=5 is the cheapest of them")


def test_answers_that_were_cut_are_said_to_be(small):
    found = avl.sweep(*small, picture(2), "what is here ?", {"K": [1]}, avl.AVL(S=100, C=100), 2)
    assert {row.reason for row in found} == {"length"}
    assert found.verdict.text.endswith("Answers were cut at 2 tokens.")


def test_a_failure_is_told_and_ends_the_sweep():
    sweep = told({"S": [20, 30]}, {20: SAME, 30: SAME}, fail_at=2)
    assert sweep.errors == ["The device ran out of memory."]
    assert (sweep.end.reason, sweep.end.measured) == ("failed", 1)


def test_the_library_raises_a_failure_and_keeps_the_rows():
    def events() -> Iterator[Event]:
        yield from told({"S": [20, 30]}, {20: SAME, 30: SAME}, fail_at=2).events

    found = sweeping.Sweeping(events())
    with pytest.raises(RuntimeError, match="ran out of memory"):
        list(found)
    assert len(found.result.rows) == 2
    with pytest.raises(ValueError, match="has not ended"):
        _ = found.verdict


def test_warnings_of_a_point_are_notes_of_its_row_and_so_is_a_repeat_that_differs():
    sweep = told({"S": [20]}, {20: SAME}, repeats=2)
    assert [row.notes for row in sweep.rows] == [("Slow.",), ("Slow.", "Run 2 gave another answer.")]
    assert [type(event) for event in sweep.events] == [SweepStart, *[SweepPoint] * 4, SweepEnd]
    assert not any(isinstance(event, SweepProgress) for event in sweep.events)


def test_texts_are_no_formulas_in_the_csv():
    sweep = told({"S": [20]}, {20: SAME})
    row = sweep.rows[1]
    object.__setattr__(row, "text", "=1+1")
    assert "'=1+1" in sweep.to_csv()
