"""Attach and detach in any order, with other changes to the model between them: right, or refused in a sentence."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_models import build_model, encode, picture, request, shared_processor
from transformers import LlavaForConditionalGeneration

import avl
from avl._compat import attention_name, hooks_of
from avl.attention.attachment import is_attached

ROOT = Path(avl.__file__).parents[1]
NEW = 6
POLICY = avl.AVL(S=45, C=30, K=3, P=90, T=60)


def answer(model, cached=True):
    inputs = dict(encode(shared_processor("llava-llama"), [request(1)]))
    cache = {"past_key_values": avl.make_cache(model, inputs, POLICY, NEW)} if cached else {}
    return model.generate(**inputs, **cache, max_new_tokens=NEW, do_sample=False)[0, -NEW:].tolist()


def hooks(model):
    """Every hook in the model but those that transformers' own recording leaves behind."""
    found = [hook for module in model.modules() for part in hooks_of(module) for hook in part]
    return [hook for hook in found if hook.__module__.startswith("avl.")]


@pytest.fixture(scope="module")
def expected():
    with torch.inference_mode():
        return answer(avl.attach(build_model("llava-llama"))), answer(build_model("llava-llama"), cached=False)


ACTIONS = {
    "attach": avl.attach,
    "detach": avl.detach,
    "eager": lambda model: model.set_attn_implementation("eager"),
    "sdpa": lambda model: model.set_attn_implementation("sdpa"),
}


@pytest.mark.parametrize("order", list(itertools.product(ACTIONS, repeat=3)), ids="-".join)
@torch.inference_mode()
def test_every_order_of_three(order, expected):
    """Attached at the end: adaptive attention, or a sentence. Detached: the model as it was, without a hook of ours."""
    model = build_model("llava-llama")
    for name in order:
        ACTIONS[name](model)
    attentions = [name for name in order if name in ("eager", "sdpa")]
    if is_attached(model):
        assert answer(model) == expected[0]
    else:
        with pytest.raises(RuntimeError, match=r"call avl\.attach\(model\)"):
            answer(model)
    assert answer(model, cached=False) == expected[1]
    avl.attach(model)
    assert answer(model) == expected[0]
    avl.detach(model)
    assert hooks(model) == []
    assert attention_name(model.config.text_config) == (attentions[-1] if attentions else "sdpa")
    assert answer(model, cached=False) == expected[1]


@torch.inference_mode()
def test_models_that_share_a_config(expected):
    """A detached twin takes the attention's name along: the other says so instead of answering wrongly."""
    one = build_model("llava-llama")
    two = LlavaForConditionalGeneration(one.config).eval()
    two.load_state_dict(one.state_dict())
    assert two.config.text_config is one.config.text_config
    avl.attach(one)
    avl.attach(two)
    assert answer(one) == answer(two) == expected[0]
    avl.detach(one)
    assert answer(one, cached=False) == expected[1]
    with pytest.raises(RuntimeError, match=r"call avl\.attach"):
        answer(two)
    avl.attach(two)
    assert answer(two) == expected[0]
    assert answer(one, cached=False) == expected[1]


@torch.inference_mode()
def test_a_copy_of_an_attached_model_is_attached(expected):
    model = avl.attach(build_model("llava-llama"))
    twin = copy.deepcopy(model)
    avl.detach(model)
    assert is_attached(twin)
    assert not is_attached(model)
    assert answer(twin) == expected[0]
    events = list(avl.stream(twin, shared_processor("llava-llama"), picture(1), "what is this ?", POLICY, max_new_tokens=3))
    assert events[-1].kind == "end"
    inputs = dict(encode(shared_processor("llava-llama"), [request(1)]))
    cache = avl.make_cache(avl.attach(model), inputs, POLICY, NEW)
    with pytest.raises(ValueError, match="made for another model"):
        twin.generate(**inputs, past_key_values=cache, max_new_tokens=NEW)


IN_A_NEW_PROCESS = f"""
import pickle, sys
model, inputs, states, expected = pickle.loads(open(sys.argv[1], "rb").read())
plain = model(inputs_embeds=states).logits
import avl
cache = avl.make_cache(model, inputs, avl.{POLICY!r}, {NEW})
adaptive = model(inputs_embeds=states, past_key_values=cache, use_cache=True).logits
step = model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache, use_cache=True).logits
for found, wanted in zip((plain, adaptive, step), expected, strict=True):
    assert (found - wanted).abs().max() == 0
print(cache.stored_tokens)
"""


def test_an_attached_model_is_pickled_attached(tmp_path):
    """In a new process that imports nothing of ours before it runs the model. (Pictures: transformers itself cannot, there.)"""
    model = avl.attach(build_model("llava-llama"))
    inputs = dict(encode(shared_processor("llava-llama"), [request(1)]))
    states = torch.randn(1, inputs["input_ids"].shape[1], 64, generator=torch.Generator().manual_seed(0))
    cache = avl.make_cache(model, inputs, POLICY, NEW)
    content = pickle.dumps(model)
    plain = model(inputs_embeds=states).logits
    adaptive = model(inputs_embeds=states, past_key_values=cache, use_cache=True).logits
    step = model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache, use_cache=True).logits
    (tmp_path / "model").write_bytes(pickle.dumps((pickle.loads(content), inputs, states, (plain, adaptive, step))))
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(1)" + IN_A_NEW_PROCESS, str(tmp_path / "model")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(cache.stored_tokens)


@torch.inference_mode()
def test_a_saved_model_says_nothing_of_us(tmp_path):
    model = avl.attach(build_model("llava-llama"))
    model.save_pretrained(tmp_path)
    assert "avl_" not in (tmp_path / "config.json").read_text()
    assert attention_name(LlavaForConditionalGeneration.from_pretrained(tmp_path).config.text_config) == "sdpa"


@torch.inference_mode()
def test_offloaded_weights(expected):
    """``model.generate`` runs them; our own loop would load them at every step, and says so."""
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(build_model("llava-llama"), execution_device=torch.device("cpu"))
    avl.attach(model)
    assert answer(model) == expected[0]
    with pytest.raises(ValueError, match=r"\d+ of the model's weights are offloaded"):
        avl.stream(model, shared_processor("llava-llama"), picture(1), "what is this ?", POLICY, max_new_tokens=3)


@pytest.mark.parametrize("wrapper", ["peft", "compiled", "parallel"])
def test_a_wrapped_model_is_refused_with_a_hint(wrapper):
    model = build_model("llava-llama")
    if wrapper == "peft":
        peft = pytest.importorskip("peft")
        wrapped, hint = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])), r"model.get_base_model\(\)"
    elif wrapper == "compiled":
        wrapped, hint = torch.compile(model), "model._orig_mod"
    else:
        wrapped, hint = torch.nn.DataParallel(model), "model.module"
    with pytest.raises(TypeError, match=f"this is a wrapper: pass what it wraps, {hint}"):
        avl.attach(wrapped)
    inner = wrapped.get_base_model() if wrapper == "peft" else model
    assert is_attached(avl.attach(inner))
