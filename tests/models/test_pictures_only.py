"""Processors with a part for videos load without it: from every layout of files, with the class's own options, from the Hub's cache too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from checkpoint_faults import change
from random_models import picture
from tiny_families import MODELS
from tiny_families.base import pictures_only, tokenizer

import avl
from avl.models.pictures_only import read_processor

ROOT = Path(__file__).resolve().parents[2]
TINY = MODELS["qwen2_5_vl"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def split(folder: Path, named_in: str | None) -> None:
    """Lay a processor's files out as older releases did: settings of each part apart, the class named in one file or nowhere."""
    whole = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    parts = {"preprocessor_config.json": whole["image_processor"], "tokenizer_config.json": {}}
    for name, values in parts.items():
        old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        old.pop("processor_class", None)
        if name == named_in:
            values = {**values, "processor_class": whole["processor_class"]}
        (folder / name).write_text(json.dumps({**old, **values}))


def with_videos(folder: Path, named_in: str | None = None) -> None:
    """Add settings of the part for videos, as checkpoints of the Hub have them."""
    change("processor_config.json", lambda settings: settings.update(video_processor={"video_processor_type": "Qwen2VLVideoProcessor"}))(
        folder
    )


def no_change(folder: Path, named_in: str | None = None) -> None:
    """As save_pretrained writes it."""


@pytest.fixture
def folder(tmp_path):
    TINY.config().save_pretrained(tmp_path)
    processor = TINY.processor()
    processor.chat_template = TEMPLATE
    processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("layout", "named_in"),
    [(no_change, None), (with_videos, None), (split, "preprocessor_config.json"), (split, "tokenizer_config.json"), (split, None)],
)
def test_every_layout_of_files(layout, named_in, folder):
    layout(folder, named_in)
    found = read_processor(str(folder), None, folder, TINY.config())
    assert type(found).__name__ == "Qwen2_5_VLProcessor"
    assert isinstance(found, transformers.Qwen2_5_VLProcessor)
    assert found.chat_template == TEMPLATE
    options = {"images": [picture(1), picture(2, 60, 30)], "text": f"w1 {TINY.placeholder} {TINY.placeholder} w2", "return_tensors": "pt"}
    made, expected = found(**options), TINY.processor()(**options)
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in made)
    with pytest.raises(ImportError, match=r"Qwen2_5_VLProcessor was loaded for pictures only: videos need torchvision"):
        found(videos=[torch.zeros(2, 3, 40, 40, dtype=torch.uint8)], text="<|video_pad|>")


def test_what_was_loaded_can_be_saved_and_loaded(folder, tmp_path):
    again = tmp_path / "again"
    read_processor(str(folder), None, folder, TINY.config()).save_pretrained(again)
    assert json.loads((again / "processor_config.json").read_text())["processor_class"] == "Qwen2_5_VLProcessor"
    assert read_processor(str(again), None, again, TINY.config()).chat_template == TEMPLATE


def test_pixtrals_files_are_looked_at_after_they_were_fetched(tmp_path, monkeypatch):
    """The first time from the Hub, the cache holds config.json alone until AutoProcessor has fetched the rest."""
    read = transformers.AutoProcessor.from_pretrained

    def fetch(*arguments, **options):
        MODELS["mistral3"].processor().save_pretrained(tmp_path)
        return read(*arguments, **options)

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fetch)
    found = read_processor(str(tmp_path), None, tmp_path, MODELS["mistral3"].config())
    assert (type(found).__name__, found.patch_size, found.spatial_merge_size) == ("PixtralProcessor", 5, 2)


def test_where_videos_work_the_whole_processor_comes_first(folder, monkeypatch):
    whole = SimpleNamespace(image_processor=None)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: whole)
    assert read_processor(str(folder), None, folder, TINY.config()) is whole


def test_options_of_the_class_are_kept_and_no_package_of_videos_is_asked_for(tmp_path):
    """SmolVLM's processor asks for num2words when it is made, whose only use is for videos."""
    module = sys.modules[transformers.SmolVLMProcessor.__module__]
    before = module.num2words
    size = {"height": 40, "width": 40}
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=size)
    pictures_only(transformers.SmolVLMProcessor, images, tokenizer(), image_seq_len=4).save_pretrained(tmp_path)
    found = read_processor(str(tmp_path), None, tmp_path, None)
    assert (type(found).__name__, found.image_seq_len, found.image_processor.crop_size["height"]) == ("SmolVLMProcessor", 4, 40)
    assert module.num2words is before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("\nLlavaProcessor requires the Sentencepiece library but it was not found"), "needs sentencepiece, which is not"),
        (ImportError("Package `num2words` is required to run it."), "needs num2words, which is not installed"),
        (ValueError("None could be imported. Missing optional dependencies: torchvision. Please"), "needs torchvision, which is not"),
        (ImportError("something else"), r"needs what is not installed \(something else\)"),
    ],
)
def test_a_missing_package_is_named(error, words, monkeypatch):
    """Of a class without a part for videos there is nothing to leave out."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fail)
    with pytest.raises(OSError, match="the bundled model has a processor that ") as raised:
        avl.load("tiny", device="cpu")
    assert re.search(words, str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_from_the_cache_of_the_hub(folder, tmp_path):
    """Without a network, by name and by revision."""
    snapshot = tmp_path / "hub" / "models--owner--some-qwen" / "snapshots" / ("b" * 40)
    TINY.model().save_pretrained(snapshot)
    for file in folder.glob("*.j*"):
        if file.name != "config.json":
            (snapshot / file.name).write_bytes(file.read_bytes())
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("b" * 40)
    source = """
    import avl
    for revision in (None, "main", "b" * 40):
        model, processor = avl.load("owner/some-qwen", device="cpu", revision=revision)
        print(type(model).__name__, type(processor).__name__, bool(processor.chat_template))
    """
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(source)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.split() == ["Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", "True"] * 3
