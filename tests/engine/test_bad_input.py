"""Bad input gives one clear sentence, and nothing is lost: the model works on."""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from observed import generate
from PIL import Image
from random_models import (
    CONTEXT,
    LAYERS,
    RAGGED,
    Request,
    build_model,
    build_processor,
    encode,
    picture,
    request,
    shared_processor,
    text_config,
)
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

import avl
from avl.models.families import language_model

POLICY = avl.AVL(S=45, C=30, K=3, P=90, T=60)
QUESTION = "what is on the sign ?"


@pytest.fixture(params=["llava-llama", "next-mistral"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def works(name):
    """(model, processor), attached; after the test both paths still give the answer they gave before."""
    model, processor = build_model(name), shared_processor(name)
    avl.attach(model)

    def answers() -> list:
        tokens = generate(model, encode(processor, RAGGED), POLICY, 4, sets=False).tokens
        events = list(avl.stream(model, processor, picture(1), QUESTION, POLICY, max_new_tokens=4))
        stock = model.generate(**encode(processor, RAGGED), max_new_tokens=4, do_sample=False).tolist()
        return [tokens, events[-1].tokens, stock]

    before = answers()
    yield model, processor
    assert answers() == before


@contextmanager
def one_sentence(*words: str, kind: type[Exception] | tuple[type[Exception], ...] = ValueError):
    """The block raises ``kind`` with one sentence for a person that holds each of ``words`` (regular expressions, any case)."""
    with pytest.raises(kind) as raised:
        yield
    message = str(raised.value)
    assert "\n" not in message.strip(), f"more than one line: {message!r}"
    assert 15 < len(message) < 400, message
    assert not re.search(r"tensor\(|object at 0x|Traceback", message), message
    for word in words:
        assert re.search(word, message, re.IGNORECASE), f"{word!r} is not in {message!r}"


def consume(model: Any, processor: Any, image: Any, question: Any = QUESTION, policy: Any = POLICY, **options: Any) -> list:
    return list(avl.stream(model, processor, image, question, policy, **{"max_new_tokens": 4, **options}))


# ------------------------------------------------------------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("parameter", "build"),
    [
        (name, build)
        for name, builds in {
            "S": [lambda v: avl.AVL(S=v)],
            "C": [lambda v: avl.AVL(S=45, C=v)],
            "P": [lambda v: avl.AVL(S=45, P=v)],
            "T": [lambda v: avl.AVL(S=45, T=v)],
            "keep": [lambda v: avl.H2O(keep=v), lambda v: avl.FastV(keep=v), lambda v: avl.StreamingLLM(keep=v)],
        }.items()
        for build in builds
    ],
    ids=["S", "C", "P", "T", "H2O-keep", "FastV-keep", "StreamingLLM-keep"],
)
@pytest.mark.parametrize("value", [0, -1, 100.5, 1000, math.nan, math.inf, "50", True, [50]], ids=repr)
def test_bad_percentages_are_refused_by_name(parameter: str, build: Callable, value: Any):
    with one_sentence(rf"\b{parameter}\b", re.escape(repr(value)), kind=(ValueError, TypeError)):
        build(value)


@pytest.mark.parametrize(
    ("parameter", "value", "build"),
    [
        ("S", None, lambda v: avl.AVL(S=v)),
        ("C", 46, lambda v: avl.AVL(S=45, C=v)),
        ("K", 0, lambda v: avl.AVL(S=45, K=v)),
        ("K", -3, lambda v: avl.AVL(S=45, K=v)),
        ("K", 1.5, lambda v: avl.AVL(S=45, K=v)),
        ("K", None, lambda v: avl.AVL(S=45, K=v)),
        ("update", "sometimes", lambda v: avl.AVL(S=45, update=v)),
        ("update", None, lambda v: avl.AVL(S=45, update=v)),
        ("recent", -1, lambda v: avl.H2O(recent=v)),
        ("recent", 101, lambda v: avl.H2O(recent=v)),
        ("layer", 0, lambda v: avl.FastV(layer=v)),
        ("layer", 2.5, lambda v: avl.FastV(layer=v)),
        ("sinks", -1, lambda v: avl.StreamingLLM(sinks=v)),
        ("sinks", 1.5, lambda v: avl.StreamingLLM(sinks=v)),
    ],
    ids=lambda part: part if isinstance(part, str) else None if callable(part) else repr(part),
)
def test_other_bad_parameters_are_refused_by_name(parameter: str, value: Any, build: Callable):
    with one_sentence(rf"\b{parameter}\b", re.escape(repr(value)), kind=(ValueError, TypeError)):
        build(value)


@pytest.mark.parametrize("value", [0, -1, 2.5, None, "8"], ids=repr)
def test_max_new_tokens_must_be_a_positive_integer(works, value):
    model, processor = works
    with one_sentence("max_new_tokens", re.escape(repr(value)), kind=(ValueError, TypeError)):
        avl.make_cache(model, encode(processor, RAGGED), POLICY, max_new_tokens=value)
    with one_sentence("max_new_tokens", re.escape(repr(value)), kind=(ValueError, TypeError)):
        consume(model, processor, picture(1), max_new_tokens=value)


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", -0.1), ("temperature", math.nan), ("top_p", 0.0), ("top_p", 1.1), ("top_p", -1)], ids=repr
)
def test_sampling_options_out_of_range_are_refused(works, option, value):
    with one_sentence(option, re.escape(repr(value))):
        consume(*works, picture(1), **{option: value})


