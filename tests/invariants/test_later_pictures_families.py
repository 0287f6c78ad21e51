"""Invariants of pictures in later turns in every model family: positions, masks and what a processor makes of pictures differ."""

from __future__ import annotations

import functools

import family_oracle
import pytest
import torch
from observed import converse, words
from random_models import picture
from test_conversation_families import LIMIT, NAMES, one, real, whole
from test_families import CASES, assert_close, made, prompts
from test_oracle import check_sets
from tiny_families import MODELS
from tiny_families.base import RAGGED, encode

import avl
from avl.models.families import describe, family_of
from avl.models.inputs import PER_TOKEN, join_pictures

LIMITS = 5, 3, 4
"""Of the later turns: one picture, two, none."""
PASSES = LIMIT + sum(LIMITS)

SHOWN = [name for name in NAMES if MODELS[name].pictures]
SIZES = ((44, 30),), ((36, 60), (50, 50))
"""Of the pictures of the first two later turns."""


def asked(name):
    """Three later turns; of those with pictures, the tokens and the inputs of the pictures."""
    tiny, (model, processor), found = MODELS[name], made(name), []
    types = family_of(model.config).token_types
    for sizes, limit in zip(SIZES, LIMITS, strict=False):
        given = dict(encode(tiny, processor, [sizes], seed=40 + limit, add_special_tokens=False))
        ids = given.pop("input_ids")[0].tolist()
        found.append((ids, limit, {name: value for name, value in given.items() if name not in ("attention_mask", types)}))
    return [*found, (words(9, 1, 12)[0], LIMITS[2])]


@pytest.mark.parametrize("case", ["avl", *(pytest.param(one, marks=pytest.mark.slow) for one in ("h2o", "spread", "snapkv", "fastv"))])
@pytest.mark.parametrize("name", [one(name) for name in SHOWN])
@torch.inference_mode()
def test_every_pass_is_the_oracles(name, case):
    model, _ = made(name)
    inputs, (policy, rule) = prompts(name, RAGGED[1:2], seed=3), CASES[case]
    turns = asked(name)
    feed = torch.randint(30, 100, (PASSES,), generator=torch.Generator().manual_seed(5)).tolist()
    observed = converse(model, inputs, policy, LIMIT, feed, turns)
    expected = family_oracle.run(model, inputs, rule, LIMIT, feed, turns)
    check_sets(observed, [expected])
    assert_close([logits[0].double() for logits in observed.logits], expected.logits)


@pytest.mark.parametrize("name", SHOWN)
@torch.inference_mode()
def test_full_is_the_whole_conversation(name):
    """The engine's passes over four turns: the logits of the model itself, which reads the conversation and all pictures in one pass."""
    model, _ = made(name)
    inputs, turns = prompts(name, RAGGED[1:2]), asked(name)
    feed = torch.randint(30, 100, (PASSES,), generator=torch.Generator().manual_seed(5)).tolist()
    observed = converse(model, inputs, avl.Full(), LIMIT, feed, turns)
    (ids,), rest, at = real(inputs, inputs["input_ids"]), iter(feed), []
    family, pictures, image = (
        family_of(model.config),
        inputs,
        [place for place, token in enumerate(ids) if token == describe(model).image_token_id],
    )
    for new, limit, *given in [((), LIMIT), *turns]:
        image += [len(ids) + place for place, token in enumerate(new) if given and token == describe(model).image_token_id]
        ids += new
        pictures = join_pictures(pictures, given[0] if given else {}, family.picture_axis)
        at += [len(ids) - 1 + t for t in range(limit)]
        ids += [next(rest) for _ in range(limit)]
    grown = whole(inputs, [ids])
    if family.token_types is not None:
        grown[family.token_types][0, image] = 1
    logits = model(**grown | pictures).logits[0]
    assert_close([one[0] for one in observed.logits], [logits[place] for place in at])


def one_by_one(name, rows, seed):
    """What the processor makes of the pictures of a batch, every row by itself."""
    found = [dict(encode(MODELS[name], made(name)[1], [sizes], seed + 10 * number)) for number, sizes in enumerate(rows)]
    return [{key: value for key, value in given.items() if key not in PER_TOKEN} for given in found]


