"""avl.Conversation: turns as runs, histories of their own, interruptions, failures, memory, and going on from what was said."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from observed import timeless
from random_models import BOS, CONTEXT, build_model, picture, shared_processor

import avl
from avl.engine import runner as running
from avl.engine.conversation import Said
from avl.engine.decoder import Decoder
from avl.trace import End, Error, Prefill, Scores, Sets, Start, Step, TextSets, Trace, Warning

LIMIT = 6
QUESTIONS = ("what is on the sign ?", "is w1 red ?", "what w3 w4 w5 w6 ?")
POLICIES = [avl.Full(), avl.AVL(S=45, C=30, K=3, P=70, T=50), avl.H2O(keep=50)]
PAPER = POLICIES[1]


@pytest.fixture(scope="module")
def model():
    model = build_model("next-mistral")
    return avl.attach(model)


@pytest.fixture(scope="module")
def processor():
    return shared_processor("next-mistral")


@pytest.fixture
def chat(model, processor):
    with avl.Conversation(model, processor, picture(1), POLICIES, max_new_tokens=LIMIT) as chat:
        yield chat


def told(events, *kinds) -> list:
    """Events of some kinds without clocks, arm by arm: a race's order depends on clocks."""
    return sorted((one for one in timeless(events) if isinstance(one, kinds)), key=lambda one: (one.kind, one.arm, getattr(one, "t", 0)))


TOLD = (Prefill, Step, Sets, TextSets, End)


def test_a_first_turn_is_a_race(model, processor, chat):
    events = list(chat.stream(QUESTIONS[0]))
    plain = list(avl.race(model, processor, picture(1), QUESTIONS[0], POLICIES, max_new_tokens=LIMIT))
    assert told(events, *TOLD) == told(plain, *TOLD)
    assert timeless(events[:1]) == timeless(plain[:1])
    single = avl.Conversation(model, processor, picture(1), PAPER, max_new_tokens=LIMIT)
    assert timeless(single.stream(QUESTIONS[0])) == timeless(
        avl.stream(model, processor, picture(1), QUESTIONS[0], PAPER, max_new_tokens=LIMIT)
    )


def test_three_turns_kept_and_reread(chat):
    """Full attention says the same either way; every policy has a history of its own; events are those of a run and can be written."""
    answers: list[tuple[str, ...]] = [(), (), ()]
    for number, question in enumerate(QUESTIONS):
        events = list(chat.stream(question, reread=number > 0))
        start = events[0]
        assert Trace.from_json(Trace(events).to_json()).events == events
        assert (start.turn, start.questions, start.question) == (number + 1, QUESTIONS[:number], question)
        ends = {event.arm: event for event in events if isinstance(event, End)}
        first = {event.arm: event for event in events if isinstance(event, Prefill)}
        assert len(ends) == len(start.arms) == (6 if number else 3)
        for place, arm in enumerate(start.arms):
            kept, label = POLICIES[place % 3], POLICIES[place % 3].label
            if not number:
                assert (arm.answers, arm.new_tokens, arm.n_text) == ((), None, None)
                continue
            assert arm.label == label + (" re-read" if place > 2 else "")
            assert (arm.answers, arm.reread) == (answers[place % 3], place > 2)
            assert len(arm.text) == arm.n_text
            assert arm.spans[-1][2] == start.n_image + arm.n_text
            assert sum(stop - first for name, first, stop in arm.spans if name == "generated") == number * LIMIT - 1 + 1
            assert arm.new_tokens == (start.n_image + arm.n_text if place > 2 else start.prompt.count(" ") + 1)
            steps = [event for event in events if isinstance(event, Step) and event.arm == place]
            assert [(step.stored, step.read) for step in steps] == list(arm.predicted)
            sets = [event for event in events if isinstance(event, Sets) and event.arm == place]
            assert sets[0].t == 0
            assert kept == avl.Full() or sum(first[place].stored) < sum(first[3].stored)
        if number:
            assert ends[0].tokens == ends[3].tokens, "full attention loses nothing"
        answers = [(*before, ends[arm].text) for arm, before in enumerate(answers)]
    assert chat.answers == tuple(answers)
    assert len({ends[arm].tokens for arm in (0, 1, 2, 4, 5)}) > 2, "the answers above could not be told apart"


def test_what_is_evicted_stays_evicted(chat):
    stored = None
    for question in QUESTIONS:
        events = list(chat.stream(question))
        cache = chat.caches[1]
        sets, text = cache.image_sets(), [set(cache.text_positions(layer, 0)) for layer in range(4)]
        if stored is not None:
            assert [secondary for secondary, _ in sets] == [secondary for secondary, _ in stored[0]]
            assert any(core != before for (_, core), (_, before) in zip(sets, stored[0], strict=True))
            before = events[0].n_image + events[0].arms[1].n_text - events[0].arms[1].new_tokens
            for now, past in zip(text, stored[1], strict=True):
                assert {position for position in now if position < before} <= past
        stored = sets, text