def test_a_layer_the_model_does_not_have(works):
    """FastV after more layers than there are would prune nothing, in silence."""
    model, processor = works
    with one_sentence("layer", str(LAYERS + 5), f"{LAYERS}|{LAYERS - 1}"):
        avl.make_cache(model, encode(processor, RAGGED), avl.FastV(layer=LAYERS + 5), max_new_tokens=4)


@pytest.mark.parametrize("policy", ["avl", None, 45, avl.AVL], ids=["name", "none", "number", "class"])
def test_something_that_is_no_policy(works, policy):
    model, processor = works
    with one_sentence("policy", kind=(ValueError, TypeError)):
        avl.make_cache(model, encode(processor, RAGGED), policy, max_new_tokens=4)
    with one_sentence("policy", kind=(ValueError, TypeError)):
        consume(model, processor, picture(1), policy=policy)


# ------------------------------------------------------------------------------------------------------------------------ the prompt


def test_no_image_in_the_prompt(works):
    model, processor = works
    inputs = {**encode(processor, RAGGED[:1]), **processor(text=[QUESTION], return_tensors="pt")}
    with one_sentence("image"):
        avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    del inputs["pixel_values"]
    with pytest.warns(UserWarning, match="the prompts hold no image"):
        avl.make_cache(model, inputs, POLICY, max_new_tokens=4)


@pytest.mark.parametrize("image", [None, []], ids=["none", "empty-list"])
def test_no_image_in_a_stream(works, image):
    with one_sentence("image|picture", kind=(ValueError, TypeError)):
        consume(*works, image)


def test_batch_rows_without_images(works):
    """They run beside the others; the warning names the first such row, once."""
    model, processor = works
    inputs = encode(processor, [RAGGED[0], Request((), "w1 w2 w3 ?"), RAGGED[1], Request((), "w4")])
    with pytest.warns(UserWarning, match=r"row 1 of the batch holds no image") as said:
        cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    assert len(said) == 1
    model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert [bool(cache.image_sets(row)[0][0]) for row in range(4)] == [True, False, True, False]


def test_right_padding_is_refused(works):
    """The scoring query is the last column's: a batch padded on the right would score with padding."""
    model, processor = works
    inputs = encode(processor, RAGGED)
    for key in ("input_ids", "attention_mask"):
        inputs[key] = inputs[key].flip(1)
    with one_sentence("pad", "left"):
        avl.make_cache(model, inputs, POLICY, max_new_tokens=4)


@pytest.mark.parametrize("question", ["", "   \n\t ", None], ids=["empty", "blank", "none"])
def test_an_empty_question(works, question):
    with one_sentence("question", kind=(ValueError, TypeError)):
        consume(*works, picture(1), question=question)


