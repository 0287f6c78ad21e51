"""Arguments of the library's functions that are of the wrong type or out of range give one sentence before anything runs."""

from __future__ import annotations

import math
import re
import threading
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from random_models import build_processor, picture, shared_model, shared_processor

import avl
from avl.engine.request import MAX_BATCH, GenerationRequest
from avl.engine.scheduler import run
from avl.kernels import resolve_impl

POLICY = avl.AVL(S=45)
QUESTION = "what is this ?"
HUGE, LONG = 10**400, 10**5000  # beyond floats, and beyond what Python prints


class Rude:
    """Its repr fails, as that of an object under construction may."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


ODD: list[Any] = [
    "x",
    "1",
    "",
    b"1",
    [],
    [1],
    {},
    (1,),
    object(),
    Rude(),
    int,
    True,
    False,
    1j,
    Decimal("0.5"),
    math.nan,
    HUGE,
    LONG,
    -HUGE,
]
NUMBERS = [math.inf, -math.inf, -1, np.float64("nan"), np.bool_(True), torch.tensor(0.5), np.array([0.5, 0.6])]
BAD: dict[str, list[Any]] = {
    "temperature": [*ODD, *NUMBERS, None, 10.1, -5e-324],
    "top_p": [*ODD, *NUMBERS, None, 0, 1.0000001],
    "seed": [*ODD, *NUMBERS, 1.5, 2**64, 2**70, np.float32(3)],
    "max_new_tokens": [*ODD, *NUMBERS, None, 0, 1.5, 2.0, 10**9, np.int64(0)],
    "batch": [*ODD, *NUMBERS, None, 0, 1.5, MAX_BATCH + 1, 10**9],
    "repeats": [*ODD, *NUMBERS, None, 0, 1.5, 101],
    "mode": ["", "x", "RACE", b"race", [], {}, None, 5, True, np.array(["race", "race"]), Rude()],
    "scores": ["", "yes", [], {}, None, 0, 1, 0.5, Rude(), np.array([True, True])],
    "agreement": ["", "yes", [], {}, None, 0, 1, 0.5, Rude(), np.array([True, True])],
    "scores_bytes": [*ODD, *NUMBERS, 0, 1.5, 10**13],
    "stop": [1, "x", [], {}, True, 0.5, threading.Lock(), lambda: False],
    "question": [5, 1.5, True, ["a"], {}, b"what", object(), Rude(), LONG, "half \ud83d of one", ""],
}


@pytest.fixture(scope="module")
def small():
    model = shared_model("llava-llama")
    yield avl.attach(model), shared_processor("llava-llama")
    avl.detach(model)


def sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text, text
    assert 15 < len(text) < 400, text
    assert not re.search(r"object at 0x\w+>? *$|Traceback|tensor\(\d+\.\d{5}", text), text
    return text


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, values in BAD.items() for place in range(len(values))])
def test_a_bad_argument_is_named(small, name, place):
    model, processor = small
    value = BAD[name][place]
    with pytest.raises(ValueError, match=name) as raised:
        avl.race(model, processor, picture(1), **{"question": QUESTION, "policies": [POLICY], name: value})
    sentence(raised.value)
    if name in ("repeats", "mode", "scores_bytes"):
        return
    with pytest.raises(ValueError, match=name) as again:
        avl.stream(model, processor, picture(1), **{"question": QUESTION, "policy": POLICY, name: value})
    assert str(again.value) == str(raised.value), "one sentence for a fault, wherever it is met"


@pytest.mark.parametrize("name", ["repeats", "mode", "scores_bytes"])
def test_what_a_stream_does_not_have_is_a_type_error(small, name):
    with pytest.raises(TypeError, match=name):
        avl.stream(*small, picture(1), QUESTION, POLICY, **{name: 1})


@pytest.mark.parametrize(
    "policies",
    [None, [], (), {}, "avl", "", 5, 5.0, True, [None], [POLICY, "avl"], [avl.AVL], {"a": POLICY}, [[POLICY]], [[]], [{}], Rude(), [LONG]],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_policy_is_named(small, policies):
    with pytest.raises(ValueError, match="polic") as raised:
        avl.race(*small, picture(1), QUESTION, policies)
    sentence(raised.value)


@pytest.mark.parametrize("one", [None, [], {}, "avl", 5, avl.AVL, Rude(), LONG], ids=lambda value: type(value).__name__)
def test_what_is_no_policy_of_a_stream_or_cache_is_named(small, one):
    model, processor = small
    with pytest.raises(ValueError, match="polic") as raised:
        avl.stream(model, processor, picture(1), QUESTION, one)
    sentence(raised.value)
    inputs = processor(images=[picture(1)], text=["<image> w1"], return_tensors="pt")
    with pytest.raises(ValueError, match="not a policy") as raised:
        avl.make_cache(model, inputs, one)
    sentence(raised.value)


@pytest.mark.parametrize("thing", [None, 5, "tiny", [], {}, Rude()], ids=lambda value: type(value).__name__)
def test_what_is_no_model_processor_or_request_is_named(small, thing):
    model, processor = small
    request = GenerationRequest(picture(1), QUESTION, POLICY)
    for arguments, word in (
        ((thing, processor, request), "Llava, LlavaNext"),
        ((model, thing, request), "processor"),
        ((model, processor, thing), "request"),
    ):
        with pytest.raises(TypeError, match=word) as raised:
            run(*arguments)
        sentence(raised.value)
    with pytest.raises(TypeError, match="processor"):
        run(model, build_processor("llava-llama").tokenizer, request)


@pytest.mark.parametrize(
    "inputs",
    [None, 5, "ids", [], {}, {"input_ids": None}, {"input_ids": [[4, 5]]}, {"input_ids": torch.tensor([4, 5])},
     {"input_ids": torch.tensor([[4, 5]]), "attention_mask": [[1, 1]]}, {"input_ids": torch.zeros(1, 0, dtype=torch.long)}],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_inputs_of_a_cache_that_are_none(small, inputs):
    with pytest.raises(ValueError, match=r"input|row 0") as raised:
        avl.make_cache(small[0], inputs, POLICY)
    sentence(raised.value)


@pytest.mark.parametrize("value", [*ODD, *NUMBERS, None, 0, 1.5, 10**9], ids=lambda value: type(value).__name__)
def test_a_cache_names_its_size(small, value):
    model, processor = small
    inputs = processor(images=[picture(1)], text=["<image> w1"], return_tensors="pt")
    with pytest.raises(ValueError, match="max_new_tokens") as raised:
        avl.make_cache(model, inputs, POLICY, max_new_tokens=value)
    sentence(raised.value)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.uint16], ids=lambda kind: kind.__name__)
def test_numpy_numbers_are_numbers(small, kind):
    plain = list(avl.stream(*small, picture(1), QUESTION, avl.AVL(S=45, C=30, K=2), 4, temperature=1, top_p=0.5, seed=3, batch=2))
    ours = avl.AVL(S=kind(45), C=np.float32(30), K=kind(2))
    found = list(
        avl.stream(
            *small, picture(1), QUESTION, ours, kind(4), temperature=np.float64(1), top_p=np.float16(0.5), seed=kind(3), batch=kind(2)
        )
    )
    assert found[-1].tokens == plain[-1].tokens
    assert ours == avl.AVL(S=45, C=30, K=2)
    assert found[0].arms == plain[0].arms, "plain Python, so that a trace can be written"
    assert avl.AVL(S=Fraction(91, 2)) == avl.AVL(S=45.5)


@pytest.mark.parametrize("impl", [None, 5, "cuda", [], {}, b"auto", True], ids=repr)
def test_an_implementation_of_the_kernels_that_is_none(impl):
    with pytest.raises(ValueError, match="impl is"):
        resolve_impl("cpu", impl)
