"""What a model would take on a GPU at a batch and a picture's size: time per step, memory, largest batch. Floors, not forecasts.

All follows from sizes: the roofline (roofline.py) at the rates of a data sheet, or at measured ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from avl._paths import ASSETS
from avl.bench.hardware import GPUS, Machine, Measured, gpu_called, measured
from avl.bench.roofline import SCORE_BYTES, Rates, Sizes, batch_bytes, floor_ms, largest_batch, row_bytes, weights_ms
from avl.models.checkpoints import RANDOM_WEIGHTS
from avl.policies import PRESETS, Full, Policy, PromptShape
from avl.policies.base import shown, whole
from avl.policies.cost import Cost, mean_cost
from avl.policies.presets import NEUTRAL

MAX_BATCH, MAX_IMAGE, MAX_TEXT, MAX_NEW = 4096, 100_000, 100_000, 1024
MAX_BATCHES = 32
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGE_TOKENS = (64, 144, 256, 576, 1024, 1728, 2928, 4096, 8192)

LEFT_OUT = (
    "This is a floor: at these rates no engine can be faster. Left out are kernel launches, the latency of small kernels, which at batch 1 "
    "may exceed what a policy saves, and activations.",
    "The time to the first token is not in it: of all parameters, only those that prune the prompt, such as P, change that much.",
)
PEAKS = (
    "Rates are peaks of a data sheet, of which memory reaches 80 to 95 %: real steps are longer. The speedup, a ratio, depends less on it."
)


@dataclass(frozen=True)
class Model:
    """A model's sizes.

    Attributes:
        name: for command lines and programs.
        label: for people.
        sizes: of its text decoder.
        parameters: of all of it, vision tower and embeddings included.
        n_image: image tokens of a usual picture.
        context: most tokens of prompt and answer, None for no limit.
    """

    name: str
    label: str
    sizes: Sizes
    parameters: int
    n_image: int
    context: int | None = None

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights."""
        return self.parameters * self.sizes.itemsize


_PARAMETERS = {  # of the published checkpoints, in millions
    "llava-1.5-7b": ("LLaVA-1.5 7B", 7_063), "llava-1.5-13b": ("LLaVA-1.5 13B", 13_351), "llava-1.6-7b": ("LLaVA-1.6 7B", 7_063),
    "llava-1.6-13b": ("LLaVA-1.6 13B", 13_351), "llava-1.6-mistral-7b": ("LLaVA-1.6 Mistral 7B", 7_567),
    "qwen2.5-vl-7b": ("Qwen2.5-VL 7B", 8_292), "qwen3-vl-8b": ("Qwen3-VL 8B", 8_767), "internvl3-8b": ("InternVL3 8B", 7_944),
    "gemma-3-12b": ("Gemma 3 12B", 12_187),
}  # fmt: skip
# Nous-Hermes-2-Yi-34B with LLaVA-1.6's tower: the decoder is Yi-34B's, known from its config.json
_LLAVA_34B = Model("llava-1.6-34b", "LLaVA-1.6 34B", Sizes(60, 56, 8, 128, 7168, 20480, 64064, 2), 34_752 * 10**6, 2928, 4096)
MODELS = (*RANDOM_WEIGHTS[:4], _LLAVA_34B.name, *RANDOM_WEIGHTS[4:], "tiny")
"""Names of models whose sizes are known."""


@functools.cache
def known(name: str) -> Model:
    """Return a model whose sizes are known, with 16-bit weights; the bundled one, ``tiny``, has 32-bit weights.

    Raises:
        ValueError: there is none of that name; lists them.
    """
    if name not in MODELS:
        raise ValueError(f"the sizes of model {shown(name)} are not known: use {', '.join(MODELS)}")
    if name == _LLAVA_34B.name:
        return _LLAVA_34B
    from avl.models import random_weights
    from avl.models.families import Facts, family_of

    if name == "tiny":
        from transformers import AutoConfig

        config, label, parameters = AutoConfig.from_pretrained(ASSETS / "tiny"), "bundled small LLaVA", 6_288_576
    else:
        config, (label, millions) = random_weights.config(name), _PARAMETERS[name]
        parameters = millions * 10**6
    family = family_of(config)
    n_image = family.image_tokens(config, family.random_picture(config))
    return Model(name, label, Sizes.of(config, 4 if name == "tiny" else 2), parameters, n_image, Facts.of(family, config).context)


