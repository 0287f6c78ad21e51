"""Whatever changes what a model computes, a decode step computes it too: the fast path is taken only where nothing was changed."""

from __future__ import annotations

import contextlib
import copy
import types

import pytest
import torch
from random_models import LAYERS, build_model, encode, picture, request, shared_processor
from tiny_families import MODELS
from tiny_families.base import RAGGED
from tiny_families.base import encode as encode_family
from torch.nn.utils import parametrize
from transformers.models.llama import modeling_llama

import avl
from avl.engine.decoder import Decoder
from avl.engine.fusable import why_not
from avl.engine.fused import FusedLayers
from avl.trace import Warning

STEPS = 6
ROWS = [request(1), request(2)]
POLICIES = [avl.Full(), avl.AVL(S=45, C=30, K=3, P=90, T=60), avl.H2O(keep=50), avl.SnapKV(keep=50)]


class Linear(torch.nn.Linear):
    """As an adapter would be called: another computation under the name of torch's class."""

    def forward(self, x):
        return 2 * super().forward(x)


class LlamaMLP(modeling_llama.LlamaMLP):
    """A subclass with the name of its base."""

    def forward(self, x):
        return 2 * super().forward(x)


class Gelu(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.gelu(x)


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


class Tagged(torch.Tensor):
    """A tensor subclass, as quantized weights are."""


def double(output):
    """Twice the hidden states of whatever a module returns."""
    if isinstance(output, torch.Tensor):
        return 2 * output
    if isinstance(output, tuple):
        return (2 * output[0], *output[1:])
    output = copy.copy(output)
    name = next(name for name in ("last_hidden_state", "logits") if name in output)
    # not a factor: a head's norm, or the argmax, would not see one
    output[name] = output[name] + torch.linspace(-3, 3, output[name].shape[-1])
    return output


def forward_hook(module):
    module.register_forward_hook(lambda module, args, output: double(output))


def pre_hook(module):
    module.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))


def another_forward(module):
    """What kernels from the Hub, accelerate and hand-made patches do."""
    forward = type(module).forward
    module.forward = types.MethodType(lambda self, *args, **kwargs: double(forward(self, *args, **kwargs)), module)


def adapter(name, **options):
    def add(model):
        peft = pytest.importorskip("peft")
        config = getattr(peft, name)(target_modules=options.pop("target_modules", ["q_proj", "v_proj", "down_proj"]), **options)
        if name == "LoKrConfig":
            config.task_type = None
        model.add_adapter(config)
        for parameter_name, parameter in model.named_parameters():
            if any(part in parameter_name for part in ("lora_", "ia3_", "lokr_", "oft_")):
                torch.nn.init.normal_(parameter, 1.0 if "ia3" in parameter_name else 0.0, 0.3)
        model.eval()

    return add


def replace(path, make):
    def change(model):
        owner, _, name = path.rpartition(".")
        owner = model.get_submodule(owner)
        old = getattr(owner, name)
        new = make(old)
        new.load_state_dict(old.state_dict(), strict=False)
        setattr(owner, name, new.eval())

    return change


def at(path, change):
    return lambda model: change(model.get_submodule(path))


def bias(module, kind=torch.Tensor):
    module.bias = torch.nn.Parameter(torch.randn(module.out_features).as_subclass(kind), requires_grad=False)


TEXT = "model.language_model"
MLP = f"{TEXT}.layers.2.mlp"
ATTENTION = f"{TEXT}.layers.2.self_attn"

