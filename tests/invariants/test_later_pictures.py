"""Invariants of pictures in later turns: what holds of a prompt's pictures holds of those that a question brings, on what is there."""

from __future__ import annotations

import oracle
import pytest
import torch
from observed import assert_within, converse, reductions, snapshot, words
from pairwise import pairwise
from random_models import ARCHITECTURES, RAGGED, build_model, encode, request, shared_processor
from test_conversation_families import real, whole
from test_conversation_laws import CASES, LIMIT, check_half_precision
from test_oracle import check_sets

import avl
from avl.engine.cuda_graphs import make_decoder
from avl.policies import PromptShape
from avl.policies.base import PastTurn
from avl.policies.cost import allocated_tokens, layer_cost

LIMITS = 7, 3, 4
"""Of the later turns: pictures between words, pictures on both sides of words, none."""
PASSES = LIMIT + sum(LIMITS)


def asked(processor, seed=0):
    """Three later turns; of those with pictures, the tokens and the inputs of the pictures."""
    parts = [request(21 + seed, sizes=((44, 30),), before=2, after=5), request(22 + seed, sizes=((28, 28), (20, 60)), before=1, after=40)]
    found = []
    for part, limit in zip(parts, LIMITS, strict=False):
        given = dict(processor(images=list(part.images), text=[part.text], return_tensors="pt", add_special_tokens=False))
        ids = given.pop("input_ids")[0].tolist()
        given.pop("attention_mask")
        found.append((ids, limit, given))
    return [*found, (words(9 + seed, 1, 12)[0], LIMITS[2])]


@pairwise(architecture=ARCHITECTURES, case=CASES, row=[0, 1])
@torch.inference_mode()
def test_every_pass_is_the_oracles(architecture, case, row, model, processor):
    policy, rule = CASES[case]
    inputs, turns = encode(processor, RAGGED[row : row + 1]), asked(processor)
    (prompt,) = oracle.rows(model, inputs)
    feed = words(5, 1, PASSES)[0]
    observed = converse(model, inputs, policy, LIMIT, feed, turns)
    expected, plain = (
        oracle.run(model, prompt, rule, LIMIT, feed=feed, turns=turns, dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    assert plain.sets == expected.sets, "this seed has two scores closer than float32 can tell: choose another"
    check_sets(observed, [expected])
    runs = (torch.stack(run) for run in ([logits[0] for logits in observed.logits], expected.logits, plain.logits))
    assert_within(*runs, torch.float32, reductions(model, prompt.length + 200))


@pytest.mark.slow
@torch.inference_mode()
def test_half_precision_logits_given_the_sets():
    dtype = torch.bfloat16
    turns = [
        (new, limit, *({**some, "pixel_values": some["pixel_values"].to(dtype)} for some in given))
        for new, limit, *given in asked(shared_processor("next-mistral"))
    ]
    check_half_precision(dtype, turns, 200)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_counts_and_bytes_are_the_closed_form(case):
    """Per layer and pass; slots too."""
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    inputs, turns, policy = encode(processor, [request(4, before=10, after=24)]), asked(processor), CASES[case][0]
    cache = avl.make_cache(model, inputs, policy, LIMIT)
    row, layers = cache.rows[0], len(cache.layers)
    shape = PromptShape(row.n_image, row.n_text, LIMIT, layers)
    states = iter(converse(model, inputs, policy, LIMIT, words(1, 1, PASSES)[0], turns, sets=False).states)
    for new, limit, *given in [((), LIMIT), *turns]:
        if new:
            image = new.count(model.config.image_token_id)
            assert image == 16 * len(given[0]["pixel_values"] if given else ())
            text = shape.n_text + shape.max_new_tokens + len(new) - image
            shape = PromptShape(shape.n_image + image, text, limit, layers, PastTurn(shape, shape.max_new_tokens - 1))
            assert (shape.new, shape.new_image) == (1 + len(new), image)
        for t in range(limit):
            state, costs = next(states), [layer_cost(policy, shape, layer, t) for layer in range(layers)]
            assert state.stored == [cost.stored for cost in costs]
            assert state.read == [cost.read for cost in costs]
            assert state.stored_bytes == sum(state.stored) * 2 * 4 * 16 * 4
            assert sum(state.stored) <= allocated_tokens(policy, shape)
    assert next(states, None) is None


FED = (
    request(31, sizes=((44, 30),), before=2, after=5),
    request(32, sizes=(), before=1, after=7),
    request(33, sizes=((28, 28), (20, 60)), before=1, after=30),
)
"""What each row of a batch is asked next: one picture, none, two."""


@pytest.mark.parametrize("way", ["generate", "engine"])
@pytest.mark.parametrize("case", [case if case in ("AVL", "SnapKV") else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
@torch.inference_mode()
def test_sets_do_not_depend_on_the_batch(case, way):
    """Rows that bring one picture, none and two, and then text: each holds what it holds alone, pruned tokens included."""
    model, processor, policy = avl.attach(build_model("next-mistral")), shared_processor("next-mistral"), CASES[case][0]
    image, more = model.config.image_token_id, words(41, 3, 6)

    def given(rows):
        texts, images = [FED[row].text for row in rows], [image for row in rows for image in FED[row].images]
        made = dict(processor(images=images or None, text=texts, return_tensors="pt", padding=True, add_special_tokens=False))
        return real(made, made["input_ids"]), {key: made[key] for key in ("pixel_values", "image_sizes") if key in made}

    def run(rows):
        inputs, seen = dict(encode(processor, [RAGGED[row] for row in rows])), []
        cache = avl.make_cache(model, inputs, policy, LIMIT)

        def note(logits):
            seen.append([snapshot(cache, len(rows)).sets, [cache.pruned.get(row, []) for row in range(len(rows))], list(logits)])

        if way == "engine":
            decoder = make_decoder(model, cache)
            note(decoder.prefill(inputs))
            for turn in range(2):
                parts = [given([row]) if turn == 0 else ([more[row]], {}) for row in rows]
                new = [tokens for (tokens,), _ in parts]
                places = [tuple(place for place, token in enumerate(tokens) if token == image) for tokens in new]
                cache.extend([len(tokens) for tokens in new], LIMIT, image=places)
                decoder = make_decoder(model, cache)
                note(decoder.extend(new, pictures=[pictures for _, pictures in parts]))
                for t in range(LIMIT - 1):
                    note(decoder.step(torch.tensor([50 + row + t for row in rows])))
            return seen
        options = {"max_new_tokens": LIMIT, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        found = model.generate(**inputs, past_key_values=cache, **options)
        for turn in range(2):
            new, pictures = given(rows) if turn == 0 else ([more[row] for row in rows], {})
            ids = [said + tokens for said, tokens in zip(real(inputs, found.sequences), new, strict=True)]
            inputs = {key: value for key, value in whole(inputs, ids).items() if key in ("input_ids", "attention_mask")}
            cache.next_turn(inputs | pictures, LIMIT)
            found = model.generate(**inputs, **pictures, past_key_values=cache, **options)
            note(found.logits[-1])
        return seen

    together, apart = run([0, 1, 2]), [run([row]) for row in range(3)]
    assert any(any(state[1]) for state in together) == (case in ("AVL", "spread", "FastV", "narrow-window"))
    for at, (sets, pruned, logits) in enumerate(together):
        for row in range(3):
            alone = apart[row][at]
            assert (sets[row], pruned[row]) == (alone[0][0], alone[1][0])
            torch.testing.assert_close(logits[row], alone[2][0], rtol=1e-4, atol=1e-4)