def of_loaded(model: Any, name: str, n_image: int) -> Model:
    """Return the sizes of a loaded model.

    Args:
        model: from ``avl.load``.
        name: what committed results call it; and to show.
        n_image: image tokens of a usual picture.
    """
    from avl.models.families import describe

    parameters = sum(one.numel() for one in model.parameters())
    label = known(name).label if name in MODELS else name
    return Model(name, label, Sizes.of(model.config, model.dtype.itemsize), parameters, n_image, describe(model).context)


def machine_called(name: str) -> Machine:
    """Return a GPU by name, or the machine of a committed result.

    Raises:
        ValueError: there is none of that name; lists them.
    """
    found = GPUS | {one.machine.name: one.machine for one in committed()}
    if not isinstance(name, str) or name not in found:
        raise ValueError(f"there is no GPU {shown(name)}: use {', '.join(found)}")
    return found[name]


@functools.cache
def committed() -> tuple[Measured, ...]:
    """Return the committed results."""
    return tuple(measured())


def preset(name: str) -> Policy:
    """Return the paper's last setting for a model, else that of the least aggressive one."""
    return PRESETS.get(name, PRESETS[NEUTRAL])


def what_if(
    model: Model,
    machine: Machine,
    batches: Sequence[int] = (1, 8, 32),
    *,
    n_image: int | None = None,
    n_text: int = 65,
    new_tokens: int = 128,
    policy: Policy | None = None,
) -> dict[str, Any]:
    """Predict what full attention and a policy take.

    Args:
        model: its sizes.
        machine: its rates and memory.
        batches: rows decoded at once; a row of the result for each.
        n_image: image tokens of the prompt, None for those of a usual picture.
        n_text: other tokens of the prompt.
        new_tokens: of the answer.
        policy: what is compared with full attention, None for :func:`preset`.

    Returns:
        JSON-able: ``model``, ``machine``, ``request``; ``weights`` (bytes, and whether they fit); ``rows``, by batch: of ``full`` and
        ``policy`` the floor ``ms`` of a step (mean over the answer), its parts ``weights_ms``, ``kv_ms`` and ``scores_ms``, ``bound``
        ("weights", "compute" or "kv", whichever takes longest), ``kv_bytes`` allocated, ``read_bytes`` per step, ``need_bytes`` with
        weights and prefill, ``fits``, ``tokens_per_s``; and ``speedup``; ``largest``: the largest batch of both that fits, and the tokens
        per second there; ``over_batch`` and ``over_image``: curves of the same rows, the latter at the first batch; ``measured``:
        committed points of this model on this machine; ``notes`` and ``left_out``: sentences.

    Raises:
        ValueError: a number is out of range; one sentence.
    """
    n_image = whole("image_tokens", model.n_image if n_image is None else n_image, 0, MAX_IMAGE)
    n_text, new_tokens = whole("text_tokens", n_text, 1, MAX_TEXT), whole("new_tokens", new_tokens, 2, MAX_NEW)
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise ValueError(f"batch={shown(batches)} is not a list of whole numbers, such as [1, 8, 32]")
    asked = [whole("batch", batch, 1, MAX_BATCH) for batch in batches]
    if not 1 <= len(asked) <= MAX_BATCHES:
        raise ValueError(f"batch has {len(asked)} values: give 1 to {MAX_BATCHES}")
    other = preset(model.name) if policy is None else policy
    other.check_model(model.sizes.layers)
    shape = PromptShape(n_image, n_text, new_tokens, model.sizes.layers)
    at = _At(model, machine, other, shape)
    curve = [_At(model, machine, other, PromptShape(count, n_text, new_tokens, model.sizes.layers)) for count in _around(n_image)]
    about = {name: getattr(model, name) for name in ("name", "label", "parameters", "n_image", "context")} | asdict(model.sizes)
    return {
        "model": about | {"token_bytes": model.sizes.entry_bytes * model.sizes.layers, "step_bytes": model.sizes.weight_bytes},
        "machine": {key: value for key, value in asdict(machine).items() if key != "pattern"},
        "request": {"n_image": n_image, "n_text": n_text, "new_tokens": new_tokens, "policy": other.to_dict(), "label": other.label},
        "weights": {"bytes": model.weight_bytes, "fits": model.weight_bytes < machine.memory_bytes},
        "rows": [at.row(batch) for batch in asked],
        "largest": at.largest(),
        "over_batch": [at.row(batch) for batch in sorted({*BATCHES, *asked})],
        "over_image": [one.row(asked[0]) for one in curve],
        "measured": _points(model, machine, shape),
        "notes": _notes(model, machine, shape),
        "left_out": [*LEFT_OUT, *([PEAKS] if machine.pattern else [])],
    }


