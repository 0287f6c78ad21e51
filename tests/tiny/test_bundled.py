"""The bundled model as anyone loads it: small files, no special code, right answers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from avl.evaluation import tasks

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "tiny"


@pytest.fixture(scope="module")
def bundled():
    return LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(FOLDER)


def test_files_are_small():
    sizes = [f.stat().st_size for f in FOLDER.iterdir()]
    assert max(sizes) < 10e6
    assert sum(sizes) < 40e6


def test_sizes_are_llavas(bundled):
    model, processor = bundled
    assert model.config.image_seq_length == 576
    assert model.config.text_config.num_hidden_layers >= 8
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_held_out_questions_are_answered_right(bundled):
    model, processor = bundled
    samples = tasks.held_out(10, seed=3)
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": s.question.text}]}], add_generation_prompt=True
        )
        for s in samples
    ]
    inputs = processor(images=[s.image for s in samples], text=texts, return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=96, do_sample=False)
    answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    points = [tasks.score(s.question, a.strip()) for s, a in zip(samples, answers, strict=True)]
    assert sum(points) / len(points) >= 0.85, list(zip([s.question.answer for s in samples], answers, points, strict=True))
