"""Memory is really given back: storages, not views, are measured; and no score matrix of all heads, no eager attention, ever exists."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import policy_cases
import pytest
import torch
import transformers.models.clip.modeling_clip as clip
import transformers.models.llama.modeling_llama as llama
import transformers.models.mistral.modeling_mistral as mistral
from observed import generate
from oracle import share
from pairwise import pairwise
from random_models import (
    ARCHITECTURES,
    HEAD_DIM,
    HEADS,
    LAYERS,
    RAGGED,
    build_model,
    build_processor,
    encode,
    kv_heads,
    picture,
    request,
    shared_processor,
)
from torch.utils._python_dispatch import TorchDispatchMode

import avl
from avl.trace import End, Prefill

LIMIT = 8
POLICIES = {
    "avl": avl.AVL(S=45, C=30, K=3, P=90, T=60),
    "avl-T-off": avl.AVL(S=45, C=30, K=3, P=50, T=None),
    "avl-tight": avl.AVL(S=10, C=5, K=3, P=50, T=20),
    "avl-spread": policy_cases.SPREAD,
    **{policy.name: policy for policy in policy_cases.POLICIES},
}
BATCHES = {"single": (request(7),), "ragged": RAGGED}


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def layer_tensors(cache: Any, layers: slice = slice(None)) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers[layers] for tensor in (layer.keys, layer.values) if tensor is not None]


def reachable_tensors(thing: Any) -> list[torch.Tensor]:
    """Every tensor that ``thing`` holds on to, through attributes and containers of its own; weak references do not hold."""
    found, seen, todo = [], set(), [thing]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type | str | bytes | torch.nn.Module | weakref.ref):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            todo.extend(item)
        elif hasattr(item, "__dict__") and not callable(item):
            todo.extend(vars(item).values())
    return found


def free_slots(policy: Any, n_image: int, n_text: int, limit: int) -> int:
    """Most free slots that one layer may hold for one row after prefill: what its window of text can still take in, and the new token's."""
    if isinstance(policy, avl.H2O | avl.StreamingLLM):
        return 1
    if isinstance(policy, avl.AVL) and policy.T is not None:
        window = share(policy.T, n_text + limit)
        return window - min(n_text, window) + 1
    return limit


@pairwise(architecture=ARCHITECTURES, policy=POLICIES, batch=BATCHES)
def test_after_prefill_the_storages_add_up_to_what_is_stored(architecture, policy, batch, model, processor):
    inputs = encode(processor, BATCHES[batch])
    cache = avl.make_cache(model, inputs, POLICIES[policy], max_new_tokens=LIMIT)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=1, do_sample=False)
    entry = 2 * kv_heads(architecture) * HEAD_DIM * 4
    is_image = inputs["input_ids"] == model.config.image_token_id
    n_image, length = is_image.sum(1).tolist(), inputs["attention_mask"].sum(1).tolist()
    free = LAYERS * sum(free_slots(POLICIES[policy], n, total - n, LIMIT) for n, total in zip(n_image, length, strict=True))
    held = storage_bytes(layer_tensors(cache))
    assert cache.stored_bytes == sum(cache.stored_tokens) * entry
    assert cache.stored_bytes <= held <= cache.stored_bytes + free * entry
    # and no other keys or values hide elsewhere in the cache, a copy of the core for example: they would end in the head size
    alike = [t for t in reachable_tensors(cache) if t.is_floating_point() and t.ndim >= 3 and t.shape[-1] == HEAD_DIM]
    assert storage_bytes(layer_tensors(cache) + alike) < held + LAYERS * entry


