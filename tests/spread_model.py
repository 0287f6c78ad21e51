"""Runs models whose layers are on two stand-ins for GPUs, and prints what came of it as JSON: a process of its own for
tests/engine/test_devices.py, see tests/fake_devices.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402 (the path is set above)
from accelerate import dispatch_model  # noqa: E402
from fake_devices import FIRST, SECOND, Devices  # noqa: E402
from random_models import build_model, encode, picture, request, shared_processor  # noqa: E402

import avl  # noqa: E402
from avl.engine.cuda_graphs import can_capture, make_decoder  # noqa: E402
from avl.models.families import language_model  # noqa: E402
from avl.models.placement import devices, placement  # noqa: E402
from avl.trace import End, Warning  # noqa: E402

POLICIES = {"avl": avl.AVL(S=45, C=30, K=2, P=70, T=50), "snapkv": avl.SnapKV(keep=40), "full": avl.Full()}


def spread(architecture: str) -> Any:
    """Return a model whose second half of layers, and head, are on the second device."""
    model = build_model(architecture)
    text = language_model(model)
    half = len(text.layers) // 2
    places = {"lm_head": SECOND, "model.vision_tower": FIRST, "model.multi_modal_projector": FIRST}
    places |= {f"model.language_model.{name}": SECOND if name == "norm" else FIRST for name, _ in text.named_children() if name != "layers"}
    places |= {f"model.language_model.layers.{n}": FIRST if n < half else SECOND for n in range(len(text.layers))}
    places |= {f"model.{name}": FIRST for name, _ in model.model.named_parameters(recurse=False)}
    return dispatch_model(model, places, main_device=FIRST)


@torch.inference_mode()
def ragged(model: Any, processor: Any, policy: Any) -> tuple[list[list[int]], Any]:
    """Return the answers of three rows of different length, and the cache."""
    inputs = dict(encode(processor, [request(1), request(2, before=6, after=9), request(3, sizes=((40, 30), (30, 44)))]).to(model.device))
    cache = avl.make_cache(model, inputs, policy, max_new_tokens=6)
    decoder = make_decoder(model, cache)
    tokens = [decoder.prefill(inputs).argmax(dim=-1)]
    for _ in range(5):
        tokens.append(decoder.step(tokens[-1].to(model.device)).argmax(dim=-1))
    return torch.stack(tokens, dim=1).tolist(), cache


def main(architecture: str) -> None:
    processor = shared_processor(architecture)
    plain = avl.attach(build_model(architecture))
    with Devices():
        model = avl.attach(spread(architecture))
        told: dict[str, Any] = {"placement": placement(model), "devices": len(devices(model)), "same": {}, "beside": {}}
        for name, policy in POLICIES.items():
            expected, _ = ragged(plain, processor, policy)
            found, cache = ragged(model, processor, policy)
            told["same"][name] = found == expected
            told["beside"][name] = all(
                kv.keys.device == kv.values.device == kv.table.token_idx.device == next(layer.parameters()).device
                for layer, of_layer in zip(language_model(model).layers, cache.layers, strict=True)
                for kv in of_layer.kvs
            )
            told["captured"] = can_capture(model, cache)
        answers = []
        for one in (plain, model):
            events = list(avl.stream(one, processor, picture(2), "what is this ?", POLICIES["avl"], max_new_tokens=8))
            answers.append(next(event.tokens for event in events if isinstance(event, End)))
        told["streamed"] = answers[0] == answers[1]
        told["warnings"] = [event.message for event in events if isinstance(event, Warning)]
        try:
            torch.ones(3, device=FIRST) + torch.ones(3, device=SECOND)
        except RuntimeError as error:
            told["apart"] = str(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
