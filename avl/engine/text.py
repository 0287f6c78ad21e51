"""Incremental detokenizer: token ids to pieces of text that add up to the answer."""

from __future__ import annotations

import re
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte of SentencePiece's fallback. A run of them becomes text as a whole: one invalid byte turns all of its characters into U+FFFD."""

_CLEANED = 8
"""Last characters that ``clean_up_tokenization_spaces`` may still change. Its longest chain of replacements, " n ' t", spans six."""


class TextStream:
    """Turns token ids into text, piece by piece.

    The pieces add up to ``tokenizer.decode(ids, skip_special_tokens=True).strip()``. A piece is empty while its characters may still
    change: bytes of an incomplete character, spaces at the end. As in vLLM, only the tokens since the last piece but one are decoded, so a
    token costs the same in a long answer; that piece is decoded again because decoders treat the first token differently.

    Attributes:
        ids: the tokens so far.
        text: the pieces so far, joined.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._settled = ""  # as ``text``, with spaces at both ends
        self._from = self._to = 0  # the tokens of the last settled piece
        self._in_bytes = False

    def add(self, token: int) -> str:
        """Return the piece of text that ``token`` completes."""
        self.ids.append(token)
        self._follow_bytes(token)
        if not self._in_bytes:
            self._settle()
        return self._say(self._settled.strip())

    def finish(self) -> str:
        """Return the rest: what was held back in case a further token changed it."""
        return self._say(self._decode(self.ids).strip())

    def _say(self, text: str) -> str:
        piece = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += piece
        return piece

    def _follow_bytes(self, token: int) -> None:
        """Note whether the text now ends in a run of bytes; a token without text, such as a special one, does not end it."""
        if _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))):
            self._in_bytes = True
        elif self._in_bytes and self._decode([token]):
            self._in_bytes = False

    def _settle(self) -> None:
        if self._cleans:
            text = self._decode(self.ids)
            if not text.endswith("\ufffd"):
                self._settled = text[:-_CLEANED]
            return
        before, now = self._decode(self.ids[self._from : self._to]), self._decode(self.ids[self._from :])
        if len(now) > len(before) and now.startswith(before) and not now.endswith("\ufffd"):
            self._settled += now[len(before) :]
            self._from, self._to = self._to, len(self.ids)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def token_texts(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    """Return what each of a prompt's tokens says, with its spaces; a special token by its name, part of a character as U+FFFD."""
    special = set(tokenizer.all_special_ids)
    texts: list[str] = []
    before: int | None = None
    for token in ids:
        if token in special:
            texts.append(str(tokenizer.convert_ids_to_tokens(token)))
            before = None
            continue
        # beside the token before it: decoders drop the space of a text's first token
        last: list[int] = [] if before is None else [before]
        known, both = (tokenizer.decode(some, clean_up_tokenization_spaces=False) for some in (last, [*last, token]))
        texts.append(both[len(known) :] if both.startswith(known) else tokenizer.decode([token]))
        before = token
    return tuple(texts)
