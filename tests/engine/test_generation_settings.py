"""What model.generation_config states is obeyed as ``model.generate`` obeys it, or refused by name: never ignored."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import RAGGED, build_model, encode, picture, shared_processor
from transformers import GenerationConfig

import avl
from avl.engine.decoder import Decoder
from avl.engine.generation import ARGUMENTS, NO_EFFECT, OBEYED, REFUSED, SAMPLED, Settings
from avl.engine.request import GenerationRequest
from avl.engine.sampling import Chooser
from avl.models.inputs import prepare, repeat
from avl.trace import End, Warning

LIMIT = 10
QUESTION = " ".join(f"w{number}" for number in range(70))  # most words, so that a penalty on the prompt concerns most answers


@pytest.fixture(scope="module")
def shared():
    return avl.attach(build_model("llava-llama")), shared_processor("llava-llama")


@pytest.fixture
def small(shared):
    """(model, processor) whose generation config is as new after the test."""
    model, processor = shared
    before = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=1)
    yield model, processor
    model.generation_config = before


def inputs_of(model: Any, processor: Any, batch: int = 1) -> dict[str, Any]:
    return repeat(prepare(model, processor, [picture(1)], QUESTION)[0], batch)


def generate(model: Any, processor: Any, inputs: Any, **options: Any) -> torch.Tensor:
    out = model.generate(**inputs, max_new_tokens=LIMIT, tokenizer=processor.tokenizer, **{"do_sample": False, **options})
    return out[:, inputs["input_ids"].shape[1] :]


def streamed(model: Any, processor: Any, **options: Any) -> End:
    return list(avl.stream(model, processor, picture(1), QUESTION, avl.Full(), LIMIT, **options))[-1]


def test_every_field_is_in_one_table():
    """A field that a new transformers adds fails here: decide what becomes of it."""
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    tables = [OBEYED, ARGUMENTS, NO_EFFECT, set(REFUSED)]
    assert fields == set().union(*tables)
    assert sum(len(table) for table in tables) == len(fields), "a field is in two tables"


# Each gives settings, from the tokens of the plain answer, that change the answer.
CHANGES: dict[str, Callable[[list[int], int], dict[str, Any]]] = {
    "bad_words_ids": lambda plain, length: {"bad_words_ids": [[plain[1]], [plain[2], plain[3]]]},
    "begin_suppress_tokens": lambda plain, length: {"begin_suppress_tokens": [plain[0]]},
    "encoder_no_repeat_ngram_size": lambda plain, length: {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": lambda plain, length: {"encoder_repetition_penalty": 20.0},
    "exponential_decay_length_penalty": lambda plain, length: {"exponential_decay_length_penalty": (2, 3.0), "eos_token_id": 108},
    "eos_token_id": lambda plain, length: {"eos_token_id": [plain[4], 3]},
    "forced_eos_token_id": lambda plain, length: {"forced_eos_token_id": 3, "eos_token_id": 3},
    "min_length": lambda plain, length: {"min_length": length + 4, "eos_token_id": plain[1]},
    "min_new_tokens": lambda plain, length: {"min_new_tokens": 4, "eos_token_id": [plain[0], plain[2]]},
    "no_repeat_ngram_size": lambda plain, length: {"no_repeat_ngram_size": 1},
    "repetition_penalty": lambda plain, length: {"repetition_penalty": 20.0},
    "sequence_bias": lambda plain, length: {"sequence_bias": [[[plain[0]], -100.0], [[plain[1], plain[2]], -90.0]]},
    "suppress_tokens": lambda plain, length: {"suppress_tokens": plain[:2]},
    "watermarking_config": lambda plain, length: {"watermarking_config": {"greenlist_ratio": 0.5, "bias": 30.0, "context_width": 1}},
    "several": lambda plain, length: {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "suppress_tokens": [plain[1]], "min_p": 0.1},
}
ALIKE = {"forced_bos_token_id", "max_time", "remove_invalid_values", "renormalize_logits", "stop_strings"}  # each has its own test below


def test_every_obeyed_setting_is_tested():
    assert {*CHANGES, *ALIKE, *SAMPLED} == {*OBEYED, "several"}


def state(model: Any, settings: dict[str, Any]) -> None:
    model.generation_config = GenerationConfig(pad_token_id=1, **settings)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", CHANGES)
def test_a_stream_obeys_as_generate_does(small, name, batch):
    model, processor = small
    inputs = inputs_of(model, processor, batch)
    plain = generate(model, processor, inputs)[0].tolist()
    settings = CHANGES[name](plain, inputs["input_ids"].shape[1])
    state(model, settings)
    expected = generate(model, processor, inputs)[0].tolist()
    assert expected != plain, "this setting changes nothing here, so the test proves nothing"
    eos = settings.get("eos_token_id", [])
    ends = [place for place, token in enumerate(expected) if token in (eos if isinstance(eos, list) else [eos])]
    end = streamed(model, processor, batch=batch)
    assert list(end.tokens) == expected[: ends[0] if ends else len(expected)]
    assert end.reason == ("eos" if ends else "length")


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_rows_of_a_ragged_batch_obey_as_in_generate(small, name):
    """Padding is on the left of two of the rows; what a row has chosen is its own."""
    model, processor = small
    inputs = dict(encode(processor, RAGGED))
    plain = generate(model, processor, inputs)
    state(model, CHANGES[name](plain[1].tolist(), inputs["input_ids"].shape[1]))
    expected = generate(model, processor, inputs)
    assert not torch.equal(expected, plain)
    request = GenerationRequest(picture(1), QUESTION, avl.Full(), LIMIT)
    settings = Settings.of(model, processor.tokenizer, request)
    chooser = Chooser(settings, inputs, 0.0, None)
    decoder = Decoder(model, avl.make_cache(model, inputs, avl.Full(), LIMIT))
    with torch.inference_mode():
        tokens, told = chooser.choose(decoder.prefill(inputs))
        found = [told]
        for _ in range(expected.shape[1] - 1):
            tokens, told = chooser.choose(decoder.step(tokens))
            found.append(told)
    for row, right in zip(torch.stack(found, dim=1).tolist(), expected.tolist(), strict=True):
        end = next((place + 1 for place, token in enumerate(right) if token in settings.eos), len(right))
        assert row[:end] == right[:end]


SAMPLING: dict[str, dict[str, Any]] = {
    "silent": {},  # transformers' own top_k of 50
    "no top_k": {"top_k": 0},
    "top_k": {"top_k": 5},
    "min_p": {"min_p": 0.2, "top_k": 0},
    "top_h": {"top_h": 0.4},
    "typical_p": {"typical_p": 0.5},
    "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.05},
    "penalty": {"repetition_penalty": 3.0, "top_k": 7},
    "its own temperature": {"do_sample": True, "temperature": 0.01, "top_p": 0.1},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.3, "bias": 4.0}, "renormalize_logits": True},
}


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_has_the_distribution_of_generate(small, name, temperature, top_p):
    """The caller's temperature and top_p win over the config's; all else that the config says of sampling counts."""
    model, processor = small
    inputs = dict(encode(processor, RAGGED))
    state(model, SAMPLING[name])
    options = {"do_sample": True, "temperature": temperature, "top_p": top_p, "return_dict_in_generate": True}
    torch.manual_seed(4)
    out = model.generate(**inputs, max_new_tokens=5, output_scores=True, output_logits=True, **options)
    request = GenerationRequest(picture(1), QUESTION, avl.Full(), 5, temperature=temperature, top_p=top_p, seed=1)
    chooser = Chooser(Settings.of(model, processor.tokenizer, request), inputs, temperature, None)
    for logits, scores, tokens in zip(out.logits, out.scores, out.sequences[:, -5:].T, strict=True):
        found = chooser.scores(logits).softmax(dim=-1)
        torch.testing.assert_close(found.float(), scores.softmax(dim=-1), atol=2e-6, rtol=2e-4)
        chooser.note(tokens)


def test_sampling_settings_do_nothing_when_greedy(small):
    model, processor = small
    expected = streamed(model, processor).tokens
    state(model, {"do_sample": True, "temperature": 5.0, "top_p": 0.1, "top_k": 3, "min_p": 0.9})
    events = list(avl.stream(model, processor, picture(1), QUESTION, avl.Full(), LIMIT))
    assert events[-1].tokens == expected
    assert not [event for event in events if isinstance(event, Warning) and "generation config" in event.message]


def test_a_first_token_is_forced_only_where_there_is_no_prompt(small):
    model, processor = small
    expected = streamed(model, processor).tokens
    state(model, {"forced_bos_token_id": 9})
    assert streamed(model, processor).tokens == expected == tuple(generate(model, processor, inputs_of(model, processor))[0].tolist())


def test_normalized_scores_choose_the_same(small):
    model, processor = small
    expected = streamed(model, processor).tokens
    state(model, {"renormalize_logits": True})
    assert streamed(model, processor).tokens == expected


def test_invalid_values_are_removed_if_asked_to(small):
    model, processor = small

    def spoil(module, args, logits):
        logits[..., 7], logits[..., 9] = math.nan, math.inf
        return logits

    hook = model.lm_head.register_forward_hook(spoil)
    try:
        assert streamed(model, processor).kind == "error"
        state(model, {"remove_invalid_values": True})
        expected = generate(model, processor, inputs_of(model, processor))[0].tolist()
        assert list(streamed(model, processor).tokens) == expected
    finally:
        hook.remove()


def test_a_stop_string_ends_the_answer_and_is_part_of_it(monkeypatch):
    """On the bundled model: transformers cannot split the random models' words into characters."""
    model, processor = avl.load("tiny", device="cpu", dtype="fp32")
    model.generation_config.eos_token_id = None
    question = "Read every label, row by row."
    plain = list(avl.stream(model, processor, picture(1), question, avl.Full(), 24))[-1]
    inputs = prepare(model, processor, [picture(1)], question)[0]
    for stop in (plain.text[-3:], [plain.text[3:6], "no such words"]):
        model.generation_config.stop_strings = stop
        for batch in (1, 2):
            end = list(avl.stream(model, processor, picture(1), question, avl.Full(), 24, batch=batch))[-1]
            out = model.generate(**inputs, max_new_tokens=24, do_sample=False, tokenizer=processor.tokenizer)
            assert list(end.tokens) == out[0, inputs["input_ids"].shape[1] :].tolist()
            assert end.reason == "stop_string"
            assert len(end.tokens) < len(plain.tokens)


