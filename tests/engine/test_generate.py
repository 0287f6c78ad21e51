"""``model.generate`` with a cache of ours: sampling, end of sequence, several pictures, ragged batches, half precision, and the same
tokens as ``avl.stream``."""

from __future__ import annotations

import policy_cases
import pytest
import torch
from observed import generate
from random_models import ARCHITECTURES, EOS, PAD, RAGGED, build_model, encode, picture, request, shared_processor
from transformers import MaxLengthCriteria, StoppingCriteriaList

import avl
from avl import trace

LIMIT = 14
POLICIES = {
    **{policy.name: policy for policy in policy_cases.POLICIES},
    "avl": avl.AVL(S=45, C=30, K=3, P=90, T=60),
    "avl-after": avl.AVL(S=40, C=20, K=2, P=None, T=30, update="after"),
}
QUESTION = "what is on the sign ?"


def prompt_of(processor, question: str, pictures: int = 1) -> str:
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def streamed(model, processor, pictures, question, policy, **options) -> list[int]:
    """Tokens of the one End event."""
    (end,) = [e for e in avl.stream(model, processor, pictures, question, policy, **options) if isinstance(e, trace.End)]
    return list(end.tokens)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_and_stream_give_the_same_tokens(architecture, policy, model, processor):
    for pictures in ([picture(1)], [picture(2, 60, 20), picture(3, 28, 28)]):
        text = prompt_of(processor, QUESTION, len(pictures))
        inputs = processor(images=pictures, text=[text], return_tensors="pt")
        slow = generate(model, inputs, POLICIES[policy], LIMIT, sets=False).tokens[0]
        fast = streamed(model, processor, pictures, QUESTION, POLICIES[policy], max_new_tokens=LIMIT)
        assert fast == slow
        assert len(fast) == LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_and_stream_agree_in_half_precision(architecture, dtype):
    model, processor = build_model(architecture, dtype=dtype), shared_processor(architecture)
    avl.attach(model)
    inputs = processor(images=[picture(1)], text=[prompt_of(processor, QUESTION)], return_tensors="pt").to(dtype)
    slow = generate(model, inputs, POLICIES["avl"], LIMIT, sets=False).tokens[0]
    assert streamed(model, processor, picture(1), QUESTION, POLICIES["avl"], max_new_tokens=LIMIT) == slow


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_at_100_percent_draws_the_stock_tokens(architecture, model, processor):
    """The same seed, the same distribution up to rounding: the same draws."""
    inputs = encode(processor, RAGGED)
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}
    torch.manual_seed(3)
    stock = model.generate(**inputs, max_new_tokens=LIMIT, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    for policy in (avl.Full(), avl.AVL(S=100, C=100, K=3, P=None, T=None)):
        torch.manual_seed(3)
        assert generate(model, inputs, policy, LIMIT, sets=False, **options).tokens == stock
    torch.manual_seed(4)
    assert generate(model, inputs, avl.Full(), LIMIT, sets=False, **options).tokens != stock


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_that_ends_early_does_not_disturb_the_others(architecture, model, processor):
    """EOS: each row of a batch says what it says alone, up to and including its end of sequence, then padding."""
    policy = POLICIES["avl"]
    free = generate(model, encode(processor, RAGGED), policy, LIMIT, sets=False).tokens
    eos = free[0][3]
    ended = generate(model, encode(processor, RAGGED), policy, LIMIT, sets=False, eos_token_id=eos).tokens
    for row, request_ in enumerate(RAGGED):
        alone = generate(model, encode(processor, [request_]), policy, LIMIT, sets=False, eos_token_id=eos).tokens[0]
        expected = free[row][: free[row].index(eos) + 1] if eos in free[row] else free[row]
        assert alone == expected
        assert ended[row][: len(alone)] == alone
        assert set(ended[row][len(alone) :]) <= {PAD}
    assert len({len([token for token in row if token != PAD]) for row in ended}) > 1, "no row ended before another: choose another seed"


def test_stopping_criteria_end_a_generation():
    model, processor = build_model("llava-llama"), shared_processor("llava-llama")
    avl.attach(model)
    inputs = encode(processor, RAGGED)
    stop = StoppingCriteriaList([MaxLengthCriteria(max_length=inputs["input_ids"].shape[1] + 5)])
    observed = generate(model, inputs, POLICIES["avl"], LIMIT, sets=False, stopping_criteria=stop)
    full = generate(model, inputs, POLICIES["avl"], LIMIT, sets=False)
    assert observed.tokens == [row[:5] for row in full.tokens]


def test_a_cache_with_room_for_one_token():
    model, processor = build_model("next-mistral"), shared_processor("next-mistral")
    avl.attach(model)
    inputs = encode(processor, RAGGED)
    assert [row[:1] for row in generate(model, inputs, POLICIES["avl"], LIMIT).tokens] == generate(model, inputs, POLICIES["avl"], 1).tokens


@pytest.mark.parametrize("width", [1, 9])
def test_padding_is_never_scored_kept_or_read(width):
    """More padding on the left changes nothing: not the tokens, not the counts, not the sets."""
    model, processor = build_model("next-llama"), shared_processor("next-llama")
    avl.attach(model)
    inputs = encode(processor, RAGGED[:1])
    alone = generate(model, inputs, POLICIES["avl"], LIMIT)
    for key, value in (("input_ids", PAD), ("attention_mask", 0)):
        inputs[key] = torch.nn.functional.pad(inputs[key], (width, 0), value=value)
    padded = generate(model, inputs, POLICIES["avl"], LIMIT)
    assert padded.tokens == alone.tokens
    assert padded.states == alone.states


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_pictures_in_one_prompt(architecture, model, processor):
    row = request(9, sizes=((40, 30), (20, 60), (28, 28), (70, 30)), before=4, after=5)
    inputs = encode(processor, [row])
    n_image = int((inputs["input_ids"] == model.config.image_token_id).sum())
    observed = generate(model, inputs, avl.AVL(S=50, C=25, K=3, P=None, T=None), 4)
    for stored, core in observed.cache.image_sets(row=0):
        assert len(stored) == (n_image + 1) // 2
        assert max(stored) < n_image
        assert len(core) == -(-n_image // 4)


def test_inference_mode_and_no_grad_are_fine():
    model, processor = build_model("llava-llama"), shared_processor("llava-llama")
    avl.attach(model)
    inputs = encode(processor, RAGGED)
    expected = generate(model, inputs, POLICIES["avl"], 5, sets=False).tokens
    with torch.inference_mode():
        assert generate(model, inputs, POLICIES["avl"], 5, sets=False).tokens == expected


@pytest.mark.parametrize("eos", [EOS, None])
def test_generation_config_is_left_alone(eos):
    model, processor = build_model("llava-llama"), shared_processor("llava-llama")
    model.generation_config.eos_token_id = eos
    before = model.generation_config.to_dict()
    avl.attach(model)
    generate(model, encode(processor, RAGGED), POLICIES["avl"], 3)
    streamed(model, processor, picture(1), QUESTION, POLICIES["avl"], max_new_tokens=3)
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("policy", [avl.AVL(S=45, C=30, K=2, P=80, T=30), avl.H2O(keep=40)], ids=lambda policy: policy.label)
def test_stepping_by_hand_with_gradients_on(policy):
    """A caller's own loop need not turn gradients off: what decides carries none, and the answer is that of generate."""
    model, processor = avl.attach(build_model("llava-llama")).requires_grad_(True), shared_processor("llava-llama")
    inputs = dict(encode(processor, [request(1)]))
    expected = model.generate(
        **inputs, past_key_values=avl.make_cache(model, inputs, policy, max_new_tokens=9), max_new_tokens=9, do_sample=False
    )
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=9)
    given, tokens = inputs, []
    for _ in range(9):
        logits = model(**given, past_key_values=cache, use_cache=True).logits[:, -1]
        tokens.append(logits.argmax(dim=-1))
        given = {"input_ids": tokens[-1][:, None]}
    assert torch.stack(tokens, dim=1)[0].tolist() == expected[0, inputs["input_ids"].shape[1] :].tolist()
    held = [tensor for table in cache.tables for tensor in (table.token_idx, table.sums, table.image_scores) if tensor is not None]
    assert held
    assert not any(tensor.requires_grad for tensor in held)
