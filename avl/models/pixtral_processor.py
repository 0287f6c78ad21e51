"""Pixtral's processor for pictures, where transformers' own, which needs torchvision, cannot be had: the same ids and pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin


class PixtralProcessor(ProcessorMixin):
    """Pictures in their own shape: a placeholder for every patch, a break after every row, an end after the last.

    Args:
        image_processor: a ``PixtralImageProcessorPil``.
        tokenizer: a tokenizer that has the three tokens.
        patch_size: side of a patch of the vision tower, in pixels.
        spatial_merge_size: patches along a side of what becomes one token.
        chat_template: the checkpoint's.
        image_token: placeholder of a picture, and of each of its tokens.
        image_break_token: end of a row.
        image_end_token: end of a picture.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **_: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __call__(self, images: Any = None, text: str | Sequence[str] = "", **options: Any) -> Any:
        """Return ``input_ids``, ``attention_mask``, ``pixel_values`` and ``image_sizes``.

        Args:
            images: pictures of all texts, in the order of their placeholders.
            text: one prompt or several, with a placeholder for each picture.
            options: of the tokenizer.

        Raises:
            ValueError: the placeholders are not as many as the pictures.
        """
        from transformers import BatchFeature

        texts = [text] if isinstance(text, str) else list(text)
        options.setdefault("return_tensors", "pt")
        pixels: dict[str, Any] = {}
        if images is not None:
            side = self.patch_size * self.spatial_merge_size
            pixels = dict(self.image_processor(images, patch_size={"height": side, "width": side}, return_tensors="pt"))
        shapes = [(height // side, width // side) for height, width in pixels["image_sizes"].tolist()] if pixels else []
        asked = sum(one.count(self.image_token) for one in texts)
        if asked != len(shapes):
            raise ValueError(f"{asked} placeholders {self.image_token} for {len(shapes)} pictures: write one for each")
        waiting = iter(shapes)
        return BatchFeature({**self.tokenizer([self._expanded(one, waiting) for one in texts], **options), **pixels})

    def _expanded(self, text: str, shapes: Iterator[tuple[int, int]]) -> str:
        first, *rest = text.split(self.image_token)
        return first + "".join(self._tokens(*next(shapes)) + part for part in rest)

    def _tokens(self, rows: int, cols: int) -> str:
        row = self.image_token * cols
        return self.image_break_token.join([row] * rows) + self.image_end_token


def read_pixtral(place: str, revision: str | None, folder: Path) -> PixtralProcessor:
    """Return the processor of a Pixtral checkpoint from its files."""
    from transformers import AutoTokenizer, PixtralImageProcessorPil

    saved: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if file.is_file():
            saved |= json.loads(file.read_text("utf-8"))
    known = ("patch_size", "spatial_merge_size", "image_token", "image_break_token", "image_end_token")
    options = {name: saved[name] for name in known if isinstance(saved.get(name), int | str)}
    tokenizer = AutoTokenizer.from_pretrained(place, revision=revision or "main", trust_remote_code=False)
    images = PixtralImageProcessorPil.from_pretrained(place, revision=revision or "main")
    template = folder / "chat_template.jinja"
    words = template.read_text("utf-8") if template.is_file() else getattr(tokenizer, "chat_template", None)
    if words is None and (folder / "chat_template.json").is_file():
        words = json.loads((folder / "chat_template.json").read_text("utf-8"))["chat_template"]
    return PixtralProcessor(images, tokenizer, chat_template=words, **options)