CHANGES = {
    "LoRA": (adapter("LoraConfig", r=4), "q_proj of layer 0 is a Linear of peft"),
    "DoRA": (adapter("LoraConfig", r=4, use_dora=True), "q_proj of layer 0 is a Linear of peft"),
    "IA3": (adapter("IA3Config", feedforward_modules=["down_proj"]), "q_proj of layer 0 is a Linear of peft"),
    "LoKr": (adapter("LoKrConfig", r=4), "q_proj of layer 0 is a Linear of peft"),
    "LoRA on the head and norms": (adapter("LoraConfig", r=4, target_modules=["gate_proj"]), "gate_proj of layer 0 is a Linear of peft"),
    "a Linear of another class": (
        replace(f"{ATTENTION}.v_proj", lambda old: Linear(old.in_features, old.out_features, bias=False)),
        "v_proj of layer 2 is a Linear of test_fusable",
    ),
    "a subclass with its base's name": (replace(MLP, lambda old: LlamaMLP(old.config)), "mlp of layer 2 is a LlamaMLP of test_fusable"),
    "another activation": (replace(f"{MLP}.act_fn", lambda old: Gelu()), "the activation of layer 2 is a Gelu"),
    "a hooked activation": (at(f"{MLP}.act_fn", forward_hook), "the activation of layer 2 has a hook"),
    "a hooked projection": (at(f"{ATTENTION}.k_proj", forward_hook), "k_proj of layer 2 has a hook"),
    "a hooked MLP": (at(MLP, pre_hook), "mlp of layer 2 has a hook"),
    "a hooked layer": (at(f"{TEXT}.layers.2", forward_hook), "layer 2 has a hook"),
    "a hooked text model": (at(TEXT, forward_hook), "the text model has a hook"),
    "a hooked parent": (at("model", forward_hook), "model has a hook"),
    "a hooked model": (at("", forward_hook), "the model has a hook"),
    "a hooked final norm": (at(f"{TEXT}.norm", forward_hook), "the final norm has a hook"),
    "a hooked rotary embedding": (at(f"{TEXT}.rotary_emb", forward_hook), "the rotary embedding has a hook"),
    "a norm's other forward": (at(f"{TEXT}.layers.2.input_layernorm", another_forward), "input_layernorm of layer 2 has another forward"),
    "the text model's other forward": (at(TEXT, another_forward), "the text model has another forward"),
    "a parametrization": (
        lambda model: parametrize.register_parametrization(model.get_submodule(f"{MLP}.up_proj"), "weight", Halved()),
        "up_proj of layer 2 is a ParametrizedLinear",
    ),
    "a bias beside none": (
        at(f"{ATTENTION}.q_proj", bias),
        "only some projections with one input have a bias, those of layer 2",
    ),
    "a bias of a tensor subclass": (
        at(f"{ATTENTION}.o_proj", lambda module: bias(module, Tagged)),
        "o_proj of layer 2 has a bias of class Tagged",
    ),
    "a tensor subclass": (
        lambda model: setattr(
            model.get_submodule(f"{MLP}.up_proj"),
            "weight",
            torch.nn.Parameter(torch.randn(96, 64).as_subclass(Tagged), requires_grad=False),
        ),
        "up_proj of layer 2 has a weight of class Tagged",
    ),
}


@contextlib.contextmanager
def nothing():
    yield


@contextlib.contextmanager
def patched(owner, name, new):
    """A class or a function of a modeling file replaced for all models, as kernel libraries do."""
    old = getattr(owner, name)
    setattr(owner, name, new(old))
    try:
        yield
    finally:
        setattr(owner, name, old)


@contextlib.contextmanager
def hooked_everywhere():
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: 2 * output if isinstance(module, modeling_llama.LlamaMLP) else None
    )
    try:
        yield
    finally:
        handle.remove()


