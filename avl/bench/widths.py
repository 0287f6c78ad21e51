"""Decode steps at a large model's width, on few of its layers: ``avl bench --width-of NAME --layers 1``.

A CPU has no memory or time for 32 layers of a 7B model in many batches, and needs none: its layers are alike. All rows hold the same
prompt, which runs once, so the time to the first token is not measured. The arms step in turns, as everywhere; what is compared is the
ratio of their steps with the ratio of the bytes that they must move at the rates that the machine shows in the same run.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from avl.attention.attachment import attach
from avl.bench import benchmark, roofline
from avl.bench.measure import Subject, measure_rates, reference, spread
from avl.cache.cache import AdaptiveCache, make_cache
from avl.cache.layout import find_rows
from avl.engine.decoder import Decoder
from avl.kernels import resolve_impl
from avl.models import random_weights
from avl.models.families import describe
from avl.policies import Policy, PromptShape
from avl.policies.cost import mean_cost
from avl.telemetry import machine_card, settle

SCHEMA = "avl.widths/1"
ARMS = ("full", "evict", "avl")
ROUND = 6
"""Steps of a round: two update steps and four core steps where K is 3."""

NARROWER = {"llava-1.6-7b": "llava-1.5-7b", "llava-1.6-13b": "llava-1.5-13b"}
"""Architecture -> the one of the same width whose pictures take 576 tokens."""

REFERENCE_BATCH = 4


@torch.inference_mode()
def measure(
    name: str, layers: int, batches: Sequence[int], threads: Sequence[int], rounds: int, *, scale: float = 1.0, references: bool = True,
    say: Callable[[str], None] = print, keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure every cell: image tokens, rows and threads.

    Args:
        name: of an architecture in ``random_weights``; where another has its width and shorter prompts, that is measured too.
        layers: how many of its layers the model has.
        batches: rows decoded at once.
        threads: numbers of CPU threads.
        rounds: of :data:`ROUND` steps in every cell, after one that warms up.
        scale: of the sizes; below 1 for tests.
        references: measure transformers' own generate too.
        say: takes a line of progress.
        keep: takes the result so far, after every cell.

    Returns:
        The result, whose schema is :data:`SCHEMA`.

    Raises:
        ValueError: an unknown name, or layers or a scale out of range.
    """
    before = torch.get_num_threads()
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine_card(torch.device("cpu")),
        "model": {"name": name, "layers": layers, "dtype": "float32", "scale": scale},
        "implementation": resolve_impl("cpu", dtype=torch.float32),
        "steps_per_round": ROUND, "rounds": rounds, "cells": [], "references": [], "finished": False,
    }  # fmt: skip
    try:
        for one in dict.fromkeys((NARROWER.get(name, name), name)):
            subject = _subject(one, layers, scale, ROUND * (rounds + 1) * len(threads) + 1)
            arms = benchmark.parse_arms(ARMS, subject)
            result["model"] |= {"parameters": sum(p.numel() for p in subject.model.parameters())}
            prompts = {key: _prompt(subject, policy) for key, policy in arms.items()}
            rates = {}
            for count in threads:
                torch.set_num_threads(count)
                rates[count] = measure_rates(subject, batches, quick=False)
            for batch in batches:
                for cell in _cells(subject, arms, prompts, batch, threads, rounds, rates):
                    result["cells"].append(cell)
                    keep(result)
                    say(line(cell))
            del prompts
            for count in threads if references and REFERENCE_BATCH in batches else ():
                torch.set_num_threads(count)
                found = reference(subject, REFERENCE_BATCH, False, 1)
                result["references"].append({"n_image": subject.shape.n_image, "threads": count} | found)
                keep(result)
    finally:
        torch.set_num_threads(before)
    result["finished"] = True
    keep(result)
    return result


