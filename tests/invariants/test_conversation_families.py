"""Invariants of conversations in every model family: positions, masks and templates differ, what holds of LLaVA holds for all."""

from __future__ import annotations

import family_oracle
import pytest
import torch
from observed import converse
from test_families import CASES, assert_close, made, prompts
from test_oracle import check_sets
from tiny_families import MODELS
from tiny_families.base import RAGGED

import avl
from avl.models.families import describe, family_of

LIMIT = 4
NAMES = sorted(name for name in MODELS if family_of(MODELS[name].config()).no_turns() is None)
TURNS = ([50, 61, 75, 80, 33], 6), ([51, 62, 76], 3)
PASSES = LIMIT + sum(limit for _, limit in TURNS)
FAST = ("gemma3", "llava_next", "qwen2_vl")
"""Families whose slower tests run in the default tier: two-way masks, tiles, positions of their own."""

PER_TOKEN = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0}


def one(name):
    return name if name in FAST else pytest.param(name, marks=pytest.mark.slow)


def whole(inputs, ids):
    """The inputs of a prompt with more tokens behind it: ``ids``, of every row without padding."""
    length = max(map(len, ids))
    more = {name: torch.zeros(len(ids), length, dtype=torch.int64) for name in ("input_ids", *PER_TOKEN) if name in inputs}
    for row, tokens in enumerate(ids):
        pad = int(inputs["attention_mask"][row].argmax())
        for name, held in more.items():
            first = inputs[name][row, pad:]
            held[row, length - len(tokens) :] = PER_TOKEN.get(name, 0)
            held[row, length - len(tokens) : length - len(tokens) + len(first)] = first
            if name == "input_ids":
                held[row, length - len(tokens) :] = torch.tensor(tokens)
    return {**inputs, **more}


def real(inputs, ids):
    """Tokens ``ids [B, L]`` of every row without padding."""
    return [row[int(mask.argmax()) :].tolist() for row, mask in zip(ids, inputs["attention_mask"], strict=True)]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_full_is_the_whole_conversation(name):
    """The engine's passes over three turns: the logits of the model itself, which reads the conversation in one pass."""
    model, _ = made(name)
    inputs = prompts(name, RAGGED[1:2])
    feed = torch.randint(30, 100, (PASSES,), generator=torch.Generator().manual_seed(5)).tolist()
    observed = converse(model, inputs, avl.Full(), LIMIT, feed, TURNS)
    (ids,), rest, at = real(inputs, inputs["input_ids"]), iter(feed), []
    for new, limit in [((), LIMIT), *TURNS]:
        ids += new
        at += [len(ids) - 1 + t for t in range(limit)]
        ids += [next(rest) for _ in range(limit)]
    logits = model(**whole(inputs, [ids])).logits[0]
    assert_close([one[0] for one in observed.logits], [logits[place] for place in at])


@pytest.mark.parametrize("name", [one(name) for name in NAMES if family_of(MODELS[name].config()).placeholders])
@torch.inference_mode()
def test_generate_goes_on(name):
    """A ragged batch over three turns on one cache, other answers in between: tokens and logits of ``generate`` on the whole of it."""
    model, _ = made(name)
    inputs = prompts(name)
    options = {"max_new_tokens": LIMIT, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    options["suppress_tokens"] = [describe(model).image_token_id]
    cache = avl.make_cache(model, inputs, avl.Full(), LIMIT)
    found = model.generate(**inputs, past_key_values=cache, **options)
    for turn in range(2):
        said = real(inputs, found.sequences)
        inputs = whole(inputs, [tokens + [50 + turn, 61, 75, 80][: 2 + row] for row, tokens in enumerate(said)])
        model.generate(**prompts(name, RAGGED[2:], seed=5), max_new_tokens=2)  # whose positions are others
        text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        cache.next_turn(text, LIMIT)
        found, expected = model.generate(**text, past_key_values=cache, **options), model.generate(**inputs, **options)
        assert torch.equal(found.sequences, expected.sequences)
        assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("case", ["avl", pytest.param("h2o", marks=pytest.mark.slow), pytest.param("spread", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [one(name) for name in NAMES])
@torch.inference_mode()
def test_every_pass_is_the_oracles(name, case):
    model, _ = made(name)
    inputs, (policy, rule) = prompts(name, RAGGED[1:2], seed=3), CASES[case]
    feed = torch.randint(30, 100, (PASSES,), generator=torch.Generator().manual_seed(5)).tolist()
    observed = converse(model, inputs, policy, LIMIT, feed, TURNS)
    expected = family_oracle.run(model, inputs, rule, LIMIT, feed, TURNS)
    check_sets(observed, [expected])
    assert_close([logits[0].double() for logits in observed.logits], expected.logits)


@pytest.mark.parametrize(
    ("name", "why"), [("paligemma", "every token of its prompt sees every other"), ("instructblip", "read the question")]
)
@torch.inference_mode()
def test_a_family_that_cannot_go_on_says_so(name, why):
    from random_models import picture

    model, processor = made(name)
    with avl.Conversation(model, processor, picture(1), avl.Full(), max_new_tokens=2) as chat:
        chat.ask("what is on the sign ?")
        with pytest.raises(ValueError, match=f"cannot go on with what is stored, .*{why}.*: ask a new question"):
            chat.ask("is w1 red ?")
        with pytest.raises(ValueError, match=why):
            chat.caches[0].extend([3], 2)