def test_ask_tells_the_answers(model, processor):
    with avl.Conversation(model, processor, picture(1), PAPER, max_new_tokens=LIMIT) as chat:
        first = chat.ask(QUESTIONS[0])
        second = chat.ask(QUESTIONS[1], max_new_tokens=3)
        kept, again = chat.ask(QUESTIONS[2], reread=True)
        assert (len(first.tokens), len(second.tokens), second.reason) == (LIMIT, 3, "length")
        assert first.new_tokens > 70 > 20 > second.new_tokens
        assert again.new_tokens > first.new_tokens > kept.new_tokens
        assert min(first.ms, second.first_ms, kept.stored_bytes) > 0
        assert chat.answers == ((first.text, second.text, kept.text),)
        assert chat.stored_bytes == chat.caches[0].stored_bytes > 0


def test_resumed_is_uninterrupted(model, processor, chat):
    """Sets, counts and tokens of every policy and step, and the attention of every pass; also after one that ended early."""
    ends = build_model("next-mistral")
    for subject in (model, ends):
        with avl.Conversation(subject, processor, picture(1), POLICIES, max_new_tokens=LIMIT) as chat:
            chat.ask(QUESTIONS[0])
            subject.generation_config.eos_token_id = None if subject is model else chat.history[0].answers[1][2]
        try:
            with avl.Conversation(subject, processor, picture(1), POLICIES, max_new_tokens=LIMIT) as chat:
                chat.ask(QUESTIONS[0])
                chat.ask(QUESTIONS[1], max_new_tokens=9)
                history = chat.history
                expected = list(chat.stream(QUESTIONS[2], reread=[1], scores=True))
            assert subject is model or len(history[0].answers[1]) == 3
            resumed = avl.Conversation.resumed(subject, processor, picture(1), POLICIES, history, max_new_tokens=LIMIT)
            events = list(resumed.stream(QUESTIONS[2], reread=[1], scores=True))
            assert told(events, *TOLD, Scores) == told(expected, *TOLD, Scores)
            assert timeless(events[:1]) == timeless(expected[:1])
            rebuilt = [event.arm for event in events if isinstance(event, Warning) and "built again" in event.message]
            assert rebuilt == [0, 1, 2]
            assert len(resumed.history) == 3
        finally:
            subject.generation_config.eos_token_id = None


def test_the_end_of_an_answer_is_fed_once(processor):
    """The end that the model generated leads the next turn; the test's template writes none of its own."""
    model = build_model("next-mistral")
    with avl.Conversation(model, processor, picture(1), PAPER, max_new_tokens=LIMIT) as chat:
        tokens = chat.ask(QUESTIONS[0]).tokens
        model.generation_config.eos_token_id = tokens[3]
    with avl.Conversation(model, processor, picture(1), PAPER, max_new_tokens=LIMIT) as chat:
        assert chat.ask(QUESTIONS[0]).tokens == tokens[:3]
        assert chat.history[0].answers == (tokens[:4],)
        start = next(iter(chat.stream(QUESTIONS[1])))
        follows = processor.tokenizer("a" + start.prompt, add_special_tokens=False)["input_ids"][1:]
        assert start.arms[0].new_tokens == 1 + len(follows)
        assert BOS not in follows


@pytest.mark.parametrize(
    ("how", "after"),
    [("closed", Start), ("stopped", Start), ("closed", Prefill), ("stopped", 1), ("asked", 1), ("closed", 4)],
)
def test_an_interrupted_answer_is_continued(model, processor, how, after):
    """Wherever it broke off, the next question follows what was said until then; the same as resumed from the history."""
    for turn in (0, 1):
        chat = avl.Conversation(model, processor, picture(1), POLICIES[:2], max_new_tokens=LIMIT)
        if turn:
            chat.ask(QUESTIONS[0])
        stop = threading.Event()
        events = chat.stream(QUESTIONS[turn], stop)
        seen = []
        for event in events:
            seen.append(event)
            if isinstance(event, after) if isinstance(after, type) else isinstance(event, Step) and event.t == after:
                break
        if how == "stopped":
            stop.set()
            seen += events
            assert {event.reason for event in seen if isinstance(event, End)} <= {"stopped", "length"}
        elif how == "closed":
            events.close()
        said = [[] for _ in POLICIES[:2]]
        if how != "asked":
            for event in seen:
                if isinstance(event, Prefill | Step):
                    said[event.arm].append(event.token)
            assert not any(said) or [list(one) for one in chat.history[-1].answers] == said
            assert len(chat.history) == turn + any(map(len, said))
        expected = list(chat.stream(QUESTIONS[2]))
        assert len([one for one in expected if isinstance(one, End) and one.reason == "length"]) == 2
        resumed = avl.Conversation.resumed(model, processor, picture(1), POLICIES[:2], chat.history[:-1], max_new_tokens=LIMIT)
        assert told(resumed.stream(QUESTIONS[2]), *TOLD) == told(expected, *TOLD)


