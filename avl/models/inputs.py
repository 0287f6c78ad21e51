"""From images and a question to the model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image


def chat_prompt(processor: Any, question: str, n_images: int) -> str:
    """Wrap a plain question in the model's chat template; return text with image placeholders as it is, as a whole prompt.

    Raises:
        ValueError: the question is empty, or its placeholders do not match the number of images.
    """
    if not question or not question.strip():
        raise ValueError("the question is empty: ask something about the image")
    image_token = processor.image_token
    if image_token in question:
        if question.count(image_token) != n_images:
            raise ValueError(
                f"the prompt has {question.count(image_token)} placeholders {image_token} for {n_images} images: write one for each image"
            )
        return question
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": question.strip()}]
    if getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None):
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    # checkpoints without a template belong to the LLaVA-1.5 family, whose model card gives this form
    images = f"{image_token}\n" * n_images
    return f"USER: {images}{question.strip()} ASSISTANT:"


def prepare(model: Any, processor: Any, images: Sequence[Image.Image], question: str) -> tuple[dict[str, Any], str]:
    """Return the model inputs of one request, on the model's device, and their prompt.

    Raises:
        ValueError: there is no image, or :func:`chat_prompt` raises it.
    """
    if not images:
        raise ValueError("there is no image: upload one, or pick an example")
    prompt = chat_prompt(processor, question, len(images))
    inputs = processor(images=list(images), text=prompt, return_tensors="pt")
    kept = {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
    moved = {key: value.to(model.device) for key, value in inputs.items() if key in kept}
    moved["pixel_values"] = moved["pixel_values"].to(model.dtype)
    return moved, prompt


def repeat(inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    """Return inputs for ``batch`` copies of a request: every tensor repeated along its first dimension."""
    return {key: torch.cat([value] * batch) if batch > 1 else value for key, value in inputs.items()}
