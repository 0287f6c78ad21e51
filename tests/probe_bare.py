"""The library where its optional libraries cannot be imported, told as one JSON line: run by test_fresh_interpreter.py."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from typing import Any

HIDDEN = ("triton", "gradio", "torchvision", "pynvml", "plotly", "prometheus_client", "lmms_eval")
find_spec = importlib.machinery.PathFinder.find_spec


def hide(name: str, path: Any = None, target: Any = None) -> Any:
    return None if name.partition(".")[0] in HIDDEN else find_spec(name, path, target)


importlib.machinery.PathFinder.find_spec = staticmethod(hide)  # type: ignore[assignment]

import torch  # noqa: E402
from random_models import RAGGED, build_model, build_processor, encode  # noqa: E402

import avl  # noqa: E402
from avl.kernels import core_attention, resolve_impl  # noqa: E402

model, processor = build_model("llava-llama"), build_processor("llava-llama")
avl.attach(model)
inputs = encode(processor, RAGGED)
cache = avl.make_cache(model, inputs, avl.AVL(S=45, C=30), max_new_tokens=5)
answer = model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False)
out, _ = core_attention(torch.ones(1, 2, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), torch.tensor([[2, 0]]))
try:
    refusal = f"no error: {resolve_impl('cpu', 'triton')}"
except RuntimeError as error:
    refusal = str(error)

print(
    json.dumps(
        {
            "found": [name for name in HIDDEN if importlib.util.find_spec(name) is not None],
            "new tokens": [answer.shape[0], answer.shape[1] - inputs["input_ids"].shape[1]],
            "attention": out.tolist(),
            "on a GPU": resolve_impl("cuda"),
            "refusal": refusal,
        }
    )
)