def test_a_prompt_longer_than_the_context(works):
    model, processor = works
    words = CONTEXT + 5
    long = request(3, after=words)
    inputs = encode(processor, [long])
    length = inputs["input_ids"].shape[1]
    with one_sentence(str(CONTEXT), f"{length}|{length + 4}", "context"):
        avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    with one_sentence(str(CONTEXT), "context"):
        consume(model, processor, picture(1), question="w1 " * words)


# ------------------------------------------------------------------------------------------------------------------------ pictures


def png_header(width: int, height: int) -> bytes:
    """A PNG file that declares a size and holds no picture: opening it is cheap, decoding it fails."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_truncated_picture(works):
    """It opens, because its header is whole, and cannot be decoded."""
    file = io.BytesIO()
    picture(1, 200, 200).save(file, format="PNG")
    half = Image.open(io.BytesIO(file.getvalue()[:2000]))
    with one_sentence("image|picture", "decode|read|damaged|truncated"):
        consume(*works, half)


def test_the_second_picture_is_broken(works):
    file = io.BytesIO()
    picture(1, 200, 200).save(file, format="PNG")
    with one_sentence("image|picture", "decode|read|damaged|truncated"):
        consume(*works, [picture(1), Image.open(io.BytesIO(file.getvalue()[:2000]))])


@pytest.mark.parametrize("thing", ["no-such-file.png", 42, b"not a picture", object()], ids=["path", "number", "bytes", "object"])
def test_something_that_is_no_picture(works, thing):
    with one_sentence("image|picture", kind=(ValueError, TypeError)):
        consume(*works, thing)


def test_a_picture_too_large(works, monkeypatch):
    """Refused by its declared size, before it is decoded: the sentence names the size and the limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    huge = Image.open(io.BytesIO(png_header(60_000, 50_000)))
    with one_sentence("image|picture", "large|big|pixels", "60.?000", "50.?000"):
        consume(*works, huge)


def test_a_picture_without_pixels(works):
    with one_sentence("image|picture", kind=(ValueError, TypeError)):
        consume(*works, Image.new("RGB", (0, 10)))


# ------------------------------------------------------------------------------------------------------------------------ caches


def test_a_cache_used_twice(works):
    model, processor = works
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
    counts = list(cache.stored_tokens)
    with one_sentence("cache", "make_cache|new|once"):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert list(cache.stored_tokens) == counts


def test_a_cache_used_with_another_model(works, name):
    model, processor = works
    inputs = encode(processor, RAGGED)
    other = build_model(name, seed=1)
    avl.attach(other)
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    with one_sentence("cache", "model"):
        other.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)


def test_a_cache_used_with_another_prompt(works):
    model, processor = works
    cache = avl.make_cache(model, encode(processor, RAGGED), POLICY, max_new_tokens=4)
    with one_sentence("cache", "prompt|inputs|batch|rows|tokens"):
        model.generate(**encode(processor, RAGGED[:2]), past_key_values=cache, max_new_tokens=4, do_sample=False)
    cache = avl.make_cache(model, encode(processor, RAGGED[:1]), POLICY, max_new_tokens=4)
    with one_sentence("cache", "prompt|inputs|batch|rows|tokens"):
        model.generate(**encode(processor, [request(1, after=17)]), past_key_values=cache, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=["beams", "sequences"])
def test_generation_modes_that_multiply_the_rows(works, options):
    """Rows of the batch are not the rows of the cache: refused, not mixed up."""
    model, processor = works
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    with one_sentence("batch|rows|beam|sequences", kind=(ValueError, NotImplementedError)):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4, **{"do_sample": False, **options})


def test_a_cache_whose_pass_broke_off(works):
    """What it holds is not whole, so nothing is read from it."""
    model, processor = works
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)

    def fail(module, args, output):
        raise MemoryError("no memory for this layer")

    broken = language_model(model).layers[2].register_forward_hook(fail)
    try:
        with pytest.raises(MemoryError):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
    finally:
        broken.remove()
    with one_sentence("cache", "broke off", "make_cache"):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("prompt_first", [False, True], ids=["prompt", "step"])
