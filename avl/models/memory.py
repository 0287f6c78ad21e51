"""Whether a model fits, and whether it belongs on a CPU: told before its weights are fetched or read, from its config alone."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch

from avl.models.families import Facts, family_of
from avl.models.source import Source
from avl.telemetry import free_bytes, gpu_trouble

GIB = 1 << 30
LARGE = 2_000_000_000
"""Parameters from which a CPU takes seconds per token, and float32 more memory than many machines have."""
CACHE_TOKENS = 1024
"""Tokens of prompt and answer that there has to be room for: a picture, a question and some sentences."""
WORK_BYTES = GIB // 4
"""For what a prompt's layers compute; an eighth of the weights where that is less."""


@dataclass(frozen=True)
class Need:
    """Memory that a model takes before it can answer anything.

    Attributes:
        parameters: of the whole model.
        weights: their bytes.
        cache: bytes of one full cache of :data:`CACHE_TOKENS` tokens.
        work: bytes for what layers compute.
    """

    parameters: int
    weights: int
    cache: int
    work: int

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype) -> Need:
        """Return what the model of a config takes. Builds it without weights."""
        import transformers

        family = family_of(config)
        with torch.device("meta"):
            model = getattr(transformers, family.model_class)(copy.deepcopy(config))
        parameters = sum(one.numel() for one in model.parameters())
        weights = parameters * dtype.itemsize
        facts = Facts.of(family, config)
        cache = facts.token_bytes(dtype.itemsize) * min(CACHE_TOKENS, facts.context)
        return cls(parameters, weights, cache, min(WORK_BYTES, weights // 8))

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.work


def check_memory(
    source: Source, config: Any, device: Any, target: torch.device, dtype: Any, kind: torch.dtype, device_map: Any
) -> None:  # fmt: skip
    """Refuse a model that cannot run where it is asked for, and a large one on a CPU that nobody asked for.

    Args:
        source: of the model.
        config: of the model.
        device: as asked for.
        target: what that means here.
        dtype: as asked for.
        kind: what that means here.
        device_map: as asked for; a dict is the caller's own plan and is not judged, nor is anything on ZeroGPU, where no GPU is here.

    Raises:
        ValueError: it does; says how much it takes, how much there is, and what to do.
    """
    if isinstance(device_map, dict) or os.environ.get("SPACES_ZERO_GPU"):
        return
    try:
        need = Need.of(config, kind)
    except Exception:  # a config that no model can be made of: from_pretrained says what is wrong with it
        return
    places = [target]
    if device_map is not None:
        places = [torch.device("cuda", number) for number in range(torch.cuda.device_count())] or [torch.device("cpu")]
    name, billions = str(kind).removeprefix("torch."), f"{need.parameters / 1e9:.1f} billion parameters"
    if places[0].type == "cpu" and need.parameters > LARGE and ((device == "auto" or device_map is not None) or dtype == "auto"):
        why = "" if device == "cpu" and device_map is None else f" and no GPU can be used here ({_no_gpu()})"
        raise ValueError(
            f"{source.label} has {billions}{why}: on a CPU it takes {need.total / GIB:.1f} GiB in {name} and seconds per token; ask for "
            "that with device='cpu' and dtype='float32' or 'bfloat16' (--device cpu --dtype bf16), or take a smaller model"
        )
    free = sum(free_bytes(place) for place in places)
    if need.total <= free:
        return
    where = "main memory"
    if places[0].type == "cuda":
        where = f"the memory of {len(places)} GPUs" if len(places) > 1 else f"the memory of {places[0]}"
    raise ValueError(
        f"{source.label} does not fit: its {billions} take {need.weights / GIB:.1f} GiB in {name}, and {CACHE_TOKENS} tokens of cache with "
        f"room to work {(need.cache + need.work) / GIB:.1f} GiB, but {free / GIB:.1f} GiB of {where} are free: {_advice(kind, places)}"
    )


def _no_gpu() -> str:
    return gpu_trouble() or ("torch is a CPU build" if torch.version.cuda is None else "torch finds none")


def _advice(kind: torch.dtype, places: list[torch.device]) -> str:
    ways = ["dtype='bfloat16' (--dtype bf16)"] if kind.itemsize > 2 else []
    if places[0].type == "cuda" and len(places) == 1 and torch.cuda.device_count() > 1:
        ways.append("device_map='auto' (--device-map auto), which spreads it over all GPUs")
    return f"end what else uses it, or pass {', '.join([*ways, 'a smaller model or a larger device'])}".replace("pass a", "take a")