@pytest.mark.parametrize("policy", ["avl", "avl-tight", "H2O", "SnapKV", "PyramidKV", "StreamingLLM"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_storages_never_grow_while_answering(architecture, policy, model, processor):
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, POLICIES[policy], max_new_tokens=LIMIT)
    sizes = []
    hook = model.lm_head.register_forward_hook(lambda *_: sizes.append(storage_bytes(layer_tensors(cache))))
    model.generate(**inputs, past_key_values=cache, max_new_tokens=LIMIT, do_sample=False)
    hook.remove()
    assert len(sizes) == LIMIT
    assert len(set(sizes)) == 1


class Prefilling:
    """Looks, before each decoder layer of a prompt pass, at what the layers before it still hold."""

    def __init__(self, model: Any, cache: Any, n_columns: int, n_kv_heads: int):
        self.cache, self.n_columns, self.n_kv_heads = cache, n_columns, n_kv_heads
        self.held: list[int] = []
        self.full: list[int] = []
        layers = model.model.language_model.layers
        self.hooks = [layer.register_forward_pre_hook(self.look) for layer in layers[1:]] + [layers[-1].register_forward_hook(self.look)]
        self.hooks.append(model.lm_head.register_forward_pre_hook(self.look))

    def look(self, *_: Any) -> None:
        self.held.append(storage_bytes(layer_tensors(self.cache)))
        self.full.append(sum(self.is_full(item) for item in gc.get_objects() if type(item) is torch.Tensor))

    def is_full(self, tensor: torch.Tensor) -> bool:
        """A key or value (or a query) of the whole prompt: heads, head size and all columns are among its dimensions."""
        shape = list(tensor.shape)
        return (
            tensor.is_floating_point()
            and tensor.ndim == 4
            and shape[-1] == HEAD_DIM
            and self.n_columns in shape[1:3]
            and bool({HEADS, self.n_kv_heads} & set(shape[1:3]))
        )

    def __enter__(self) -> Prefilling:
        gc.freeze()  # what is alive now is not looked at again and again
        return self

    def __exit__(self, *_: Any) -> None:
        gc.unfreeze()
        for hook in self.hooks:
            hook.remove()


@pairwise(architecture=ARCHITECTURES, policy=["avl", "H2O", "PyramidKV", "StreamingLLM"], batch=BATCHES)
def test_during_prefill_at_most_one_layer_is_full(architecture, policy, batch, model, processor):
    """When a layer starts, all before it have been cut down: their storages are final, and no full key or value is alive anywhere."""
    inputs = encode(processor, BATCHES[batch])
    length, limit = inputs["input_ids"].shape[1], LIMIT
    cache = avl.make_cache(model, inputs, POLICIES[policy], max_new_tokens=limit)
    while any(window.capacity == length for bucket in cache.buckets for window in bucket.windows):
        # a layer with as many slots as the prompt has columns would be taken for a whole one
        limit += 1
        cache = avl.make_cache(model, inputs, POLICIES[policy], max_new_tokens=limit)
    with Prefilling(model, cache, length, kv_heads(architecture)) as seen:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=1, do_sample=False)
    assert len(seen.held) == LAYERS + 1
    final = [storage_bytes(layer_tensors(cache, slice(0, n))) for n in range(1, LAYERS + 1)]
    assert seen.held[: LAYERS - 1] == final[:-1], "a layer was still whole when the next one began"
    assert seen.held[-1] == final[-1]
    assert seen.full[: LAYERS - 1] == [0] * (LAYERS - 1), "keys or values of a whole layer are alive after it"
    assert seen.full[-1] == 0


def test_the_watch_sees_a_full_layer():
    """Keys that someone keeps are found, layer after layer."""
    model, processor = build_model("next-mistral"), shared_processor("next-mistral")
    avl.attach(model)
    inputs = encode(processor, BATCHES["single"])
    kept = []

    def keep(module: Any, arguments: Any, out: torch.Tensor) -> None:
        kept.append(out.unflatten(-1, (-1, HEAD_DIM)))

    hooks = [layer.self_attn.k_proj.register_forward_hook(keep) for layer in model.model.language_model.layers]
    with Prefilling(model, None, inputs["input_ids"].shape[1], kv_heads("next-mistral")) as seen:
        seen.cache = avl.make_cache(model, inputs, avl.Full(), max_new_tokens=LIMIT)
        model.generate(**inputs, past_key_values=seen.cache, max_new_tokens=1, do_sample=False)
    for hook in hooks:
        hook.remove()
    assert seen.full[0] >= 1
    assert seen.full[LAYERS - 2] >= LAYERS - 1


@pytest.mark.parametrize("policy", ["avl", "avl-tight", "H2O", "SnapKV", "PyramidKV", "StreamingLLM"])
def test_peak_bytes_are_one_full_layer_above_the_rest(policy):
    """The Prefill event's peak: the layers before are cut down, the current one is whole."""
    model, processor = build_model("next-llama"), shared_processor("next-llama")
    avl.attach(model)
    events = list(avl.stream(model, processor, picture(1), "what is on the sign ?", POLICIES[policy], max_new_tokens=LIMIT))
    start, prefill = events[0], next(event for event in events if isinstance(event, Prefill))
    entry = start.token_bytes // LAYERS
    whole = start.n_image + start.n_text
    lower = max(sum(prefill.stored[:layer]) for layer in range(2)) + whole
    upper = sum(prefill.stored) + whole + LAYERS * free_slots(POLICIES[policy], start.n_image, start.n_text, LIMIT)
    assert lower * entry <= prefill.peak_bytes <= upper * entry
    (end,) = [event for event in events if isinstance(event, End)]
    assert end.peak_bytes >= prefill.peak_bytes


