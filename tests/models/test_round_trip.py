"""Every family: a folder of model and processor loads to what was saved, and off the happy path it is refused in one sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_faults import change, remove
from random_models import picture
from tiny_families import MODELS

import avl
from avl import trace
from avl.models.inputs import prepare
from avl.models.prompt import Prompt

SIZE = (50, 40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save a family's model and processor once; the folder."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        if not (root / name).exists():
            MODELS[name].model().save_pretrained(root / name)
            processor = MODELS[name].processor()
            processor.save_pretrained(root / name)
            change("processor_config.json", lambda settings: settings.update(processor_class=own_class(processor)))(root / name)
        return root / name

    return make


def own_class(processor: Any) -> str:
    """The name of a processor's class in transformers; tests have subclasses, and Pixtral's is the project's own of that name."""
    return next(kind.__name__ for kind in type(processor).__mro__ if kind.__name__ in dir(transformers))


def prompt(name: str) -> Prompt:
    tiny = MODELS[name]
    return Prompt(f"what is {tiny.placeholder} on the sign ?")


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_what_loads(name, folders):
    tiny = MODELS[name]
    model, processor = avl.load(folders(name), device="cpu")
    assert own_class(processor) == own_class(tiny.processor())
    assert processor.tokenizer.padding_side == "left"
    inputs, _ = prepare(model, processor, [picture(1, *SIZE)], prompt(name))
    expected, _ = prepare(tiny.model(), tiny.processor(), [picture(1, *SIZE)], prompt(name))
    assert inputs.keys() == expected.keys()
    for key, value in inputs.items():
        assert torch.equal(value, expected[key]), key
    with torch.inference_mode():
        logits = model(**inputs).logits
        assert torch.equal(logits, tiny.model()(**expected).logits)
    policy = avl.AVL(S=45, C=30, K=3, P=90, T=60)
    events = list(avl.stream(model, processor, picture(1, *SIZE), prompt(name), policy, max_new_tokens=4))
    assert isinstance(events[-1], trace.End)
    assert sum(isinstance(event, trace.Prefill | trace.Step) for event in events) == 4


# ------------------------------------------------------------------------------------------------------------------------ faults

FAMILIES = {tiny.family: name for name, tiny in reversed(MODELS.items())}
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def refused(folder: Path) -> str:
    """The sentence that refuses a checkpoint."""
    with pytest.raises(OSError, match="copy or download the folder again") as raised:
        avl.load(folder, device="cpu")
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 600
    return message.replace(str(folder), "")


def another_token(config: dict) -> None:
    for name in ("image_token_id", "image_token_index"):
        if name in config:
            config[name] = 100


@pytest.mark.parametrize("fault", ["token", "vocabulary", "settings", "tokenizer", "foreign"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fault_is_one_sentence(family, fault, folders, tmp_path):
    folder = Path(shutil.copytree(folders(FAMILIES[family]), tmp_path / "model"))
    words = {
        "token": "token \\d+, where config.json has 100",
        "vocabulary": "tokenizer of \\d+ tokens for a model of 60",
        "settings": "holds no processor_config.json or preprocessor_config.json",
        "tokenizer": "holds no tokenizer.json",
        "foreign": "has a processor|has a tokenizer|has other image_grid_pinpoints",
    }
    if fault == "token":
        change("config.json", another_token)(folder)
    if fault == "vocabulary":
        change("config.json", lambda config: config["text_config"].update(vocab_size=60))(folder)
    if fault in ("settings", "tokenizer"):
        remove({"settings": "processor_config.json", "tokenizer": "tokenizer.json"}[fault])(folder)
    if fault == "foreign":
        other = folders(FAMILIES["qwen2_vl" if family == "llava_next" else "llava_next"])
        remove(*PROCESSOR_FILES)(folder)
        for name in PROCESSOR_FILES:
            if (other / name).exists():
                shutil.copy(other / name, folder / name)
    assert re.search(words[fault], refused(folder))


def test_a_second_tokenizer_that_is_the_first(folders, tmp_path):
    """transformers takes the text decoder's tokenizer for the Q-Former where the latter's folder is missing."""
    folder = Path(shutil.copytree(folders("instructblip"), tmp_path / "model"))
    shutil.rmtree(folder / "qformer_tokenizer")
    change("config.json", lambda config: config["qformer_config"].update(vocab_size=100))(folder)
    assert "has a qformer_tokenizer of 136 tokens for a Q-Former of 100" in refused(folder)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("qwen2_vl", {"patch_size": 7}, "patches of 294 values for a vision tower of 150"),
        ("qwen3_vl", {"merge_size": 1}, "makes 130 image tokens of a picture of which the model makes 30"),
        ("glm4v", {"temporal_patch_size": 1}, "patches of 75 values for a vision tower of 150"),
        ("gemma3", {"size": {"height": 60, "width": 60}}, "pictures of 60 × 60 pixels for a vision tower of 40"),
        ("paligemma", {"size": {"height": 56, "width": 56}}, "pictures of 56 × 56 pixels for a vision tower of 28"),
    ],
)
def test_pixels_that_the_model_cannot_read(family, changes, words, folders, tmp_path):
    folder = Path(shutil.copytree(folders(FAMILIES[family]), tmp_path / "model"))
    change("processor_config.json", lambda settings: settings["image_processor"].update(changes))(folder)
    assert re.search(words, refused(folder))
