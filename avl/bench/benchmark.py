"""Time per token, memory and bytes of every policy in one engine, beside the floor of the same run: ``avl bench``.

How a cell is measured: avl/bench/measure.py. Without a GPU it runs at small batches: those times say nothing about a GPU.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from avl.attention.attachment import attach
from avl.bench import report, roofline
from avl.bench.measure import Arms, Subject, compare, largest, measure_rates, reference
from avl.cache.layout import find_rows
from avl.engine.fusable import why_not
from avl.kernels import resolve_impl, triton_trouble
from avl.models import random_weights
from avl.models.families import describe, family_of
from avl.models.images import open_image
from avl.models.inputs import prepare, repeat
from avl.models.loading import DTYPES, model_name
from avl.policies import PRESETS, PromptShape, parse_policy
from avl.policies.cost import mean_cost
from avl.policies.presets import NEUTRAL, UNMEASURED
from avl.telemetry import machine_card

SCHEMA = "avl.bench/1"
Decode = Literal["auto", "eager", "graphs"]

VARIANTS = ("avl", "evict", "prune")
"""A-VL with the paper's settings for the model: all of them but P, without the core, and with P."""


def loaded(model: Any, processor: Any, image: Path, question: str, new_tokens: int, decode: Decode = "auto") -> Subject:
    """Attach a loaded model and say what its prompts are.

    Args:
        model: from ``avl.load``.
        processor: from ``avl.load``.
        image: the picture asked about.
        question: the question.
        new_tokens: tokens of each answer.
        decode: how steps run; "auto" is CUDA graphs on a GPU.

    Raises:
        ValueError, OSError: bad input.
    """
    one, _ = prepare(model, processor, [open_image(image)], question)
    return _subject(model, model_name(model), "loaded", lambda batch: repeat(one, batch), new_tokens, decode)


