"""`python -m avl bench`: time per token, memory and bytes of every policy in one engine, beside the floor of the same run.

Prints what it runs on, the roofline card, the tables, and one JSON line last. How a cell is measured: avl/measure.py. Without a GPU it
runs at small batches: those times say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from avl._paths import ASSETS
from avl.attention.attachment import attach
from avl.bench import plots, roofline
from avl.bench.measure import Arms, Subject, compare, largest, measure_rates, reference
from avl.cache.layout import find_rows
from avl.engine.fused import why_not
from avl.kernels import resolve_impl, triton_trouble
from avl.models import random_weights
from avl.models.families import describe, family_of
from avl.models.images import open_image
from avl.models.inputs import prepare, repeat
from avl.models.loading import DTYPES, load, model_name
from avl.policies import PRESETS, PromptShape, parse_policy
from avl.policies.cost import mean_cost
from avl.telemetry import machine_card

SCHEMA = "avl.bench/1"
PICTURE = ASSETS / "gallery" / "scene-4.png"
QUESTION = "Describe the picture."
VARIANTS = ("avl", "evict", "prune")
"""A-VL with the paper's settings for the model: all of them but P, without the core, and with P."""


def open_subject(options: argparse.Namespace) -> Subject:
    """Load or make the model, attach it, and say what its prompts are.

    Raises:
        ValueError, OSError, TypeError: as ``avl.load`` and ``random_weights.build``.
    """
    if options.random_weights is None:
        model, processor = load(options.model, device=options.device, dtype=options.dtype)
        picture = open_image(options.image)
        one, _ = prepare(model, processor, [picture], options.question)

        def make(batch: int) -> dict[str, Any]:
            return repeat(one, batch)

        name, weights = model_name(model), "loaded"
    else:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
        dtype = DTYPES.get("fp32" if device == "cpu" else "bf16") if options.dtype == "auto" else DTYPES.get(options.dtype)
        if dtype is None:
            raise ValueError(f"dtype={options.dtype!r} is unknown: use auto, {', '.join(DTYPES)}")
        model = random_weights.build(options.random_weights, device, dtype, options.scale)

        def make(batch: int) -> dict[str, Any]:
            return random_weights.inputs(model, batch, options.picture)

        name, weights = options.random_weights, "random" if options.scale == 1 else f"random, scale {options.scale:g}"
    attach(model)
    inputs = make(1)
    row = find_rows(inputs["input_ids"], inputs["attention_mask"], describe(model).image_token_id)[0]
    graphs = model.device.type == "cuda" if options.decode == "auto" else options.decode == "graphs"
    shape = PromptShape(row.n_image, row.n_text, options.new_tokens, describe(model).layers)
    return Subject(model, name, weights, shape, make, graphs)


def parse_arms(specs: Sequence[str], subject: Subject) -> Arms:
    """Return the policies that ``specs`` name: those of :data:`VARIANTS`, or as ``parse_policy`` takes them, ``avl:S=30,C=20,K=3``.

    Raises:
        ValueError: an unknown policy or parameter, or a value out of range.
    """
    paper = PRESETS.get(subject.name, PRESETS[family_of(subject.model.config).preset])
    core = replace(paper, P=None)
    variants: Arms = {"avl": core, "evict": replace(core, C=None), "prune": replace(core, P=paper.P)}
    return {spec: variants[spec] if spec in VARIANTS else parse_policy(spec) for spec in specs}


def card(subject: Subject, arms: Arms, batches: Sequence[int], rates: roofline.Rates) -> dict[str, Any]:
    """The roofline card: what a step must move, per policy for one row, and the floor of a step at each batch."""
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