PATCHES = {
    "a class's forward": (
        lambda: patched(modeling_llama.LlamaMLP, "forward", lambda old: lambda self, x: 2 * old(self, x)),
        "the forward of LlamaMLP was replaced",
    ),
    "a class": (
        lambda: patched(modeling_llama, "LlamaMLP", lambda old: types.new_class("LlamaMLP", (LlamaMLP,))),
        "mlp of layer 0 is a LlamaMLP",
    ),
    "a class's call": (
        lambda: patched(modeling_llama.LlamaRMSNorm, "__call__", lambda old: lambda self, x: 2 * old(self, x)),
        "the forward of LlamaRMSNorm was replaced",
    ),
    "a function": (
        lambda: patched(modeling_llama, "apply_rotary_pos_emb", lambda old: lambda q, k, cos, sin, *rest: old(q, k, sin, cos, *rest)),
        "apply_rotary_pos_emb of transformers.models.llama.modeling_llama was replaced",
    ),
    "a linear layer's forward": (
        lambda: patched(torch.nn.Linear, "forward", lambda old: lambda self, x: 1.5 * old(self, x)),
        "the forward of Linear was replaced",
    ),
    "a hook for all modules": (hooked_everywhere, "a hook is registered for all modules"),
}


def decode(model, inputs, tokens=None):
    """Logits ``[B, STEPS + 1, V]`` of a prompt and the steps that follow it; the tokens fed, ``tokens`` or the best ones."""
    cache = avl.make_cache(model, inputs, avl.Full(), STEPS)
    decoder = Decoder(model, cache)
    logits, fed = [decoder.prefill(inputs)], []
    for number in range(STEPS):
        fed.append(logits[-1].argmax(dim=-1) if tokens is None else tokens[number])
        logits.append(decoder.step(fed[-1]))
    return torch.stack(logits, dim=1), fed, decoder


def whole(model, inputs, fed):
    """The same logits by one forward of the model over the prompt and all tokens fed."""
    ids = torch.cat([inputs["input_ids"], torch.stack(fed, dim=1)], dim=1)
    return model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -STEPS - 1 :]


def check(model, inputs, reason, usual):
    assert reason in why_not(model)
    found, fed, decoder = decode(model, inputs)
    assert reason in decoder.unfused
    torch.testing.assert_close(found, whole(model, inputs, fed), rtol=2e-4, atol=2e-4)
    assert (decode(model, inputs, usual[1])[0] - usual[0]).abs().max() > 1e-2, "the change changes nothing: the test cannot fail"
    with pytest.raises(ValueError, match="run its modules"):
        FusedLayers(model, avl.make_cache(model, inputs, avl.Full(), STEPS))


def prepared():
    model, processor = build_model("llava-llama"), shared_processor("llava-llama")
    inputs = dict(encode(processor, ROWS))
    with torch.inference_mode():
        avl.attach(model)
        assert why_not(model) is None
        return model, processor, inputs, decode(model, inputs)[:2]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_model_changes_its_steps(change):
    """Logits of every step equal those of the changed model's own forward, and the reason for the slower path is told."""
    model, processor, inputs, usual = prepared()
    make, reason = CHANGES[change]
    make(model)
    with torch.inference_mode():
        check(model, inputs, reason, usual)
    events = list(avl.stream(model, processor, picture(1), "what is this ?", avl.Full(), max_new_tokens=3))
    assert any(isinstance(event, Warning) and reason in event.message for event in events)


@pytest.mark.parametrize("patch", PATCHES)
def test_what_changes_a_class_changes_the_steps(patch):
    make, reason = PATCHES[patch]
    if patch == "a class":  # before the model is made, which is when such patches are applied
        _, _, inputs, usual = prepared()
        with make(), torch.inference_mode():
            check(avl.attach(build_model("llava-llama")), inputs, reason, usual)
        return
    model, _, inputs, usual = prepared()
    with make(), torch.inference_mode():
        check(model, inputs, reason, usual)
    with torch.inference_mode():
        assert why_not(model) is None


