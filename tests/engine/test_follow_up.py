"""Further questions as requests: caches that wait, caches that are built again, and histories that a program made up."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import pytest
from random_models import build_model, picture, shared_processor

import avl
from avl.engine import scheduler
from avl.engine.conversation import Said
from avl.engine.follow_up import MAX_TURNS, FollowUpRequest, FollowUps, options_of, said_in
from avl.engine.request import GenerationRequest
from avl.trace import End, Sets, Start, Trace, Warning

POLICIES = (avl.Full(), avl.AVL(S=60, C=30, K=2, T=60), avl.H2O(keep=50))


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    return build_model("llava-llama"), shared_processor("llava-llama")


@pytest.fixture(scope="module")
def first(small: tuple[Any, Any]) -> tuple[GenerationRequest, Said]:
    """A first question and what was said to it."""
    request = GenerationRequest((picture(2),), "what is here ?", POLICIES, 5)
    said = said_in(Trace(list(scheduler.run(*small, request))))
    assert said is not None
    return request, said


def served(small: tuple[Any, Any], **options: Any) -> FollowUps:
    return FollowUps(*small, partial(scheduler.run, *small), **options)


def asked(first: tuple[GenerationRequest, Said], *more: Said, name: str = "one", **changes: Any) -> FollowUpRequest:
    request, said = first
    values = {"question": "and where ?", "history": (said, *more), "conversation": name, **options_of(request), **changes}
    return FollowUpRequest(images=request.images, **values)


def run(race: FollowUps, request: GenerationRequest) -> Trace:
    return Trace(list(race(request, threading.Event())))


def told(trace: Trace) -> list[Any]:
    """What does not depend on the clock."""
    ends = sorted(trace.of(End), key=lambda end: end.arm)
    return [(end.tokens, end.stored_bytes, end.peak_bytes) for end in ends] + sorted(map(repr, trace.of(Sets)))


def test_a_waiting_cache_gives_what_one_that_is_built_again_gives(small, first):
    race = served(small)
    second = run(race, asked(first))
    start: Start = second.start
    assert (start.turn, start.questions) == (2, ("what is here ?",))
    assert [arm.reread for arm in start.arms] == [False] * 3 + [True] * 3
    assert len(second.of(Warning)) == 3  # the first question ran elsewhere
    assert race.held_bytes > 0
    said = said_in(second)
    assert said is not None
    third = asked(first, said, question="then ?")
    waited = run(race, third)
    assert not waited.of(Warning)
    again = run(served(small), third)
    assert len(again.of(Warning)) == 3
    assert told(waited) == told(again)


def test_caches_leave_with_the_next_run_another_history_or_time(small, first):
    race = served(small)
    run(race, asked(first))
    run(race, first[0])
    assert race.held_bytes == 0
    run(race, asked(first))
    assert len(run(race, asked(first, name="two")).of(Warning)) == 3  # somebody else's conversation, in the same words
    assert len(run(race, asked(first, name="two")).of(Warning)) == 3  # a branch from the first question, not from the second
    with pytest.raises(ValueError, match="question"):
        race(asked(first, name="two", question=" "), threading.Event())
    assert race.held_bytes == 0
    brief = served(small, seconds=0.05)
    run(brief, asked(first))
    limit = time.monotonic() + 10
    while brief.held_bytes:
        assert time.monotonic() < limit
        time.sleep(0.01)
    none = served(small, seconds=0)
    run(none, asked(first))
    assert none.held_bytes == 0


def test_a_refused_question_leaves_the_caches_that_wait(small, first):
    race = served(small)
    said = said_in(run(race, asked(first)))
    assert said is not None
    with pytest.raises(ValueError, match="picture"):
        race(asked(first, said, question="<image> ?"), threading.Event())
    assert not run(race, asked(first, said, question="then ?")).of(Warning)


def test_a_stopped_answer_is_asked_on_from_what_it_said(small, first):
    race, stop, events = served(small), threading.Event(), []
    for event in race(asked(first, reread=False), stop):
        events.append(event)
        if len(events) > 14:
            stop.set()
    said = said_in(Trace(events))
    assert said is not None
    assert all(0 < len(answer) < 5 for answer in said.answers)
    third = asked(first, said, question="then ?", reread=False)
    assert told(run(race, third)) == told(run(served(small), third))


@pytest.mark.parametrize(
    ("answers", "word"),
    [
        (((1,), (1,)), "answers of 2 policies"),
        (((1,), (1,), (10**9,)), "no token of an answer"),
        (((1,), (1,), (-1,)), "no token of an answer"),
        (((1,), (1,), ("image",)), "no token of an answer"),
    ],
)
def test_a_history_that_the_model_cannot_have_given_never_reaches_it(small, first, answers, word):
    picture_token = small[0].config.image_token_id
    made = tuple(tuple(picture_token if token == "image" else token for token in answer) for answer in answers)
    with pytest.raises(ValueError, match=word):
        run(served(small), asked(first, Said("made up", 5, made)))


def test_requests_are_refused_in_a_sentence(first):
    request, said = first
    options = options_of(request)
    with pytest.raises(ValueError, match="no question before"):
        FollowUpRequest(images=request.images, question="?", history=(), **options)
    with pytest.raises(ValueError, match=f"{MAX_TURNS} is the most"):
        FollowUpRequest(images=request.images, question="?", history=(said,) * MAX_TURNS, **options)
    with pytest.raises(ValueError, match="batch=2"):
        FollowUpRequest(images=request.images, question="?", history=(said,), **{**options, "batch": 2})
    assert asked(first).forced_passes == 3 + 3  # three answers again, and the tokens of three earlier ones
