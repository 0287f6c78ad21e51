"""``cache.next_turn`` and ``model.generate`` on the same cache: what goes on, and what says why it does not."""

from __future__ import annotations

import copy
import gc

import policy_cases
import pytest
import torch
from random_models import CONTEXT, RAGGED, build_model, encode, request, shared_processor

import avl

LIMIT = 5
GREEDY = {"do_sample": False, "max_new_tokens": LIMIT}


@pytest.fixture(scope="module")
def model():
    return avl.attach(build_model("next-mistral"))


def begun(model, policy=policy_cases.POLICIES[1], rows=RAGGED[:1]):
    """A cache with one answer in it, and the tokens so far ``[B, L]``."""
    inputs = encode(shared_processor("next-mistral"), rows)
    cache = avl.make_cache(model, inputs, policy, LIMIT)
    return cache, model.generate(**inputs, past_key_values=cache, **GREEDY)


def asked(ids, *words):
    """The inputs of a conversation that goes on with more tokens."""
    ids = torch.cat([ids, torch.tensor([words] * len(ids))], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def test_a_copy_goes_on_alike(model):
    """Of a cache between turns, and of one whose turn has begun; a turn that has begun may begin anew."""
    cache, ids = begun(model)
    twin = copy.deepcopy(cache)
    cache.next_turn(asked(ids, 40, 41), 9)
    cache.next_turn(inputs := asked(ids, 50, 51, 52), LIMIT)
    third = copy.deepcopy(cache)
    twin.next_turn(inputs, LIMIT)
    out = [model.generate(**inputs, past_key_values=one, **GREEDY) for one in (cache, twin, third)]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    assert cache.image_sets() == twin.image_sets() == third.image_sets()
    assert cache.stored_tokens == twin.stored_tokens == third.stored_tokens
    assert cache.allocated_bytes == third.allocated_bytes


@torch.inference_mode()
def test_what_does_not_go_on_says_so_and_loses_nothing(model):
    cache, ids = begun(model)
    good = asked(ids, 50, 51)
    before = cache.stored_bytes, cache.image_sets()
    for inputs, limit, sentence in (
        (asked(ids[:, 1:], 50), LIMIT, "row 0 of the conversation differs at token 0"),
        (asked(ids[:, :-3]), LIMIT, f"differs at token {ids.shape[1] - 3} from what this cache has seen, {ids.shape[1] - 1} tokens"),
        (asked(ids[:, :-1]), LIMIT, "brings no new tokens"),
        (asked(ids, 4), LIMIT, "row 0 brings a new picture without its pixel_values"),
        (asked(ids[:, :-1], 4, 50, 4) | {"pixel_values": torch.zeros(1)}, LIMIT, "the last answer of row 0 ends in the placeholder"),
        (good | {"pixel_values": torch.zeros(1)}, LIMIT, "the pictures are in the cache already"),
        (asked(ids.expand(2, -1), 50), LIMIT, "holds 1 rows, the inputs have 2"),
        (good, CONTEXT, f"the model's context has {CONTEXT}"),
        (good, 0, "max_new_tokens=0"),
        ({}, LIMIT, "hold no tensors input_ids"),
    ):
        with pytest.raises(ValueError, match=sentence):
            cache.next_turn(inputs, limit)
    assert (cache.stored_bytes, cache.image_sets()) == before
    with pytest.raises(ValueError, match="call its next_turn before a conversation goes on"):
        model.generate(**good, past_key_values=cache, **GREEDY)
    cache.next_turn(good, LIMIT)
    with pytest.raises(ValueError, match="other tokens than next_turn was given"):
        model.generate(**asked(ids, 50, 52), past_key_values=cache, **GREEDY)
    with pytest.raises(ValueError, match="the pictures are in the cache already"):
        model(**good, pixel_values=torch.zeros(1), past_key_values=cache)
    assert model.generate(**good, past_key_values=cache, **GREEDY).shape[1] == ids.shape[1] + 2 + LIMIT


@pytest.mark.parametrize("policy", policy_cases.POLICIES, ids=policy_cases.name_of)
@torch.inference_mode()
def test_pictures_go_on(model, policy):
    """A copy goes on alike; without its pixels a turn does not run; and one layer at a time holds its new tokens whole."""
    cache, ids = begun(model, policy)
    part = request(7, sizes=((44, 30), (28, 28)), before=2, after=9)
    given = shared_processor("next-mistral")(images=list(part.images), text=[part.text], return_tensors="pt", add_special_tokens=False)
    text = asked(ids, *given["input_ids"][0].tolist())
    pictures = {name: given[name] for name in ("pixel_values", "image_sizes")}
    held, cache.peak_bytes = cache.allocated_bytes, 0
    cache.next_turn({**text, **pictures}, LIMIT)
    with pytest.raises(ValueError, match="this turn brings pictures, and the model got none"):
        model.generate(**text, past_key_values=cache, **GREEDY)
    twin = copy.deepcopy(cache)
    out = [model.generate(**text, **pictures, past_key_values=one, **GREEDY) for one in (cache, twin)]
    assert torch.equal(*out)
    assert cache.image_sets() == twin.image_sets()
    layer = max(flat.nbytes for layer in cache.layers for flat in layer.flat) * 2 + (1 + given["input_ids"].shape[1]) * cache._token_bytes
    assert max(held, cache.allocated_bytes) <= cache.peak_bytes <= max(held, cache.allocated_bytes) + 2 * layer
    cache.next_turn(more := asked(out[0], 50, 51), LIMIT)
    assert model.generate(**more, past_key_values=cache, **GREEDY).shape[1] == out[0].shape[1] + 2 + LIMIT


@torch.inference_mode()
def test_tokens_it_has_not_been_told_of_are_not_guessed(model):
    inputs = encode(shared_processor("next-mistral"), RAGGED[:1])
    cache = avl.make_cache(model, inputs, avl.Full(), LIMIT)
    with pytest.raises(ValueError, match=r"run the conversation with model\.generate, from input_ids on"):
        cache.next_turn(asked(inputs["input_ids"], 50), LIMIT)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], past_key_values=cache)
    with pytest.raises(ValueError, match="does not know the tokens"):
        cache.next_turn(asked(inputs["input_ids"], 50), LIMIT)
    with pytest.raises(ValueError, match="has not seen its first prompt"):
        avl.make_cache(model, inputs, avl.Full(), LIMIT).extend([3], LIMIT)


