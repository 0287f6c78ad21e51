"""What importing the library does, told as one JSON line: run by test_fresh_interpreter.py, a library named kernels last on the path."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from typing import Any

HEAVY = ("torch", "transformers", "gradio", "triton", "pynvml", "plotly", "prometheus_client", "lmms_eval")
threads = threading.active_count()

import avl  # noqa: E402

loaded = [name for name in HEAVY if name in sys.modules]

import torch  # noqa: E402


def torch_state() -> dict[str, Any]:
    return {
        "threads of the process": threading.active_count(),
        "grad": torch.is_grad_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "random numbers": torch.get_rng_state().tolist(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cuda": torch.cuda.is_initialized(),
    }


first = torch_state()
from avl.kernels import core_attention  # noqa: E402

out, _ = core_attention(torch.ones(1, 2, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), torch.tensor([[2, 0]]))
triton_after_a_call = "triton" in sys.modules
after_kernels = torch_state()

import transformers.models.llava.modeling_llava  # noqa: E402
from transformers import AttentionInterface  # noqa: E402
from transformers.masking_utils import AttentionMaskInterface  # noqa: E402
from transformers.utils import is_kernels_available  # noqa: E402


def state() -> dict[str, Any]:
    registered = {"attention": sorted(AttentionInterface().keys()), "masks": sorted(AttentionMaskInterface().keys())}
    return {**torch_state(), **registered}


before = state()
for name in avl.__all__:
    getattr(avl, name)
after = state()

print(
    json.dumps(
        {
            "loaded by avl": loaded,
            "threads at start": threads,
            "threads before torch is used": first["threads of the process"],
            "changed by avl.kernels": [name for name in first if first[name] != after_kernels[name]],
            "changed by avl": [name for name in before if before[name] != after[name]],
            "registries": sorted({*before["attention"], *before["masks"]}),
            "attention": out.tolist(),
            "triton after a call": triton_after_a_call,
            "kernels": importlib.import_module("kernels").__file__,
            "transformers sees kernels": is_kernels_available(),
            "llava": hasattr(transformers.models.llava.modeling_llava, "LlavaForConditionalGeneration"),
        }
    )
)
