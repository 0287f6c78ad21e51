"""Which part of a picture an image token covers, for every vision tower: a spot painted there moves that token most."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_models import (
    CHAT_TEMPLATE,
    IMAGE,
    PATCH,
    PINPOINTS,
    SIDE,
    build_processor,
    picture,
    text_config,
)
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PixtralVisionConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

import avl
from avl.models.families import image_grids
from avl.models.families.base import end
from avl.trace import Start

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": PATCH}
TOWERS = {
    "clip": lambda: CLIPVisionConfig(**SIZES, image_size=SIDE, projection_dim=32),
    "siglip": lambda: SiglipVisionConfig(**SIZES, image_size=SIDE),
    "pixtral": lambda: PixtralVisionConfig(**SIZES, image_size=8 * PATCH),
    "dinov2": lambda: Dinov2Config(**SIZES, image_size=SIDE),
}


def build(tower: str, strategy: str, tiles: bool) -> tuple[Any, Any]:
    """A random model whose image tokens depend on their own patch alone, and its processor."""
    torch.manual_seed(0)
    shared = {
        "vision_config": TOWERS[tower](),
        "text_config": text_config("llava-llama"),
        "image_token_index": IMAGE,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": strategy,
    }
    if tiles:
        model: Any = LlavaNextForConditionalGeneration(LlavaNextConfig(**shared, image_grid_pinpoints=PINPOINTS))
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**shared))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2)
        for name, parameter in model.model.vision_tower.named_parameters():
            if "attn.out_proj" in name or "attention.o_proj" in name or "attention.output" in name:
                parameter.zero_()
    model.generation_config.eos_token_id = None
    processor = build_processor("next-llama" if tiles else "llava-llama")
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = 1 if tower in ("clip", "dinov2") else 0
    if tower == "siglip" and not tiles:
        processor.image_processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return model.eval(), processor


class PixtralLike:
    """What PixtralProcessor does, which needs torchvision: row breaks are text tokens."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer, self.image_token, self.chat_template = processor.tokenizer, "<image>", CHAT_TEMPLATE
        self.image_processor = PixtralImageProcessorPil(size={"longest_edge": 8 * PATCH}, patch_size={"height": PATCH, "width": PATCH})
        self.apply_chat_template = processor.apply_chat_template

    def __call__(self, images: Any, text: str, return_tensors: str, **options: Any) -> dict[str, torch.Tensor]:
        pixels = self.image_processor(images, return_tensors="pt")
        for height, width in pixels["image_sizes"].tolist():
            rows = [" ".join(["<image>"] * (width // PATCH))] * (height // PATCH)
            text = text.replace("<image>", " w1 ".join(rows).replace("<image>", "<img>"), 1)
        return {**self.tokenizer(text.replace("<img>", "<image>"), return_tensors="pt", **options), **pixels}


def features(model: Any, inputs: Any) -> torch.Tensor:
    """All image tokens ``[N, hidden]`` of one prompt."""
    given = {key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
    with torch.inference_mode():
        return torch.cat(list(model.get_image_features(**given, return_dict=True).pooler_output))


def check(model: Any, processor: Any, pictures: list[Image.Image]) -> int:
    """Paint a spot into every rectangle of the first picture; return how many there are."""

    def encoded(first: Image.Image) -> Any:
        return processor(images=[first, *pictures[1:]], text="<image> " * len(pictures), return_tensors="pt")

    inputs = encoded(pictures[0])
    n_image = int((inputs["input_ids"] == IMAGE).sum())
    before = features(model, inputs)
    assert before.shape[0] == n_image
    grids = image_grids(model.config, processor, [image.size for image in pictures], inputs, n_image)
    assert end(grids) == n_image
    assert len({grid.image for grid in grids}) == len(pictures)
    spots = 0
    for grid in (grid for grid in grids if grid.image == 0):
        left, top, right, bottom = grid.box
        wide, tall = (right - left) / grid.cols, (bottom - top) / grid.rows
        stride = grid.cols + grid.newline
        for row in range(grid.rows):
            for col in range(grid.cols):
                x, y = left + (col + 0.5) * wide, top + (row + 0.5) * tall
                pixels = np.array(pictures[0])
                pixels[round(y - tall / 5) : round(y + tall / 5), round(x - wide / 5) : round(x + wide / 5)] ^= 255
                moved = (features(model, encoded(Image.fromarray(pixels))) - before).abs().sum(-1)
                part = moved[grid.first : grid.first + grid.rows * stride]
                assert int(part.argmax()) == row * stride + col, (grid, row, col)
                spots += 1
    return spots


@pytest.mark.parametrize("size", [(160, 120), (90, 170)], ids=["wide", "tall"])
@pytest.mark.parametrize(
    ("tower", "strategy", "tiles", "count"),
    [
        ("clip", "default", False, 16),
        ("clip", "full", False, 16),
        ("siglip", "full", False, 16),
        ("clip", "default", True, 16 + 32),
        ("siglip", "full", True, 16 + 32),
        ("pixtral", "full", False, 48),
    ],
)
def test_a_spot_moves_the_token_of_its_rectangle(tower, strategy, tiles, count, size):
    model, processor = build(tower, strategy, tiles)
    if tower == "pixtral":
        processor = PixtralLike(processor)
    assert check(model, processor, [picture(1, *size), picture(2, 60, 60)]) >= count * 2 // 3


@pytest.mark.parametrize(("tower", "strategy"), [("siglip", "default"), ("dinov2", "default"), ("dinov2", "full")], ids=lambda value: value)
def test_no_rectangles_where_the_places_are_not_known(tower, strategy):
    """It answers all the same; the trace has no grids, and the page says so."""
    model, processor = build(tower, strategy, False)
    events = list(avl.stream(model, processor, picture(1), "what is on the sign ?", avl.AVL(S=45, C=30, K=3, P=90), max_new_tokens=3))
    start = next(event for event in events if isinstance(event, Start))
    assert start.grids == ()
    assert start.n_image == (17 if strategy == "full" else 16 if tower == "dinov2" else 15)
    assert len(events[-1].tokens) == 3


@pytest.mark.parametrize(("tower", "strategy", "tiles"), [("clip", "full", False), ("siglip", "full", False), ("siglip", "full", True)])
def test_old_processors_are_completed_from_the_tower(tower, strategy, tiles, tmp_path):
    """Without a word on patches, class tokens or strategy it makes the same ids as the complete one, and the same logits."""
    model, processor = build(tower, strategy, tiles)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    whole = json.loads(file.read_text())
    lacking = {key: value for key, value in whole.items() if not key.startswith(("patch_size", "num_additional", "vision_feature"))}
    assert len(lacking) == len(whole) - 3
    file.write_text(json.dumps(lacking))
    loaded, completed = avl.load(tmp_path, device="cpu")
    asked = {"images": [picture(1)], "text": "<image> w1 w2", "return_tensors": "pt"}
    expected, inputs = processor(**asked), completed(**asked)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).logits, model(**expected).logits)


def test_a_processor_that_gives_other_numbers_has_no_rectangles():
    model, processor = build("clip", "default", False)
    inputs = processor(images=[picture(1)], text="<image>", return_tensors="pt")
    assert len(image_grids(model.config, processor, [(40, 30)], inputs, 16)) == 1
    assert image_grids(model.config, processor, [(40, 30)], inputs, 17) == ()


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "default")])
def test_tiles_that_transformers_cannot_put_together_are_refused(tower, strategy):
    model, _ = build(tower, strategy, True)
    with pytest.raises(TypeError, match="vision_feature_select_strategy"):
        avl.attach(model)