def made(
    name: str, new_tokens: int, *, scale: float = 1.0, picture: tuple[int, int] | None = None, device: str = "auto", dtype: str = "auto",
    decode: Decode = "auto",
) -> Subject:  # fmt: skip
    """Make a model of random weights, attach it and say what its prompts are.

    Args:
        name: of an architecture in ``random_weights``.
        new_tokens: tokens of each answer.
        scale: of the sizes; below 1 shrinks them, for tests.
        picture: width and height of the picture, None for the most image tokens.
        device: as for ``avl.load``.
        dtype: as for ``avl.load``.
        decode: how steps run; "auto" is CUDA graphs on a GPU.

    Raises:
        ValueError: an unknown name or dtype, or a scale out of range.
    """
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind = DTYPES.get("fp32" if target == "cpu" else "bf16") if dtype == "auto" else DTYPES.get(dtype)
    if kind is None:
        raise ValueError(f"dtype={dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
    model = random_weights.build(name, target, kind, scale)
    weights = "random" if scale == 1 else f"random, scale {scale:g}"
    return _subject(model, name, weights, lambda batch: random_weights.inputs(model, batch, picture), new_tokens, decode)


def _subject(model: Any, name: str, weights: str, make: Callable[[int], dict[str, Any]], new_tokens: int, decode: Decode) -> Subject:
    attach(model)
    inputs = make(1)
    row = find_rows(inputs["input_ids"], inputs["attention_mask"], describe(model).image_token_id)[0]
    graphs = model.device.type == "cuda" if decode == "auto" else decode == "graphs"
    return Subject(model, name, weights, PromptShape(row.n_image, row.n_text, new_tokens, describe(model).layers), make, graphs)


def parse_arms(specs: Sequence[str], subject: Subject) -> Arms:
    """Return the policies that ``specs`` name: those of :data:`VARIANTS`, or as ``parse_policy`` takes them, ``avl:S=30,C=20,K=3``.

    Raises:
        ValueError: an unknown policy or parameter, or a value out of range.
    """
    paper = PRESETS.get(subject.name, PRESETS[family_of(subject.model.config).preset or NEUTRAL])
    core = replace(paper, P=None)
    variants: Arms = {"avl": core, "evict": replace(core, C=None), "prune": replace(core, P=paper.P)}
    return {spec: variants[spec] if spec in VARIANTS else parse_policy(spec) for spec in specs}


def paper_note(subject: Subject) -> str | None:
    """Return what to say where the settings that ``parse_arms`` takes from the paper are another model's, None where they are its own."""
    return UNMEASURED if subject.name not in PRESETS and family_of(subject.model.config).preset is None else None


def card(subject: Subject, arms: Arms, batches: Sequence[int], rates: roofline.Rates) -> dict[str, Any]:
    """Return the roofline card: what a step must move, per policy for one row, and its bound at each batch."""
    sizes = subject.sizes
    costs = {key: mean_cost(policy, subject.shape) for key, policy in arms.items()}
    return {
        "weight_bytes": sizes.weight_bytes,
        "arms": {
            key: {
                "stored_bytes": cost.stored * sizes.entry_bytes,
                "read_bytes": cost.read * sizes.entry_bytes,
                "floor_ms": {str(batch): roofline.floor_ms(sizes, cost, batch, rates) for batch in batches},
            }
            for key, cost in costs.items()
        },
    }


@torch.inference_mode()
def layers(subject: Subject) -> str:
    """How a step runs the model's layers."""
    reason = why_not(subject.model)
    return "fused" if reason is None else f"the model's modules: {reason}"


def usual_batches(device: torch.device, quick: bool) -> tuple[int, ...]:
    """Return the batch sizes to measure where none are given."""
    if device.type == "cuda":
        return (1, 16) if quick else (1, 8, 16, 32, 64)
    return (1,) if quick else (1, 4)


def benchmark(
    subject: Subject, arms: Arms, batches: Sequence[int], repeats: int, *, quick: bool = False, references: bool = True,
    largest_batch: bool = True, say: Callable[[str], None] = print, keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure every arm at every batch size.

    Args:
        subject: the model and its prompts.
        arms: policies by name.
        batches: rows decoded at once.
        repeats: runs of each cell; the arms alternate.
        quick: measure bandwidth and references in less time.
        references: measure transformers' own generate too.
        largest_batch: find the largest batch that fits too.
        say: takes a line of progress.
        keep: takes the result so far whenever something was measured, so that an end before its time loses little.

    Returns:
        The result, whose schema is :data:`SCHEMA`.
    """
    cuda = subject.device.type == "cuda"
    kind = subject.device, subject.model.dtype, describe(subject.model).head_dim
    bandwidth, rates = measure_rates(subject, batches, quick)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evidence": "gpu" if cuda else "cpu: says nothing about a GPU",
        "machine": machine_card(subject.device),
        "model": {"name": subject.name, "weights": subject.weights, "dtype": str(subject.model.dtype)[6:], "device": subject.device.type}
        | {"parameters": sum(p.numel() for p in subject.model.parameters())} | asdict(subject.sizes),
        "request": {"n_image": subject.shape.n_image, "n_text": subject.shape.n_text, "new_tokens": subject.shape.max_new_tokens},
        "implementation": resolve_impl(subject.device, dtype=subject.model.dtype, head_size=describe(subject.model).head_dim),
        "kernel_trouble": triton_trouble(*kind),
        "layers": layers(subject),
        "decode": "graphs" if subject.graphs else "eager",
        "repeats": repeats,
        "arms": {key: {"label": policy.label, "policy": policy.to_dict()} for key, policy in arms.items()},
        "bandwidth": bandwidth,
        "roofline": card(subject, arms, batches, rates),
        "rows": [], "skipped": [], "references": [], "largest": {}, "finished": False,
    }  # fmt: skip
    say(report.header(result))
    for batch in batches:
        done, left = compare(subject, arms, batch, repeats, rates)
        result["rows"] += done
        result["skipped"] += left
        keep(result)
        for row in done:
            tpot, ttft = row["tpot_ms"]["median"], row["ttft_ms"]["median"]
            say(f"batch {batch:3} {row['arm']:8} {tpot:9.2f} ms per token, first after {ttft:.1f} ms")
        for gap in left:
            say(f"batch {batch:3} {gap['arm']:8} skipped: {gap['reason']}")
    for key, policy in arms.items() if largest_batch else ():
        result["largest"][key] = largest(subject, policy)
        keep(result)
    if references:  # last: what transformers compiles keeps memory
        for static in (False, True):
            for batch in batches[:1] if quick else batches:
                result["references"].append(reference(subject, batch, static, 1 if quick else min(3, repeats)))
                keep(result)
    result["finished"] = True
    keep(result)
    return result