@pytest.mark.parametrize("group", ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"])
@torch.inference_mode()
def test_biases_are_part_of_fused_steps(group):
    """Whole groups of projections with a bias stay on the fast path, which adds it."""
    model, _, inputs, usual = prepared()
    for name in group.split():
        bias(model.get_submodule(f"{TEXT}.layers.2.{'mlp' if 'gate' in group or 'down' in group else 'self_attn'}.{name}"))
    assert why_not(model) is None
    found, fed, decoder = decode(model, inputs)
    assert decoder.unfused is None
    torch.testing.assert_close(found, whole(model, inputs, fed), rtol=2e-4, atol=2e-4)
    assert (decode(model, inputs, usual[1])[0] - usual[0]).abs().max() > 1e-2


QWENS = {
    "LoRA": (adapter("LoraConfig", r=4), "q_proj of layer 0 is a Linear of peft"),
    "a hooked head norm": (at(f"{ATTENTION}.k_norm", forward_hook), "k_norm of layer 2 has a hook"),
    "another head norm": (
        replace(f"{ATTENTION}.q_norm", lambda old: torch.nn.RMSNorm(16, eps=10.0)),
        "q_norm of layer 2 is a RMSNorm of torch",
    ),
    "epsilons of their own": (
        lambda model: setattr(model.get_submodule(f"{ATTENTION}.q_norm"), "variance_epsilon", 1.0),
        "the norms of queries and keys have epsilons of their own, those of layer 2",
    ),
    "a hooked parent": (at("model", forward_hook), "model has a hook"),
    "another activation": (replace(f"{MLP}.act_fn", lambda old: Gelu()), "the activation of layer 2 is a Gelu"),
}


@pytest.mark.parametrize(
    ("name", "change"),
    [("qwen3_vl", change) for change in QWENS] + [("qwen2_5_vl", change) for change in ("LoRA", "a hooked parent", "another activation")],
)
@torch.inference_mode()
def test_what_changes_a_qwen_changes_its_steps(name, change):
    """The same proof for text models with names of their own, with norms of heads and with positions in three dimensions."""
    tiny = MODELS[name]
    model, inputs = avl.attach(tiny.model()), dict(encode_family(tiny, tiny.processor(), RAGGED))
    assert why_not(model) is None
    usual = decode(model, inputs)[:2]
    make, reason = QWENS[change]
    make(model)
    assert reason in why_not(model)
    found, fed, decoder = decode(model, inputs, usual[1])
    assert reason in decoder.unfused
    out = model.generate(
        **inputs, max_new_tokens=STEPS + 1, do_sample=False, output_logits=True, return_dict_in_generate=True,
        logits_processor=[lambda ids, scores: forced(scores, [*fed, fed[-1]][ids.shape[1] - inputs["input_ids"].shape[1]])],
    )  # fmt: skip
    torch.testing.assert_close(found, torch.stack(out.logits, dim=1), rtol=2e-4, atol=2e-4)
    assert (found - usual[0]).abs().max() > 1e-2, "the change changes nothing: the test cannot fail"


def forced(scores, tokens):
    """Scores whose best tokens are those."""
    return torch.zeros_like(scores).scatter(1, tokens[:, None], 1.0)


def test_a_compiled_text_model_runs_as_compiled(monkeypatch):
    """``compile()`` is a wish, not another result: no compiler is run here, only the call that it would replace."""
    model, _, inputs, _ = prepared()
    text = model.get_submodule(TEXT)
    calls = []
    text._compiled_call_impl = lambda *args, **kwargs: calls.append(1) or text._call_impl(*args, **kwargs)
    with torch.inference_mode():
        assert why_not(model) == "the text model is compiled"
        found, fed, _ = decode(model, inputs)
        assert len(calls) == STEPS + 1
        torch.testing.assert_close(found, whole(model, inputs, fed), rtol=2e-4, atol=2e-4)


def test_recorded_hidden_states_leave_the_fast_path_open():
    """transformers leaves its recording hooks on the layers, idle."""
    model, _, inputs, usual = prepared()
    with torch.inference_mode():
        assert model(**inputs, output_hidden_states=True).hidden_states is not None
        assert why_not(model) is None
        torch.testing.assert_close(decode(model, inputs)[0], usual[0], rtol=0, atol=0)


@pytest.mark.parametrize("rows", [ROWS, [request(1), request(2, before=6, after=9)]], ids=["alike", "ragged"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
def test_under_autocast(policy, rows):
    """The model's own modules in the precision that autocast gives them; full attention as ``model.generate`` gives it."""
    model, processor = avl.attach(build_model("llava-llama")), shared_processor("llava-llama")
    inputs = dict(encode(processor, rows))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not(model) == "autocast is on"
        runs = []
        for _ in range(2):
            cache = avl.make_cache(model, inputs, policy, STEPS)
            assert Decoder(model, cache).unfused == "autocast is on"
            runs.append(model.generate(**inputs, past_key_values=cache, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:])
        assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}
        logits, fed, _ = decode(model, inputs)
        own = model(**inputs, use_cache=True, logits_to_keep=1)
        past, wanted = own.past_key_values, [own.logits[:, -1]]
        mask = inputs["attention_mask"]
        for token in fed:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            position = mask.sum(dim=1, keepdim=True) - 1
            step = model(input_ids=token[:, None], attention_mask=mask, position_ids=position, past_key_values=past, use_cache=True)
            wanted.append(step.logits[:, -1])
            past = step.past_key_values
    assert torch.equal(*runs)
    if len({row.pad for row in cache.rows}) == 1:  # transformers' prompt gives positions to padding, its generate does not
        torch.testing.assert_close(logits.float(), torch.stack(wanted, dim=1).float(), rtol=0, atol=0.3)
        assert (logits.float() - torch.stack(wanted, dim=1).float()).abs().mean() < 0.02


def test_mixed_dtypes_and_training_run_the_modules():
    model = prepared()[0]
    with torch.inference_mode():
        model.train()
        assert "training mode" in why_not(model)
        model.eval()
        model.get_submodule(f"{MLP}.down_proj").to(torch.float64)
        assert "differ in dtype" in why_not(model)
    with torch.enable_grad():
        assert "gradients are on" in why_not(model)


@pytest.mark.parametrize("policy", [avl.AVL(S=45, C=30, K=3, P=90, T=60), avl.H2O(keep=50), avl.StreamingLLM(keep=50)], ids=str)
@torch.inference_mode()
def test_the_whole_models_steps_are_generates(policy):
    """The slower path under eviction, ragged rows too: what ``model.generate`` gives with the same cache."""
    model = avl.attach(build_model("llava-llama"))
    forward_hook(model.get_submodule(TEXT))
    inputs = dict(encode(shared_processor("llava-llama"), [request(1), request(2, before=6, after=9)]))
    cache = avl.make_cache(model, inputs, policy, STEPS)
    decoder = Decoder(model, cache)
    tokens = [decoder.prefill(inputs).argmax(dim=-1)]
    for _ in range(STEPS - 1):
        tokens.append(decoder.step(tokens[-1]).argmax(dim=-1))
    other = avl.make_cache(model, inputs, policy, STEPS)
    expected = model.generate(**inputs, past_key_values=other, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
    assert torch.equal(torch.stack(tokens, dim=1), expected)
    assert (cache.t, cache.stored_tokens, cache.read_tokens) == (other.t, other.stored_tokens, other.read_tokens)
    assert len(cache.layers) == LAYERS


def test_detach_after_an_adapter_was_added():
    """Weights merged before an adapter wrapped them are separated all the same."""
    pytest.importorskip("peft")
    model = prepared()[0]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with torch.inference_mode():
        FusedLayers(model, avl.make_cache(model, prepared()[2], avl.Full(), 2), merged=True)
    query = model.get_submodule(f"{ATTENTION}.q_proj")
    assert query.weight.untyped_storage().nbytes() > query.weight.nbytes
    adapter("LoraConfig", r=4)(model)
    avl.detach(model)
    assert query.weight.untyped_storage().nbytes() == query.weight.nbytes
    assert torch.equal(query.weight, before[f"{ATTENTION}.q_proj.weight"])