def test_a_finished_or_abandoned_run_frees_its_cache():
    """No reference cycle either: the keys and values die with the last reference, without the garbage collector."""
    model, processor = build_model("llava-llama"), shared_processor("llava-llama")
    avl.attach(model)
    inputs = encode(processor, RAGGED)
    cache = avl.make_cache(model, inputs, POLICIES["avl"], max_new_tokens=LIMIT)
    gc.collect()
    gc.disable()
    try:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=LIMIT, do_sample=False)
        alive = [weakref.ref(tensor.untyped_storage()) for tensor in layer_tensors(cache)]
        kind, layer = type(cache), weakref.ref(cache.layers[0])
        del cache
        assert layer() is None
        assert all(ref() is None for ref in alive)
        events = avl.stream(model, processor, picture(1), "what is on the sign ?", POLICIES["avl"], max_new_tokens=LIMIT)
        list(itertools.islice(events, 4))
        assert any(type(item) is kind for item in gc.get_objects())
        events.close()
        del events
        assert not any(type(item) is kind for item in gc.get_objects())
    finally:
        gc.enable()


@pytest.fixture
def no_eager(monkeypatch):
    """Calling transformers' eager attention of any part of the model fails the test."""

    def poison(*_: Any, **__: Any) -> None:
        raise AssertionError("eager attention ran")

    for module in (llama, mistral, clip):
        monkeypatch.setattr(module, "eager_attention_forward", poison)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_eager_attention_never_runs(architecture, policy, model, processor, no_eager):
    generate(model, encode(processor, RAGGED), POLICIES[policy], 5, sets=False)
    list(avl.stream(model, processor, picture(1), "what is on the sign ?", POLICIES[policy], max_new_tokens=4))


def test_eager_poison_works(no_eager):
    model, processor = build_model("llava-llama"), shared_processor("llava-llama")
    model.set_attn_implementation("eager")
    with pytest.raises(AssertionError, match="eager attention ran"):
        model(**encode(processor, RAGGED[:1]))


class LargestTensor(TorchDispatchMode):
    """Remembers the operation with the largest floating-point result, SDPA's own excepted, which are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.what, self.sdpa = 0, "", 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "scaled_dot_product" in str(func):
            self.sdpa += 1
            return out
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel() > self.numel:
                self.numel, self.what = tensor.numel(), f"{func} -> {list(tensor.shape)}"
        return out


@pytest.fixture(scope="module")
def long_prompt():
    """A prompt of 1,200 tokens and a narrow model: a score matrix of all heads would be by far the largest tensor."""
    side, patch = 48, 2
    narrow = {"max_position_embeddings": 2048, "hidden_size": 16, "head_dim": 4, "intermediate_size": 16}
    model = build_model("llava-llama", side=side, patch=patch, **narrow)
    avl.attach(model)
    inputs = encode(build_processor("llava-llama", side=side, patch=patch), [request(4, sizes=((40, 30), (30, 40)), before=20, after=28)])
    return model, inputs


@pytest.mark.parametrize("policy", ["avl", "avl-T-off", "H2O", "SnapKV", "PyramidKV", "StreamingLLM", "FastV", "Full"])
def test_no_score_matrix_of_all_heads(policy, long_prompt):
    """Attention is SDPA's, column sums are taken in chunks of queries: no tensor has as many numbers as the [L, L] scores of all heads."""
    model, inputs = long_prompt
    length = inputs["input_ids"].shape[1]
    cache = avl.make_cache(model, inputs, POLICIES[policy], max_new_tokens=3)
    with LargestTensor() as largest:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
    assert length > 1200
    vision_layers = model.config.vision_config.num_hidden_layers - 1  # features are taken before the last
    assert largest.sdpa >= vision_layers + LAYERS, "a layer's prompt attention was not SDPA"
    assert largest.numel < HEADS * length * length, largest.what


def test_the_watch_sees_a_score_matrix(long_prompt):
    model, inputs = long_prompt
    length = inputs["input_ids"].shape[1]
    avl.detach(model)
    model.set_attn_implementation("eager")
    try:
        with LargestTensor() as largest, torch.no_grad():
            model(**inputs)
    finally:
        model.set_attn_implementation("sdpa")
        avl.attach(model)
    assert largest.numel >= HEADS * length * length
