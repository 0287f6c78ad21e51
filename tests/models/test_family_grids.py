"""The rectangles of every family: a spot painted into one moves the token that it belongs to more than any other.

The vision tower's attention is zeroed, so that a feature sees its own patch alone.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from PIL import Image
from random_models import picture
from tiny_families import MODELS
from tiny_families.base import painted

from avl.models.families import describe, family_of, image_grids, language_model
from avl.models.families.base import end

PLACED = sorted(name for name, tiny in MODELS.items() if tiny.places)
MIXING = (
    "attn.proj",
    "attn.out_proj",
    "self_attn.out_proj",
    "self_attn.o_proj",
    "attention.o_proj",
    "attention.output",
    "attention.projection_layer",
)
"""Names of the projections after a vision tower's attention, in all towers."""


class Seen:
    """A model's prompt, and the embeddings that its text decoder gets of the image tokens."""

    def __init__(self, name: str) -> None:
        self.tiny = MODELS[name]
        self.model, self.processor = self.tiny.model(), self.tiny.processor()
        text = {id(parameter) for parameter in language_model(self.model).parameters()}
        blinded = 0
        with torch.no_grad():
            for path, parameter in self.model.named_parameters():
                if id(parameter) not in text and any(f"{part}." in path for part in MIXING):
                    parameter.zero_()
                    blinded += 1
        assert blinded, "some projection mixes the patches"

    def inputs(self, pictures: list[Image.Image]) -> dict[str, Any]:
        text = " ".join(["w1", *[self.tiny.placeholder] * len(pictures), "w2"])
        return dict(self.processor(images=[pictures], text=[text], return_tensors="pt"))

    @torch.inference_mode()
    def features(self, pictures: list[Image.Image]) -> torch.Tensor:
        """What enters the text decoder for each image token ``[N, hidden]``."""
        found = []
        decoder = language_model(self.model)
        hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True)
        inputs = self.inputs(pictures)
        self.model(**inputs)
        hook.remove()
        return found[0][0][inputs["input_ids"][0] == describe(self.model).image_token_id]


@pytest.fixture(scope="module")
def seen() -> Any:
    made: dict[str, Seen] = {}
    return lambda name: made.setdefault(name, Seen(name))


@pytest.mark.parametrize("sizes", [[(160, 90)], [(90, 200)], [(64, 64)], [(120, 80), (70, 110)]], ids=["wide", "tall", "square", "two"])
@pytest.mark.parametrize("name", PLACED)
def test_a_spot_moves_the_token_of_its_rectangle(name: str, sizes: list[tuple[int, int]], seen: Any) -> None:
    one = seen(name)
    pictures = [picture(number + 3, *size) for number, size in enumerate(sizes)]
    before = one.features(pictures)
    inputs = one.inputs(pictures)
    grids = image_grids(one.model.config, one.processor, sizes, inputs, len(before))
    assert grids, "every image token has a place"
    assert end(grids) + family_of(one.model.config).tail(sizes) == len(before)
    assert {grid.image for grid in grids} == set(range(len(sizes)))
    cells = [(grid, row, col) for grid in grids for row in range(grid.rows) for col in range(grid.cols)]
    for grid, row, col in random.Random(0).sample(cells, min(len(cells), 14)):
        left, top, right, bottom = grid.box
        wide, tall = (right - left) / grid.cols, (bottom - top) / grid.rows
        x, y = left + (col + 0.5) * wide, top + (row + 0.5) * tall
        if not (2 <= x < sizes[grid.image][0] - 2 and 2 <= y < sizes[grid.image][1] - 2):
            continue  # a token of the padding
        spot = (x - max(1, wide / 5), y - max(1, tall / 5), x + max(1, wide / 5), y + max(1, tall / 5))
        changed = [painted(image, spot) if number == grid.image else image for number, image in enumerate(pictures)]
        moved = (one.features(changed) - before).abs().sum(-1)
        stride = grid.cols + grid.newline
        part = moved[grid.first : grid.first + grid.rows * stride]
        assert int(part.argmax()) == row * stride + col, (grid, row, col)


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(PLACED)))
def test_tokens_without_a_place_have_no_rectangle(name: str) -> None:
    tiny = MODELS[name]
    model, processor, size = tiny.model(), tiny.processor(), (60, 40)
    inputs = dict(processor(images=[picture(1, *size)], text=[tiny.placeholder + " w1"], return_tensors="pt"))
    n_image = int((inputs["input_ids"] == describe(model).image_token_id).sum())
    assert image_grids(model.config, processor, [size], inputs, n_image) == ()