@torch.inference_mode()
def test_rows_that_generate_fed_padding_are_refused(model):
    """``generate`` feeds rows that have ended until all have; what was evicted for that does not come back."""
    cache, ids = begun(model, rows=(RAGGED[0], RAGGED[0]))
    ids[1, -3:] = 1
    with pytest.raises(ValueError, match=r"row 1 of the conversation differs .*a row that ended before others has been fed padding"):
        cache.next_turn(asked(ids, 50), LIMIT)


@torch.inference_mode()
def test_a_pass_that_broke_off_is_not_gone_on_with(model, monkeypatch):
    cache, ids = begun(model)
    cache.next_turn(inputs := asked(ids, 50, 51), LIMIT)
    with monkeypatch.context() as patch:
        patch.setattr(type(model.model.language_model.layers[2].mlp), "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.generate(**inputs, past_key_values=cache, **GREEDY)
    for again in (lambda: cache.next_turn(inputs, LIMIT), lambda: model.generate(**inputs, past_key_values=cache, **GREEDY)):
        with pytest.raises(ValueError, match="a pass of this cache broke off"):
            again()


@pytest.mark.parametrize("policy", policy_cases.POLICIES, ids=policy_cases.name_of)
@torch.inference_mode()
def test_storage_grows_one_layer_at_a_time(model, policy):
    """The most that is ever held is what all layers hold, and one of them twice more: its new keys beside the old, and both together."""
    cache, ids = begun(model, policy)
    for _ in range(2):
        held, cache.peak_bytes = cache.allocated_bytes, 0
        cache.next_turn(inputs := asked(ids, *range(40, 60)), LIMIT)
        assert cache.allocated_bytes == held
        ids = model.generate(**inputs, past_key_values=cache, **GREEDY)
        layer = max(flat.nbytes for layer in cache.layers for flat in layer.flat) * 2 + 21 * cache._token_bytes
        assert max(held, cache.allocated_bytes) <= cache.peak_bytes <= max(held, cache.allocated_bytes) + 2 * layer


@torch.inference_mode()
def test_language_models_go_on_too():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=99
        )
    ).eval()
    model.generation_config.eos_token_id = None
    avl.attach(model)
    ids = torch.randint(10, 99, (1, 12))
    cache = avl.make_cache(model, {"input_ids": ids}, avl.Full(), LIMIT)
    out = model.generate(ids, past_key_values=cache, **GREEDY)
    cache.next_turn(inputs := asked(out, 20, 21), LIMIT)
    assert torch.equal(model.generate(**inputs, past_key_values=cache, **GREEDY), model.generate(**inputs, **GREEDY))
    del cache
    gc.collect()