@pytest.mark.parametrize("name", [one(name) for name in SHOWN if not family_of(MODELS[name].config()).own_positions])
@torch.inference_mode()
def test_generate_goes_on(name):
    """A ragged batch over three turns on one cache: tokens and logits of ``generate`` on the whole of it, with all pictures at once."""
    tiny, (model, processor) = MODELS[name], made(name)
    inputs, family = prompts(name), family_of(model.config)
    image = describe(model).image_token_id
    options = {"max_new_tokens": LIMIT, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    options["suppress_tokens"] = [image]
    cache = avl.make_cache(model, inputs, avl.Full(), LIMIT)
    found = model.generate(**inputs, past_key_values=cache, **options)
    shown = [one_by_one(name, RAGGED, 0)]
    for turn in range(2):
        rows = [SIZES[(row + turn) % 2][:1] for row in range(3)]
        given = dict(encode(tiny, processor, rows, seed=60 + turn, add_special_tokens=False))
        new_ids = real(given, given["input_ids"])
        ids = [
            tokens + new[: len(new) - 2 * row] for row, (tokens, new) in enumerate(zip(real(inputs, found.sequences), new_ids, strict=True))
        ]
        inputs = whole(inputs, ids)
        if family.token_types is not None:
            inputs[family.token_types] = (inputs["input_ids"] == image).long()
        text = {key: value for key, value in inputs.items() if key in ("input_ids", "attention_mask", family.token_types)}
        new = {key: value for key, value in given.items() if key not in text}
        shown.append(one_by_one(name, rows, 60 + turn))
        by_row = [
            functools.reduce(lambda one, more: join_pictures(one, more, family.picture_axis), turns) for turns in zip(*shown, strict=True)
        ]
        pictures = functools.reduce(lambda one, more: join_pictures(one, more, 0), by_row)
        cache.next_turn(text | new, LIMIT)
        found = model.generate(**text, **new, past_key_values=cache, **options)
        expected = model.generate(**text, **pictures, **options)
        assert torch.equal(found.sequences, expected.sequences)
        assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("name", [one(name) for name in SHOWN])
def test_a_conversation_goes_on(name):
    """Kept and re-read, full attention says the same; resumed, every policy does."""
    model, processor = made(name)
    place, policies = MODELS[name].placeholder, [avl.Full(), CASES["avl"][0]]
    asked = [(f"w1 {place} what ?", None), (f"w2 {place} w3 ?", picture(2, 44, 30)), (f"{place} w5 {place} w4", [picture(3, 30, 50)] * 2)]
    model.generation_config.suppress_tokens = [describe(model).image_token_id]
    try:
        with avl.Conversation(model, processor, picture(1), policies, max_new_tokens=3) as chat:
            for question, images in asked:
                found = chat.ask(avl.Prompt(question), images=images, reread=[0] if images else False)
                assert not images or found[0].tokens == found[2].tokens
        resumed = avl.Conversation.resumed(model, processor, picture(1), policies, chat.history[:2], max_new_tokens=3)
        again = resumed.ask(avl.Prompt(asked[2][0]), images=asked[2][1])
        assert [one.tokens for one in again] == [one.tokens for one in found[:2]]
    finally:
        model.generation_config.suppress_tokens = None


def test_a_family_that_takes_one_picture_says_so():
    model, processor = made("blip-2")
    with avl.Conversation(model, processor, picture(1), avl.Full(), max_new_tokens=2) as chat:
        chat.ask("what is on the sign ?")
        with pytest.raises(
            ValueError, match="cannot bring a picture, which takes one picture, before all text: begin a conversation with it"
        ):
            chat.ask("is w1 red ?", images=picture(2))
        with pytest.raises(ValueError, match="takes one picture"):
            chat.caches[0].extend([3], 2, image=[(1,)])
        assert len(chat.ask("is w1 red ?").tokens) == 2


@torch.inference_mode()
def test_generate_cannot_count_positions_on():
    model, _ = made("qwen2_vl")
    inputs = prompts("qwen2_vl", RAGGED[:1])
    cache = avl.make_cache(model, inputs, avl.Full(), LIMIT)
    out = model.generate(**inputs, past_key_values=cache, max_new_tokens=2)
    (new, _, given), *_ = asked("qwen2_vl")
    ids = torch.cat([out, torch.tensor([new])], dim=1)
    with pytest.raises(ValueError, match=r"row 0 brings a new picture, and generate counts the positions of Qwen2VL.* over all pictures"):
        cache.next_turn({"input_ids": ids, "attention_mask": torch.ones_like(ids), **given}, LIMIT)
