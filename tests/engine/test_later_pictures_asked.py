"""avl.Conversation with pictures in later turns: re-read, resumed, interrupted; grids, scores and memory."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from observed import timeless
from random_models import build_model, picture, shared_processor
from test_conversation import LIMIT, PAPER, POLICIES, QUESTIONS, TOLD, told

import avl
from avl.engine.conversation import Conversation
from avl.trace import End, Prefill, Scores, Sets, Start, Step, Trace, unpack_bits, unpack_scores

ARCHITECTURES = ("llava-llama", "next-mistral")
PICTURES = (None, picture(2, 44, 30), [picture(3, 28, 28), picture(4, 20, 60)])
"""Of every turn."""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request):
    return avl.attach(build_model(request.param)), shared_processor(request.param)


@pytest.fixture
def chat(loaded):
    with avl.Conversation(*loaded, picture(1), POLICIES, max_new_tokens=LIMIT) as chat:
        yield chat


def test_full_attention_says_what_generate_says(loaded):
    """Three turns, three pictures more: the tokens of ``generate`` on the whole conversation as the processor reads it."""
    model, processor = loaded
    shown, text = [picture(1)], f"USER: <image> {QUESTIONS[0]} ASSISTANT:"
    with avl.Conversation(model, processor, picture(1), avl.Full(), max_new_tokens=LIMIT) as chat:
        for number, (question, images) in enumerate(zip(QUESTIONS, PICTURES, strict=True)):
            said = chat.ask(question, images=images)
            if number:
                new = images if isinstance(images, list) else [images]
                shown += new
                text += f" USER: {'<image> ' * len(new)}{question} ASSISTANT:"
            inputs = processor(images=shown, text=[text], return_tensors="pt")
            out = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert tuple(out.tolist()) == said.tokens
            text += " " + processor.tokenizer.decode(out)
            if number:
                assert said.new_tokens > 16 * len(new)


def test_kept_and_reread(chat):
    """Full attention says the same either way; grids cover every turn's image tokens; events can be written; sets grow by new tokens."""
    stored, size = None, 0
    for number, (question, images) in enumerate(zip(QUESTIONS, PICTURES, strict=True)):
        events = list(chat.stream(question, images=images, reread=number > 0))
        start, ends = events[0], {event.arm: event for event in events if isinstance(event, End)}
        assert Trace.from_json(Trace(events).to_json()).events == events
        assert len(start.images) == (1, 2, 4)[number]
        assert sorted({grid.image for grid in start.grids}) == list(range(len(start.images)))
        last = max(start.grids, key=lambda grid: grid.first)
        assert last.first + last.rows * (last.cols + last.newline) == start.n_image
        for place, arm in enumerate(start.arms):
            steps = [event for event in events if isinstance(event, Step) and event.arm == place]
            assert [(step.stored, step.read) for step in steps] == list(arm.predicted)
            assert arm.new_tokens is None or len(arm.text) == arm.n_text
        if number:
            assert ends[0].tokens == ends[3].tokens, "full attention loses nothing"
            assert start.prompt.count("<image>") == len(start.images) - (1, 1, 2)[number]
        sets = [secondary for secondary, _ in chat.caches[1].image_sets()]
        if stored is not None:
            assert all({token for token in now if token < size} == set(past) for now, past in zip(sets, stored, strict=True))
            assert all(any(token >= size for token in now) for now in sets)
        stored, size = sets, start.n_image
    pruned = next(event for event in events if isinstance(event, Sets) and event.arm == 1).pruned
    gone = unpack_bits(pruned, start.n_image).nonzero()[0]
    assert gone.min() < 16 <= 48 <= gone.max(), "of the first turn's picture, and of the last one's"


