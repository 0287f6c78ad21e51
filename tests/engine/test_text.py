"""Streamed pieces of text add up to the whole answer, for every kind of tokenizer and any sequence of tokens."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import build_model, build_processor, picture
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import avl
from avl.engine.text import TextStream
from avl.trace import Prefill, Step

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [*"abcdefgHI.?!,'’éß日本🙂 ", "n't", "'s", "'ve", "the", "ing"]


def fast(inner: Tokenizer, **options) -> PreTrainedTokenizerFast:
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options)


def vocabulary(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys([*SPECIAL, *tokens]))}


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spread = {
        character: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)[0][0]
        for character in "é日🙂"
    }
    inner = Tokenizer(models.BPE(vocabulary([*alphabet, *spread.values(), spread["🙂"][:2], spread["日"][1:], "Ġthe", "ing"]), []))
    inner.decoder = decoders.ByteLevel()
    return inner


def sentencepiece(decoder) -> Tokenizer:
    inner = Tokenizer(models.BPE(vocabulary([*BYTES, "▁", "▁▁", "▁the", "▁a", "b", ".", "日", "é", "ing", "\n"]), [], byte_fallback=True))
    inner.decoder = decoder
    return inner


def llama() -> Tokenizer:
    """As Llama 2 and Vicuna: fused, and one space taken from the beginning."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return sentencepiece(decoders.Sequence(steps))


def metaspace() -> Tokenizer:
    return sentencepiece(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))


def word_piece(cleanup: bool) -> Tokenizer:
    inner = Tokenizer(models.WordPiece(vocabulary([*LETTERS, "##ing", "##s", "n", "'", "m", "s", "re", "t"]), unk_token="<unk>"))
    inner.decoder = decoders.WordPiece(cleanup=cleanup)
    return inner


def end_of_word() -> Tokenizer:
    inner = Tokenizer(models.BPE(vocabulary(["the</w>", "th", "e</w>", "a", ".</w>", "é</w>"]), [], end_of_word_suffix="</w>"))
    inner.decoder = decoders.BPEDecoder()
    return inner


def words() -> Tokenizer:
    """No decoder at all: tokens are joined by spaces."""
    return Tokenizer(models.WordLevel(vocabulary(LETTERS), unk_token="<unk>"))


KINDS = {
    "bundled": lambda: AutoTokenizer.from_pretrained(Path(avl.__file__).parents[1] / "assets/tiny"),
    "byte-level": lambda: fast(byte_level()),
    "byte-level-clean-up": lambda: fast(byte_level(), clean_up_tokenization_spaces=True),
    "llama": lambda: fast(llama()),
    "metaspace": lambda: fast(metaspace()),
    "word-piece": lambda: fast(word_piece(True)),
    "word-piece-clean-up": lambda: fast(word_piece(False), clean_up_tokenization_spaces=True),
    "word-piece-both": lambda: fast(word_piece(True), clean_up_tokenization_spaces=True),
    "end-of-word": lambda: fast(end_of_word()),
    "words": lambda: fast(words()),
    "words-clean-up": lambda: fast(words(), clean_up_tokenization_spaces=True),
}


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


def pieces(kind: str, ids: list[int]) -> tuple[list[str], str]:
    stream = TextStream(tokenizer(kind))
    said = [stream.add(token) for token in ids]
    said.append(stream.finish())
    return said, stream.text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_add_up_to_the_answer(kind, data):
    """Ids beyond the vocabulary occur too: checkpoints pad their output head."""
    ids = data.draw(st.lists(st.integers(0, len(tokenizer(kind)) + 3), max_size=40))
    said, text = pieces(kind, ids)
    assert "".join(said) == text == tokenizer(kind).decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["llama", "metaspace"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_pieces_add_up_where_bytes_are_broken(kind, data):
    """Whole characters, incomplete ones and wrong bytes, with special tokens between them."""
    text = st.sampled_from(["é", "日", "🙂", "a", " the", "</s>", "<0xFF>", "<0xE6>", "<0x97>", "\n"])
    vocab = tokenizer(kind).get_vocab()

    def ids_of(part: str) -> list[int]:
        if part in vocab:
            return [vocab[part]]
        return [vocab[f"<0x{byte:02X}>"] for byte in part.encode()]

    ids = [token for part in data.draw(st.lists(text, max_size=12)) for token in ids_of(part)]
    said, answer = pieces(kind, ids)
    assert "".join(said) == answer == tokenizer(kind).decode(ids, skip_special_tokens=True).strip()


def ids_of(kind: str, *tokens: str) -> list[int]:
    return [tokenizer(kind).get_vocab()[token] for token in tokens]


@pytest.mark.parametrize(
    ("kind", "tokens", "expected"),
    [
        ("llama", ["▁the", "<0xC3>", "<0xA9>", "</s>", "b"], ["the", "", "", "", "éb", ""]),
        ("llama", ["▁the", "<0xF0>", "<0x9F>"], ["the", "", "", "��"]),
        ("llama", ["▁a", "<0xC3>", "<0xA9>", "<0xFF>", "b"], ["a", "", "", "", "���b", ""]),
        ("llama", ["▁", "▁the", "▁", "▁", "b"], ["", "the", "", "", "  b", ""]),
        ("metaspace", ["▁the", "▁a", "."], ["the", " a", ".", ""]),
        ("word-piece", ["the", "##ing", "."], ["the", "ing", ".", ""]),
        ("end-of-word", ["th", "e</w>", "a"], ["th", "e", " a", ""]),
    ],
)
def test_pieces_come_as_soon_as_they_are_sure(kind, tokens, expected):
    assert pieces(kind, ids_of(kind, *tokens))[0] == expected


def test_a_long_answer_is_not_decoded_again_at_every_token():
    sizes = []

    class Counting:
        convert_ids_to_tokens = staticmethod(tokenizer("llama").convert_ids_to_tokens)

        def decode(self, ids, **options):
            sizes.append(len(ids))
            return tokenizer("llama").decode(ids, **options)

    stream = TextStream(Counting())
    for token in ids_of("llama", "▁the", "ing", "<0xC3>", "<0xA9>", ".") * 300:
        stream.add(token)
    assert max(sizes) < 16


@pytest.mark.parametrize("end", ["length", "eos", "stopped"])
def test_the_pieces_of_a_run_add_up(end):
    """The last piece of an answer holds the rest; a stopped one ends with what was said."""
    model, processor = build_model("llava-llama"), build_processor("llava-llama")
    processor.tokenizer.clean_up_tokenization_spaces = True  # holds characters back
    stop = threading.Event()

    def run():
        for event in avl.stream(model, processor, picture(1), "what is on the sign ?", avl.Full(), max_new_tokens=7, stop=stop):
            yield event
            if end == "stopped" and isinstance(event, Step) and event.t == 3:
                stop.set()

    if end == "eos":
        model.generation_config.eos_token_id = list(run())[-1].tokens[4]
    events = list(run())
    last = events[-1]
    assert last.reason == end
    assert "".join(event.text for event in events if isinstance(event, Prefill | Step)) == last.text
    whole = processor.tokenizer.decode(last.tokens, skip_special_tokens=True).strip()
    assert whole == last.text if end != "stopped" else whole.startswith(last.text) and last.text
