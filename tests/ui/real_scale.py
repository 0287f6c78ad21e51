"""A page over a random model with the geometry of LLaVA-1.6-13B: 2928 image tokens of a 672 x 672 picture, 40 layers, all thin.

``python tests/ui/real_scale.py PORT`` serves it until it is terminated.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

LAYERS, HEADS, HEAD_DIM, SIDE, PATCH = 40, 2, 32, 336, 14
N_IMAGE, TOKENS = 2928, 256
PICTURE = (672, 672)
TILES = [[rows * SIDE, columns * SIDE] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def model_and_processor() -> tuple[Any, Any]:
    """Return the model, whose answers never end by themselves, and its processor."""
    import random_models
    import torch
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    text = random_models.text_config(
        "next-llama", hidden_size=HEADS * HEAD_DIM, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, head_dim=HEAD_DIM, max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=random_models.IMAGE, vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_grid_pinpoints=TILES,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config).requires_grad_(False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # attention of some contrast
                parameter.normal_(0.0, 0.15)
        model.lm_head.weight[: len(random_models.SPECIAL)] = 0.0
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = random_models.PAD
    processor = random_models.build_processor("next-llama", SIDE, PATCH)
    processor.image_processor.image_grid_pinpoints = TILES
    return model, processor


def serve(port: int) -> None:
    """Serve the page and wait."""
    from avl.engine import scheduler
    from avl.ui import page, starting
    from avl.ui.limits import Limits
    from avl.ui.progress import Progress

    model, processor = model_and_processor()
    run = functools.partial(scheduler.run, model, processor)
    built = page.build(run, starting._about(model, processor, "real-scale"), limits=Limits())
    built.transport.rehearse(functools.partial(starting._warm_up, run, "real-scale", Progress("real-scale")))
    built.launch(server_port=port)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