def _around(n_image: int) -> list[int]:
    """Return image tokens for a curve, the given number among them."""
    return sorted({*IMAGE_TOKENS, n_image})


class _At:
    """Predictions for one prompt."""

    def __init__(self, model: Model, machine: Machine, policy: Policy, shape: PromptShape) -> None:
        self._model, self._machine, self._shape = model, machine, shape
        self._rates = Rates(machine.bytes_per_s, machine.flops)
        self._policies = {"full": Full(), "policy": policy}
        self._costs = {name: mean_cost(one, shape) for name, one in self._policies.items()}

    def row(self, batch: int) -> dict[str, Any]:
        """Return what a step of so many rows takes."""
        arms = {name: self._arm(one, self._costs[name], batch) for name, one in self._policies.items()}
        return {"batch": batch, "n_image": self._shape.n_image, **arms, "speedup": arms["full"]["ms"] / arms["policy"]["ms"]}

    def _arm(self, policy: Policy, cost: Cost, batch: int) -> dict[str, Any]:
        sizes, rates = self._model.sizes, self._rates
        ms = floor_ms(sizes, cost, batch, rates)
        weights = weights_ms(sizes, batch, rates)
        kv = 1e3 * batch * cost.read * sizes.entry_bytes / rates.bytes_per_s
        computes = 1e3 * sizes.weight_bytes / rates.bytes_per_s < weights
        need = self._model.weight_bytes + batch_bytes(sizes, policy, self._shape, batch)
        return {
            "ms": ms,
            "weights_ms": weights,
            "kv_ms": kv,
            "scores_ms": 1e3 * batch * cost.scored * sizes.heads * SCORE_BYTES / rates.bytes_per_s,
            "bound": "kv" if kv > weights else "compute" if computes else "weights",
            "kv_bytes": batch * row_bytes(sizes, policy, self._shape)[0],
            "read_bytes": batch * cost.read * sizes.entry_bytes,
            "need_bytes": need,
            "fits": need <= self._machine.memory_bytes,
            "tokens_per_s": 1e3 * batch / ms,
        }

    def largest(self) -> dict[str, Any]:
        """Return the largest batch that fits, and its throughput."""
        free = self._machine.memory_bytes - self._model.weight_bytes
        found: dict[str, Any] = {}
        for name, policy in self._policies.items():
            batch = max(0, largest_batch(self._model.sizes, policy, self._shape, free)) if free > 0 else 0
            rate = self._arm(policy, self._costs[name], batch)["tokens_per_s"] if batch else 0.0
            found[name] = {"batch": batch, "tokens_per_s": rate}
        full, other = found["full"], found["policy"]
        found["ratio"] = other["batch"] / full["batch"] if full["batch"] else None
        found["throughput_ratio"] = other["tokens_per_s"] / full["tokens_per_s"] if full["batch"] else None
        return found


def _points(model: Model, machine: Machine, shape: PromptShape) -> list[dict[str, Any]]:
    """Return the committed points of this model on this machine, with what prompt they had."""
    found = []
    for one in committed():
        here = machine.name == one.machine.name or (machine.pattern and machine == gpu_called(one.hardware))
        if here and one.model == model.name:
            request = {"n_image": one.n_image, "n_text": one.n_text, "new_tokens": one.new_tokens}
            same = request == {"n_image": shape.n_image, "n_text": shape.n_text, "new_tokens": shape.max_new_tokens}
            found += [{**point, **request, "same_prompt": same, "hardware": one.hardware, "date": one.date} for point in one.points]
    return found


def _notes(model: Model, machine: Machine, shape: PromptShape) -> list[str]:
    notes = []
    if model.weight_bytes >= machine.memory_bytes:
        notes.append(
            f"The weights alone take {model.weight_bytes / 1e9:.1f} GB, and {machine.label} has {machine.memory_bytes / 1e9:.0f} GB: times "
            "are those it would have with enough memory."
        )
    if model.context is not None and shape.length + shape.max_new_tokens > model.context:
        total = shape.length + shape.max_new_tokens
        notes.append(f"Prompt and answer are {total:,} tokens, and {model.label} was made for {model.context:,}.")
    return notes
