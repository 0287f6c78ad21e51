"""BLIP-2 with OPT."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from random_models import PAD

from tiny_families.base import IMAGE, WIDTH, Tiny, text_options, tokenizer

QUERIES, SIDE = 8, 28
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 7,
}  # fmt: skip
QFORMER = {
    "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 32, "cross_attention_frequency": 1,
}  # fmt: skip


def config() -> Any:
    text = text_options(model_type="opt", ffn_dim=96, word_embed_proj_dim=WIDTH, dropout=0.0)
    for name in ("num_key_value_heads", "head_dim", "intermediate_size"):  # OPT has none of these
        del text[name]
    return transformers.Blip2Config(
        vision_config=VISION, qformer_config=QFORMER, text_config=text, num_query_tokens=QUERIES, image_token_index=IMAGE
    )


def padded_whole(kind: type, *parts: Any) -> Any:
    """Return a processor that pads rows before the queries: the family's own pads between them and the text, which is no left padding."""

    class PaddedWhole(kind):  # type: ignore[misc]
        def __call__(self, images: Any = None, text: Any = None, padding: bool = False, **options: Any) -> Any:
            if isinstance(text, str) or not padding:
                return super().__call__(images=images, text=text, **options)
            rows = [super(PaddedWhole, self).__call__(images=image, text=line, **options) for image, line in zip(images, text, strict=True)]
            for name in rows[0]:
                if name != "pixel_values":
                    fill, longest = PAD if name.endswith("input_ids") else 0, max(row[name].shape[1] for row in rows)
                    for row in rows:
                        row[name] = torch.nn.functional.pad(row[name], (longest - row[name].shape[1], 0), value=fill)
            return transformers.BatchFeature({name: torch.cat([row[name] for row in rows]) for name in rows[0]})

    PaddedWhole.__name__ = kind.__name__
    return PaddedWhole(*parts, num_query_tokens=QUERIES)


def processor() -> Any:
    images = transformers.BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return padded_whole(transformers.Blip2Processor, images, tokenizer())


MODELS = {"blip-2": Tiny("blip-2", config, processor, "", fused=False, places=False, pictures=False)}
