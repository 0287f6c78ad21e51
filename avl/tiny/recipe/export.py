"""Export of the trained model as an ordinary checkpoint: float16 safetensors, tokenizer, processor and generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from avl.tiny.recipe import model as sizes
from avl.tiny.recipe.tokenizer import BOS, EOS, IMAGE, PAD, build_processor, build_tokenizer, wrapped

LOG_ROWS = 60  # rows of the training log that are exported with the model


def assemble(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return an untrained model and its processor; the tokenizer is built once per training folder and kept there."""
    kept = folder / "tokenizer" / "tokenizer.json"
    if not kept.exists():
        build_tokenizer().save_pretrained(kept.parent)
    tokenizer = wrapped(Tokenizer.from_file(str(kept)))
    image, bos, eos, pad = (tokenizer.get_vocab()[name] for name in (IMAGE, BOS, EOS, PAD))
    llava = sizes.build(len(tokenizer), image, bos, eos, pad)
    return llava, build_processor(tokenizer)


def begin_with(folder: Path, model: Path) -> None:
    """Copy a trained model's tokenizer to a training folder, so that token ids match the rows of its embedding."""
    kept = folder / "tokenizer" / "tokenizer.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model / "tokenizer.json", kept)


def export(checkpoints: Path, out: Path) -> None:
    """Write the newest weights of a training folder as a model folder.

    Args:
        checkpoints: the training folder, with `vision.pt` and, once stage 2 has begun, `language.pt`.
        out: the model folder to write, for `from_pretrained`.
    """
    llava, processor = assemble(checkpoints)
    if (checkpoints / "vision.pt").exists():
        sizes.tower(llava).load_state_dict(torch.load(checkpoints / "vision.pt", map_location="cpu")["tower"])
    if (checkpoints / "language.pt").exists():
        llava.load_state_dict(torch.load(checkpoints / "language.pt", map_location="cpu")["model"])
    llava.generation_config = GenerationConfig(
        bos_token_id=processor.tokenizer.bos_token_id,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=96,
    )
    llava.half().save_pretrained(out, max_shard_size="8MB")
    processor.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes them readable for the owner only
    if (checkpoints / "log.jsonl").exists():
        rows = (checkpoints / "log.jsonl").read_text().splitlines()
        every = -(-len(rows) // LOG_ROWS)
        thinned = [row for index, row in enumerate(rows) if index % every == 0 or index == len(rows) - 1]
        (out / "train_log.jsonl").write_text("\n".join(thinned) + "\n")