def _subject(name: str, layers: int, scale: float, new_tokens: int) -> Subject:
    model = attach(random_weights.build(name, scale=scale, layers=layers))
    inputs = random_weights.inputs(model, 1)
    row = find_rows(inputs["input_ids"], inputs["attention_mask"], describe(model).image_token_id)[0]
    shape = PromptShape(row.n_image, row.n_text, new_tokens, describe(model).layers)
    return Subject(model, name, "random", shape, lambda batch: random_weights.inputs(model, batch))


def _prompt(subject: Subject, policy: Policy) -> AdaptiveCache:
    """Return the cache of one row whose prompt is done."""
    inputs = subject.make(1)
    whole = make_cache(subject.model, inputs, policy, subject.shape.max_new_tokens)
    part = whole.chunk(0, 1)
    subject.model(**inputs, past_key_values=part, use_cache=True, logits_to_keep=1)
    return part


def _cells(
    subject: Subject, arms: dict[str, Policy], prompts: dict[str, AdaptiveCache], batch: int, threads: Sequence[int], rounds: int,
    rates: dict[int, tuple[dict[str, float], roofline.Rates]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Step all arms in turns in a batch, with each number of threads."""
    settle(subject.device)
    inputs = {key: torch.cat([value] * batch) for key, value in subject.make(1).items()}
    decoders: dict[str, Decoder] = {}
    for key, policy in arms.items():
        cache = make_cache(subject.model, inputs, policy, subject.shape.max_new_tokens)
        decoders[key] = Decoder(subject.model, cache)
        decoders[key].prefill_alike(prompts[key])
    tokens = inputs["input_ids"][:, -1]
    done, cells = 0, []
    for count in threads:
        torch.set_num_threads(count)
        if count != threads[0]:  # scratch memory of a compiled step is for one number of threads
            for decoder in decoders.values():
                decoder.renew()
        times: dict[str, list[float]] = {key: [] for key in arms}
        for number in range(-1, rounds):
            found: dict[str, dict[bool, list[float]]] = {key: {True: [], False: []} for key in arms}
            for step in range(ROUND):
                done += 1
                for key in list(arms)[:: 1 if step % 2 == 0 else -1]:
                    begin = time.perf_counter()
                    decoders[key].step(tokens)
                    found[key][arms[key].is_update(done)].append(1e3 * (time.perf_counter() - begin))
            if number >= 0:
                for key, kinds in found.items():
                    times[key].append(sum(len(kind) * statistics.median(kind) for kind in kinds.values() if kind) / ROUND)
        cells.append(_cell(subject, arms, batch, count, times, rates[count]))
    return cells


def _cell(
    subject: Subject, arms: dict[str, Policy], batch: int, threads: int, times: dict[str, list[float]],
    rates: tuple[dict[str, float], roofline.Rates],
) -> dict[str, Any]:  # fmt: skip
    floors = {key: roofline.floor_ms(subject.sizes, mean_cost(policy, subject.shape), batch, rates[1]) for key, policy in arms.items()}
    base = next(iter(arms))
    return {
        "n_image": subject.shape.n_image,
        "n_text": subject.shape.n_text,
        "batch": batch,
        "threads": threads,
        "copy_gb_s": rates[0]["copy"],
        "weights_gb_s": rates[1].products[batch] / 1e9,
        "arms": {
            key: {
                "policy": policy.label,
                "ms": spread(times[key]),
                "floor_ms": floors[key],
                "ratio": spread([full / own for full, own in zip(times[base], times[key], strict=True)]),
                "predicted": floors[base] / floors[key],
            }
            for key, policy in arms.items()
        },
    }


def line(cell: dict[str, Any]) -> str:
    """Return a cell in one line."""
    parts = [
        f"{key} {arm['ms']['median']:.1f} ms ({arm['ratio']['median']:.2f}, by bytes {arm['predicted']:.2f})"
        for key, arm in cell["arms"].items()
    ]
    return f"{cell['n_image']} image tokens, {cell['batch']} rows, {cell['threads']} threads: " + ", ".join(parts)
