"""A model sharded by accelerate, and rows of different length through our own decode loop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from random_models import ARCHITECTURES, build_model, encode, picture, request, shared_model, shared_processor

import avl
from avl.engine.decoder import Decoder
from avl.models.families import language_model
from avl.models.placement import devices, placement
from avl.trace import End

ROOT = Path(__file__).resolve().parents[2]
POLICY = avl.AVL(S=45, C=30, K=2, P=70, T=50)


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_dispatched_model_gives_the_same_answer(architecture):
    """accelerate's hooks move every module's inputs, here from the CPU to the CPU, as they do between GPUs."""
    plain, spread = build_model(architecture), build_model(architecture)
    names = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    text = [name for name, _ in language_model(spread).named_children() if name != "layers"]
    names += [f"model.language_model.{name}" for name in text]
    names += [f"model.language_model.layers.{number}" for number in range(len(language_model(spread).layers))]
    # LLaVA-1.6's newline feature is a bare parameter of the model
    names += [f"model.{name}" for name, _ in spread.model.named_parameters(recurse=False)]
    spread = dispatch_model(spread, dict.fromkeys(names, "cpu"), main_device="cpu", force_hooks=True)
    assert hasattr(language_model(spread).layers[1], "_hf_hook")
    answers = []
    for model in (plain, spread):
        events = avl.stream(model, shared_processor(architecture), picture(2), "what is this ?", POLICY, max_new_tokens=10)
        answers.append(next(event.tokens for event in events if isinstance(event, End)))
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_every_layer_s_cache_is_beside_its_layer():
    """Layers on two stand-ins for GPUs, which refuse tensors of one another, answer as on one device: ragged rows, and a stream."""
    script = ROOT / "tests" / "spread_model.py"
    done = subprocess.run([sys.executable, str(script), "next-mistral"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert "same device" in told["apart"], "the stand-ins do not hold values apart"
    assert told["placement"].startswith("privateuseone:0 (layers 0–1), privateuseone:1 (layers 2–3)")
    assert set(told["same"].values()) == set(told["beside"].values()) == {True}
    assert told["streamed"]
    assert told["captured"] == "the model is spread over several devices"
    assert told["warnings"] == ["decode steps run the model's own modules, which takes longer: its layers are on several devices"]


def test_a_place_is_told_by_layers():
    model = shared_model("llava-llama")
    assert placement(model) == "cpu"
    assert devices(model) == [torch.device("cpu")]
    with torch.device("meta"):
        split = type(model)(model.config)
    for part in (split.model.language_model.embed_tokens, *split.model.language_model.layers[:3]):
        part.to_empty(device="cpu")
    assert placement(split) == "cpu (layers 0–2), meta (layer 3)"


def test_load_takes_a_device_map():
    model, processor = avl.load("tiny", device_map="auto")
    assert len(list(avl.stream(model, processor, picture(1), "What is this?", POLICY, max_new_tokens=3))) > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_our_loop_takes_rows_of_different_length(architecture):
    model, processor = avl.attach(shared_model(architecture)), shared_processor(architecture)
    inputs = dict(encode(processor, [request(1), request(2, before=6, after=9), request(3, sizes=((40, 30), (30, 44)))]))
    cache = avl.make_cache(model, inputs, POLICY, max_new_tokens=8)
    generated = model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False, eos_token_id=None)
    decoder = Decoder(model, avl.make_cache(model, inputs, POLICY, max_new_tokens=8))
    tokens = [decoder.prefill(inputs).argmax(dim=-1)]
    for _ in range(7):
        tokens.append(decoder.step(tokens[-1]).argmax(dim=-1))
    assert torch.stack(tokens, dim=1).tolist() == generated[:, -8:].tolist()