def test_a_model_whose_attention_was_changed_after_attach(works, prompt_first):
    """The model's own attention would see the new tokens alone: refused in the same pass."""
    model, processor = works
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    text = model.config.text_config
    ours = text._attn_implementation
    if prompt_first:
        model(**inputs, past_key_values=cache, use_cache=True)
        inputs = {"input_ids": inputs["input_ids"][:, -1:]}
    text._attn_implementation = "sdpa"
    try:
        with one_sentence("attach", kind=RuntimeError):
            model(**inputs, past_key_values=cache, use_cache=True)
    finally:
        text._attn_implementation = ours


@pytest.mark.parametrize("policy", [POLICY, avl.Full()], ids=lambda policy: policy.label)
def test_more_tokens_than_the_cache_has_room_for(works, policy):
    """It never writes over other entries in silence."""
    model, processor = works
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=3)
    with one_sentence("room for 3 new tokens", "max_new_tokens"):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)


# ------------------------------------------------------------------------------------------------------------------------ models


def test_a_model_that_is_not_attached(name):
    """A cache of ours on a model that does not know it must not run as if nothing were wrong."""
    model, processor = build_model(name), shared_processor(name)
    inputs = encode(processor, RAGGED)
    with one_sentence("attach", kind=(ValueError, RuntimeError)):
        cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)


def test_a_model_detached_after_its_cache_was_made(works):
    model, processor = works
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=4)
    avl.detach(model)
    try:
        with one_sentence("attach", kind=(ValueError, RuntimeError)):
            model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
    finally:
        avl.attach(model)


def test_an_unsupported_model_class():
    model = LlamaForSequenceClassification(text_config("llava-llama")).eval()
    implementation = model.config._attn_implementation
    with one_sentence("LlamaForSequenceClassification", "Llava, LlavaNext", r"Llama, .*ForCausalLM", kind=(ValueError, TypeError)):
        avl.attach(model)
    assert model.config._attn_implementation == implementation
    for thing in (None, "tiny", torch.nn.Linear(2, 2)):
        with one_sentence("Llava, LlavaNext", kind=(ValueError, TypeError)):
            avl.attach(thing)


def test_a_sliding_window_model():
    """A window that hides tokens of this prompt or answer masks what our policies would read; a wider one does no harm."""
    model = build_model("next-mistral")
    inputs = encode(build_processor("next-mistral"), RAGGED)
    longest = int(inputs["attention_mask"].sum(1).max())
    model.config.text_config.sliding_window = longest + 8
    avl.attach(model)
    avl.make_cache(model, inputs, avl.Full(), max_new_tokens=8)
    with one_sentence(f"need {longest + 9} tokens", f"window of {longest + 8}"):
        avl.make_cache(model, inputs, avl.Full(), max_new_tokens=9)


@pytest.mark.parametrize("name", ["llava-llama", "next-mistral"])
def test_load_from_a_folder(name, tmp_path):
    """A local folder of a supported class loads and answers as the model that was saved."""
    model, processor = build_model(name), build_processor(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = avl.load(str(tmp_path), device="cpu", dtype=torch.float32)
    loaded.generation_config.eos_token_id = None
    inputs = encode(loaded_processor, RAGGED)
    expected = model.generate(**encode(processor, RAGGED), max_new_tokens=5, do_sample=False)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=5, do_sample=False), expected)
    assert next(loaded.parameters()).dtype == torch.float32
    assert not loaded.training


def test_load_of_what_is_not_there(tmp_path):
    with one_sentence("no-such-folder", kind=(ValueError, OSError)):
        avl.load(str(tmp_path / "no-such-folder"))
    with one_sentence(re.escape(tmp_path.name), kind=(ValueError, OSError)):
        avl.load(str(tmp_path))


def test_load_of_the_wrong_class(tmp_path):
    LlamaForCausalLM(text_config("llava-llama")).save_pretrained(tmp_path)
    with one_sentence("LlamaForCausalLM takes no pictures", "Llava, LlavaNext", kind=(ValueError, TypeError)):
        avl.load(str(tmp_path))


def test_load_with_missing_weights(tmp_path):
    model, processor = build_model("llava-llama"), build_processor("llava-llama")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with one_sentence("safetensors|weights", kind=(ValueError, OSError)):
        avl.load(str(tmp_path))