def test_a_time_limit_ends_the_run(small):
    model, processor = small
    state(model, {"max_time": 1e-6})
    end = streamed(model, processor)
    assert (len(end.tokens), end.reason) == (1, "time")
    assert generate(model, processor, inputs_of(model, processor)).shape[1] == 1
    state(model, {"max_time": 1e6})
    assert streamed(model, processor).reason == "length"


def test_what_the_config_says_is_told(small):
    model, processor = small
    state(model, {"repetition_penalty": 1.3, "top_k": 9, "min_length": 0})
    for temperature, words in ((0.0, "repetition_penalty=1.3"), (1.0, "repetition_penalty=1.3, top_k=9")):
        events = list(avl.stream(model, processor, picture(1), QUESTION, avl.Full(), 2, temperature=temperature))
        assert next(e.message for e in events if isinstance(e, Warning)) == f"the model's generation config applies: {words}"


ON: dict[str, Any] = {
    "assistant_early_exit": 2, "cache_implementation": "static", "constraints": [1], "dola_layers": "high", "force_words_ids": [[5]],
    "guidance_scale": 1.5, "is_assistant": True, "num_beam_groups": 2, "num_beams": 4, "num_return_sequences": 2, "penalty_alpha": 0.6,
    "prompt_lookup_num_tokens": 3, "token_healing": True, "use_cache": False, "use_mtp": True,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_obeyed_is_refused_by_name(small, name):
    model, processor = small
    before = streamed(model, processor).tokens
    setattr(model.generation_config, name, ON[name])
    words = rf"generation_config\.{name}={re.escape(repr(ON[name]))} asks for .*: set model\.generation_config\.{name} = None$"
    with pytest.raises(ValueError, match=words):
        avl.stream(model, processor, picture(1), QUESTION, avl.Full(), LIMIT)
    with pytest.raises(ValueError, match=name):
        avl.race(model, processor, picture(1), QUESTION, [avl.Full()])
    for off in REFUSED[name][0]:  # None, as advised, and other values that ask for nothing
        setattr(model.generation_config, name, off)
        assert streamed(model, processor).tokens == before


def test_a_setting_that_this_version_does_not_know_is_refused(small, monkeypatch):
    model, processor = small
    made = GenerationConfig.__init__

    def newer(self, **kwargs):
        self.mirror_decoding = kwargs.pop("mirror_decoding", None)
        made(self, **kwargs)

    monkeypatch.setattr(GenerationConfig, "__init__", newer)
    model.generation_config.mirror_decoding = 3
    with pytest.raises(ValueError, match="mirror_decoding=3 asks for something that this version does not know"):
        streamed(model, processor)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": -1.0}, {"repetition_penalty": "much"}, {"bad_words_ids": []}, {"bad_words_ids": "word"},
        {"suppress_tokens": "x"}, {"no_repeat_ngram_size": 1.5}, {"sequence_bias": [[1, 2]]}, {"eos_token_id": "end"},
        {"max_time": "soon"}, {"stop_strings": [5]}, {"exponential_decay_length_penalty": (1, 2.0)}, {"min_length": "x", "eos_token_id": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_one_sentence(small, settings):
    """Before anything runs, also where transformers itself would break with an error of its own."""
    model, processor = small
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=r"model\.generation_config") as raised:
        avl.stream(model, processor, picture(1), QUESTION, avl.Full(), LIMIT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 3, "eos_token_id": 3}], ids=str
)
def test_repeats_and_steps_ahead_obey_alike(small, settings, monkeypatch):
    model, processor = small
    state(model, settings)
    expected = streamed(model, processor).tokens
    monkeypatch.setattr("avl.engine.runner.steps_ahead", lambda *_: 1)
    events = list(avl.race(model, processor, picture(1), QUESTION, [avl.Full(), avl.Full()], max_new_tokens=LIMIT, repeats=2))
    assert [event.tokens for event in events if event.kind in ("end", "repeat")] == [expected] * 4