def test_resumed_is_uninterrupted(loaded):
    policies = [*POLICIES, avl.SnapKV(keep=50, window=6, pool=3)]
    with avl.Conversation(*loaded, picture(1), policies, max_new_tokens=LIMIT) as chat:
        chat.ask(QUESTIONS[0])
        chat.ask(QUESTIONS[1], images=PICTURES[1], max_new_tokens=9)
        history = chat.history
        expected = list(chat.stream(QUESTIONS[2], images=PICTURES[2], reread=[1], scores=True))
    assert [len(said.images) for said in chat.history] == [0, 1, 2]
    resumed = avl.Conversation.resumed(*loaded, picture(1), policies, history, max_new_tokens=LIMIT)
    events = list(resumed.stream(QUESTIONS[2], images=PICTURES[2], reread=[1], scores=True))
    assert told(events, *TOLD, Scores) == told(expected, *TOLD, Scores)
    assert timeless(events[:1]) == timeless(expected[:1])
    assert resumed.history == chat.history
    start = events[0]
    for arm in range(len(policies)):
        first = next(event for event in events if isinstance(event, Scores) and (event.arm, event.t) == (arm, 0))
        scores = [unpack_scores(packed, start.n_image) for packed in first.image]
        assert all(one[-16:].sum() > 0 for one in scores), "the last query reads the newest picture"
        assert all(abs(sum(shares) - 1) < 1e-3 for shares in first.shares)


@pytest.mark.parametrize(("how", "after"), [("closed", Start), ("stopped", Start), ("closed", Prefill), ("asked", 1)])
def test_an_interrupted_answer_is_continued(loaded, how, after):
    """Also where some policies never read the picture: they read it with the next question's."""
    chat = avl.Conversation(*loaded, picture(1), POLICIES[:2], max_new_tokens=LIMIT)
    chat.ask(QUESTIONS[0])
    stop = threading.Event()
    events = chat.stream(QUESTIONS[1], stop, images=PICTURES[1])
    for event in events:
        if isinstance(event, after) if isinstance(after, type) else isinstance(event, Step) and event.t == after:
            break
    if how == "stopped":
        stop.set()
        list(events)
    elif how == "closed":
        events.close()
    expected = list(chat.stream(QUESTIONS[2], images=PICTURES[2]))
    assert len([one for one in expected if isinstance(one, End) and one.reason == "length"]) == 2
    assert len(expected[0].images) == (3 if after is Start else 4)
    assert (expected[0].arms[1].new_tokens > expected[0].arms[0].new_tokens) == (after is Prefill)
    resumed = avl.Conversation.resumed(*loaded, picture(1), POLICIES[:2], chat.history[:-1], max_new_tokens=LIMIT)
    assert told(resumed.stream(QUESTIONS[2], images=PICTURES[2]), *TOLD) == told(expected, *TOLD)


def test_memory_is_given_back(loaded):
    """Caches, and what the processor made of the pictures."""
    chat = avl.Conversation(*loaded, picture(1), POLICIES, max_new_tokens=LIMIT)
    for question, images in zip(QUESTIONS, PICTURES, strict=True):
        chat.ask(question, images=images, reread=bool(chat.history))
        assert all(cache.peak_bytes >= cache.allocated_bytes >= cache.stored_bytes > 0 for cache in chat.caches)
    held = [weakref.ref(one) for cache in chat.caches for one in (cache, cache.layers[0].kvs[0].keys)]
    held += [weakref.ref(turn.pictures["pixel_values"]) for line in chat._lines for turn in line.passed[1:]]
    assert all(one() is not None for one in held)
    chat.close()
    gc.collect()
    assert [one() for one in held] == [None] * 12
    assert [len(said.images) for said in chat.history] == [0, 1, 2]


def test_an_answer_that_ends_in_a_placeholder_says_so(loaded):
    model, processor = loaded
    with avl.Conversation(model, processor, picture(1), PAPER, max_new_tokens=LIMIT) as chat:
        chat.ask(QUESTIONS[0])
        history = chat.history
    said = type(history[0])(QUESTIONS[0], LIMIT, ((*history[0].answers[0][:-1], model.config.image_token_id),))
    going = Conversation.resumed(model, processor, picture(1), PAPER, [said], max_new_tokens=LIMIT)
    with pytest.raises(ValueError, match="the last answer ends in the placeholder of a picture"):
        going.stream(QUESTIONS[1], images=PICTURES[1])
    assert going.ask(QUESTIONS[1]).tokens