def benchmark(options: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure what ``options`` ask for; returns the result, whose schema is :data:`SCHEMA`."""
    subject = open_subject(options)
    cuda = subject.device.type == "cuda"
    arms = parse_arms(options.policies, subject)
    batches = options.batch or (((1, 16) if options.quick else (1, 8, 16, 32, 64)) if cuda else (1,) if options.quick else (1, 4))
    kind = subject.device, subject.model.dtype, describe(subject.model).head_dim
    bandwidth, rates = measure_rates(subject.device, subject.model.dtype, options.quick)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evidence": "gpu" if cuda else "cpu: says nothing about a GPU",
        "machine": machine_card(),
        "model": {"name": subject.name, "weights": subject.weights, "dtype": str(subject.model.dtype)[6:], "device": subject.device.type}
        | {"parameters": sum(p.numel() for p in subject.model.parameters())} | asdict(subject.sizes),
        "request": {"n_image": subject.shape.n_image, "n_text": subject.shape.n_text, "new_tokens": subject.shape.max_new_tokens},
        "implementation": resolve_impl(subject.device, dtype=subject.model.dtype, head_size=describe(subject.model).head_dim),
        "kernel_trouble": triton_trouble(*kind),
        "layers": layers(subject),
        "decode": "graphs" if subject.graphs else "eager",
        "repeats": options.repeats,
        "arms": {key: {"label": policy.label, "policy": policy.to_dict()} for key, policy in arms.items()},
        "bandwidth": bandwidth,
        "roofline": card(subject, arms, batches, rates),
    }  # fmt: skip
    say(plots.header(result))
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for batch in batches:
        done, left = compare(subject, arms, batch, options.repeats, rates)
        rows, skipped = rows + done, skipped + left
        for row in done:
            tpot, ttft = row["tpot_ms"]["median"], row["ttft_ms"]["median"]
            say(f"batch {batch:3} {row['arm']:8} {tpot:9.2f} ms per token, first after {ttft:.1f} ms")
        for gap in left:
            say(f"batch {batch:3} {gap['arm']:8} skipped: {gap['reason']}")
    sizes = {} if options.no_largest else {key: largest(subject, policy) for key, policy in arms.items()}
    references = []  # last: what transformers compiles keeps memory
    if not options.no_references:
        for static in (False, True):
            for batch in batches[:1] if options.quick else batches:
                references.append(reference(subject, batch, static, 1 if options.quick else min(3, options.repeats)))
    return result | {"rows": rows, "skipped": skipped, "references": references, "largest": sizes}


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m avl bench", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--model", default="tiny", help="as for avl.load")
    made.add_argument("--random-weights", metavar="NAME", help=f"full-size random model instead: {', '.join(random_weights.ARCHITECTURES)}")
    made.add_argument("--scale", type=float, default=1.0, help="shrink the random model (tests)")
    made.add_argument("--picture", type=_size, metavar="WxH", help="picture of the random model; default: most image tokens")
    made.add_argument("--image", type=Path, default=PICTURE, help="picture of a loaded model")
    made.add_argument("--question", default=QUESTION, help="question to a loaded model")
    made.add_argument("--batch", type=int, nargs="+", help="default: 1 8 16 32 64 on a GPU, 1 4 on a CPU")
    made.add_argument("--new-tokens", type=int, help="default: 128; 32 with --quick")
    made.add_argument("--policies", nargs="+", default=["full", "evict", "avl"], help="evict, avl, prune, any policy, or avl:S=30,C=20,K=3")
    made.add_argument("--repeats", type=int, help="default: 5; 2 with --quick")
    made.add_argument("--device", default="auto")
    made.add_argument("--dtype", default="auto")
    made.add_argument(
        "--decode", default="auto", choices=["auto", "eager", "graphs"], help="CUDA graphs or eager steps; default: graphs on a GPU"
    )
    made.add_argument("--threads", type=int, help="CPU threads of torch; default: torch's own choice")
    made.add_argument("--quick", action="store_true", help="fewer batches, tokens and repeats")
    made.add_argument("--no-references", action="store_true", help="leave out transformers' own generate")
    made.add_argument("--no-largest", action="store_true", help="leave out the largest batch that fits")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the result to FILE")
    made.add_argument("--plots", type=Path, metavar="DIR", help="also draw the result into DIR")
    made.add_argument("--render", type=Path, nargs="+", metavar="FILE", help="README RESULT…: only put the results' tables into the README")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status. Raises ValueError, OSError or TypeError with a sentence for bad input."""
    options = parser().parse_args(argv)
    if options.render:
        readme, *files = options.render
        results = [json.loads(file.read_text()) for file in files]
        readme.write_text(plots.render(readme.read_text(), results))
        return 0
    options.new_tokens = options.new_tokens or (32 if options.quick else 128)
    options.repeats = options.repeats or (2 if options.quick else 5)
    if options.new_tokens < 4 or options.repeats < 1 or min(options.batch or [1]) < 1:
        raise ValueError("--new-tokens is at least 4 (an update step and a core step), --repeats and --batch at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    result = benchmark(options)
    print(plots.tables(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plots:
        for file in plots.draw(result, options.plots):
            print(f"drew {file}", file=sys.stderr)
    print(json.dumps(result))
    return 0