def test_memory_is_given_back(model, processor):
    chat = avl.Conversation(model, processor, picture(1), POLICIES, max_new_tokens=LIMIT)
    for question in QUESTIONS:
        chat.ask(question, reread=bool(chat.history))
        assert all(cache.peak_bytes >= cache.allocated_bytes >= cache.stored_bytes > 0 for cache in chat.caches)
    held = [weakref.ref(one) for cache in chat.caches for one in (cache, cache.layers[0].kvs[0].keys)]
    chat.close()
    gc.collect()
    assert [one() for one in held] == [None] * 6
    assert chat.stored_bytes == 0
    assert len(chat.history) == 3
    with pytest.raises(ValueError, match="was closed: begin another one"):
        chat.ask("what ?")


def test_a_failure_breaks_it_and_frees_it(model, processor, chat, monkeypatch):
    chat.ask(QUESTIONS[0])
    held = weakref.ref(chat.caches[0])
    step = Decoder.step
    calls = itertools.count()

    def fail(self, tokens):
        if next(calls) == 4:
            raise MemoryError
        return step(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", fail)
        events = list(chat.stream(QUESTIONS[1]))
    assert isinstance(events[-1], Error)
    gc.collect()
    assert held() is None
    with pytest.raises(ValueError, match=r"broke off \(the device ran out of memory.*resumed"):
        chat.ask(QUESTIONS[1])
    going = avl.Conversation.resumed(model, processor, picture(1), POLICIES, chat.history, max_new_tokens=LIMIT)
    going.ask(QUESTIONS[1])
    monkeypatch.setattr(running.Decoder, "extend", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        going.ask(QUESTIONS[2])
    with pytest.raises(ValueError, match=r"broke off \(division by zero\)"):
        going.ask(QUESTIONS[2])


def test_one_answer_at_a_time(chat):
    """From another thread, a running answer is not touched: here, from within it."""
    refused = []

    class Asks:
        def is_set(self) -> bool:
            if not refused:
                for again in (lambda: chat.stream(QUESTIONS[1]), chat.close):
                    with pytest.raises(ValueError, match="runs in another thread: set its stop") as raised:
                        again()
                    refused.append(raised)
            return False

    chat.ask(QUESTIONS[0], Asks())
    assert len(refused) == 2
    assert len(chat.history) == 1
    chat.ask(QUESTIONS[1])


def test_refusals_lose_nothing(model, processor, chat):
    chat.ask(QUESTIONS[0])
    before = [cache.stored_bytes for cache in chat.caches]
    for asked, options, sentence in (
        ("what ?", {"max_new_tokens": CONTEXT}, f"the model's context has {CONTEXT}: shorten the question"),
        ("<image> what ?", {}, "has 1 placeholders <image> for 0 new pictures: pass the pictures with the question"),
        (avl.Prompt("what ?"), {"images": picture(2)}, "has 0 placeholders <image> for 1 new pictures"),
        ("what ?", {"images": [b"no picture"]}, "not a picture"),
        ("what ?", {"images": [picture(seed, 60, 60) for seed in range(6)]}, f"the model's context has {CONTEXT}: shorten"),
        (" ", {}, "the question is empty"),
        ("what ?", {"batch": 2}, "batch cannot differ between the turns"),
        ("what ?", {"policies": []}, "policies cannot differ"),
        ("what ?", {"repeats": 2}, "repeats=2 is possible in a first turn only"),
        ("what ?", {"agreement": True}, "agreement=True is possible in a first turn only"),
        ("what ?", {"reread": [3]}, "names no policies: use their numbers, 0 to 2"),
        ("what ?", {"temperature": -1}, "temperature=-1 is out of range"),
    ):
        with pytest.raises(ValueError, match=sentence):
            chat.stream(asked, **options)
    assert [cache.stored_bytes for cache in chat.caches] == before
    assert len(chat.history) == 1
    chat.ask(QUESTIONS[1])
    with pytest.raises(ValueError, match="reread begins with the second"):
        avl.Conversation(model, processor, picture(1), PAPER).stream("what ?", reread=True)
    with pytest.raises(ValueError, match="pass them to Conversation"):
        avl.Conversation(model, processor, picture(1), PAPER).stream("what ?", images=picture(2))
    with pytest.raises(ValueError, match="batch=2 is not possible"):
        avl.Conversation(model, processor, picture(1), PAPER, batch=2)
    with pytest.raises(ValueError, match="answers of 1 policies, this conversation has 3"):
        avl.Conversation.resumed(model, processor, picture(1), POLICIES, [Said("what ?", 3, ((40,),))])


def test_a_whole_prompt_goes_on_as_one(model, processor):
    with avl.Conversation(model, processor, picture(1), PAPER, max_new_tokens=LIMIT) as chat:
        chat.ask(avl.Prompt("USER: <image> what is left ? ASSISTANT:"))
        with pytest.raises(ValueError, match="an earlier turn was a whole prompt"):
            chat.ask("is w1 red ?")
        start = next(iter(chat.stream(avl.Prompt(" USER: is w1 red ? ASSISTANT:"))))
        assert start.prompt == " USER: is w1 red ? ASSISTANT:"
        assert start.arms[0].new_tokens == 7


def test_scores_of_a_later_turn_are_those_of_its_passes(chat):
    """Replayed through all turns: every pass of this turn, shares that add up, and nothing where nothing is stored."""
    chat.ask(QUESTIONS[0])
    events = list(chat.stream(QUESTIONS[1], scores=True))
    start = events[0]
    for arm in range(3):
        passes = [event for event in events if isinstance(event, Scores) and event.arm == arm]
        assert [event.t for event in passes] == list(range(LIMIT))
        stored = next(event for event in events if isinstance(event, Sets) and event.arm == arm).stored
        for layer, packed in enumerate(passes[0].image):
            from avl.trace import unpack_bits, unpack_scores

            scores, held = unpack_scores(packed, start.n_image), unpack_bits(stored[layer], start.n_image)
            assert scores.sum() > 0
            if arm == 1:
                assert not scores[~held].any()
        assert all(abs(sum(shares) - 1) < 1e-3 for event in passes for shares in event.shares)
        assert passes[0].shares[0][3] > 0, "the earlier answer is read too"


def test_sampling_repeats_with_its_seed(model, processor):
    found = []
    for _ in range(2):
        with avl.Conversation(model, processor, picture(1), PAPER, max_new_tokens=LIMIT, temperature=1.0, seed=5) as chat:
            found.append([chat.ask(question).tokens for question in QUESTIONS])
    assert found[0] == found[1]


def test_settings_look_at_the_whole_conversation(model, processor):
    """A penalty sees what earlier turns said, as in ``generate`` of the whole conversation."""
    model.generation_config.no_repeat_ngram_size = 1
    try:
        with avl.Conversation(model, processor, picture(1), avl.Full(), max_new_tokens=LIMIT) as chat:
            first, second = (chat.ask(question).tokens for question in QUESTIONS[:2])
    finally:
        model.generation_config.no_repeat_ngram_size = None
    assert not set(first) & set(second)


def test_isolated_arms_follow_one_another(chat):
    chat.ask(QUESTIONS[0], mode="isolated")
    arms = [event.arm for event in chat.stream(QUESTIONS[1], mode="isolated", reread=True) if isinstance(event, Prefill | Step | End)]
    assert arms == sorted(arms)
    assert set(arms) == set(range(6))


def test_half_precision(processor):
    model = build_model("llava-llama", dtype=torch.bfloat16)
    with avl.Conversation(model, shared_processor("llava-llama"), picture(1), PAPER, max_new_tokens=3) as chat:
        assert [len(chat.ask(question).tokens) for question in QUESTIONS] == [3, 3, 3]


def test_answers_of_two_conversations_do_not_meet(model, processor):
    apart = []
    for policy in POLICIES[:2]:
        with avl.Conversation(model, processor, picture(1), policy, max_new_tokens=LIMIT) as chat:
            apart.append([timeless(chat.stream(question)) for question in QUESTIONS])
    chats = [avl.Conversation(model, processor, picture(1), policy, max_new_tokens=LIMIT) for policy in POLICIES[:2]]
    for number, question in enumerate(QUESTIONS):
        found = [[], []]
        for pair in itertools.zip_longest(*(chat.stream(question) for chat in chats)):
            for place, event in enumerate(pair):
                found[place] += [] if event is None else [event]
        assert [timeless(events) for events in found] == [events[number] for events in apart]


def test_history_is_plain(chat):
    chat.ask(QUESTIONS[0])
    assert chat.history == (Said(QUESTIONS[0], LIMIT, chat.history[0].answers),)
    assert replace(chat.history[0], question="?").answers == chat.history[0].answers
