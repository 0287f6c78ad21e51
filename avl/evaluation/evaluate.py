"""How right a model's answers to held-out questions are under each policy: ``avl eval``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from avl.cache.cache import make_cache
from avl.evaluation.tasks import TASKS, Sample, score
from avl.models.families import describe, family_of
from avl.policies import AVL, Full, Policy, parse_policy

MAX_NEW_TOKENS = 96  # the longest right answer needs 80


@dataclass(frozen=True)
class Result:
    """One row of the table. Scores and shares are 0 to 1; stored and read are shares of a full cache, averaged over decode steps."""

    policy: str
    scores: dict[str, float]
    kept: dict[str, float]
    stored: float
    read: float
    seconds: float


class _Meter:
    """Sums up, after every step of `generate`, what the cache holds and what the step read. Never stops anything."""

    def __init__(self, cache: Any, rows: int, prompt: int, layers: int) -> None:
        self.cache, self.rows, self.prompt, self.layers = cache, rows, prompt, layers
        self.step = 0
        self.stored = self.read = self.full = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.step:  # the first call comes after prefill: nothing was decoded yet
            self.stored += sum(self.cache.stored_tokens)
            self.read += sum(self.cache.read_tokens)
            self.full += self.layers * (self.prompt + self.rows * self.step)
        self.step += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def answer(model: Any, processor: Any, samples: Sequence[Sample], policy: Policy) -> tuple[list[str], tuple[int, int, int]]:
    """Answer one batch of samples greedily under a policy.

    Returns:
        The answers, and the entries stored, read and of a full cache, summed over layers, rows and decode steps.
    """
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": s.question.text}]}], add_generation_prompt=True
        )
        for s in samples
    ]
    inputs = processor(images=[s.image for s in samples], text=texts, return_tensors="pt", padding=True).to(model.device, model.dtype)
    cache = make_cache(model, inputs, policy, max_new_tokens=MAX_NEW_TOKENS)
    layers = model.config.text_config.num_hidden_layers
    meter = _Meter(cache, len(samples), int(inputs["attention_mask"].sum()), layers)
    with torch.inference_mode():
        out = model.generate(**inputs, past_key_values=cache, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stopping_criteria=[meter])
    answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [a.strip() for a in answers], (meter.stored, meter.read, meter.full)


def evaluate(model: Any, processor: Any, samples: Sequence[Sample], policy: Policy, full: Result | None = None, batch: int = 16) -> Result:
    """Score a policy on samples.

    Args:
        model: an attached model.
        processor: its processor.
        samples: what to ask.
        policy: under which policy to answer.
        full: the result of full attention, to say which share of its score is kept; None where this is full attention.
        batch: samples at a time.
    """
    began = time.monotonic()
    points: dict[str, list[float]] = {task: [] for task in TASKS}
    stored = read = whole = 0
    # Answers of one kind are about as long, so that few rows of a batch wait for the others.
    order = sorted(samples, key=lambda s: (s.question.task, s.question.kind, len(s.question.answer)))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        answers, (a, b, c) = answer(model, processor, part, policy)
        stored, read, whole = stored + a, read + b, whole + c
        for sample, text in zip(part, answers, strict=True):
            points[sample.question.task].append(score(sample.question, text))
    scores = {task: sum(p) / len(p) for task, p in points.items() if p}
    base = full.scores if full else scores
    kept = {task: value / base[task] if base[task] else 0.0 for task, value in scores.items()}
    return Result(policy.label, scores, kept, stored / max(whole, 1), read / max(whole, 1), time.monotonic() - began)


def at_equal_memory(share: float, text: int, images: int, layers: int, names: Sequence[str]) -> list[Policy]:
    """Return the policies named, each set to store the same share of a full cache; those that cannot are left out."""
    policies: list[Policy] = []
    for name in names:
        try:
            policies.append(parse_policy(name).at_stored(share, images, text, layers))
        except ValueError:
            continue
    return policies


def text_tokens(processor: Any, samples: Sequence[Sample]) -> int:
    """Mean number of text tokens of the prompts and right answers, rounded: what `at_stored` counts with."""
    tokenizer = processor.tokenizer
    lengths = [len(tokenizer(f"USER: \n{s.question.text} ASSISTANT: {s.question.answer}")["input_ids"]) for s in samples]
    return round(sum(lengths) / len(lengths))


def table(results: Sequence[Result]) -> str:
    """Return the results as lines of text."""
    lines = [f"{'policy':34}" + "".join(f"{t:>10}{'kept':>8}" for t in TASKS) + f"{'stored':>9}{'read':>8}"]
    for r in results:
        cells = "".join(f"{r.scores[t]:10.1%}{r.kept[t]:8.1%}" if t in r.scores else f"{'–':>10}{'–':>8}" for t in TASKS)
        lines.append(f"{r.policy:34}{cells}{r.stored:9.1%}{r.read:8.1%}")
    return "\n".join(lines)


def evaluate_all(
    model: Any, processor: Any, samples: Sequence[Sample], names: Sequence[str], batch: int = 16, say: Callable[[str], None] = print
) -> list[Result]:
    """Score full attention and the policies named: A-VL with all five parameters, the others at the memory that A-VL then uses.

    Args:
        model: an attached model.
        processor: its processor.
        samples: what to ask.
        names: registered names of policies; full attention is always measured.
        batch: samples at a time.
        say: takes each line of the table as soon as it is known.
    """
    full = evaluate(model, processor, samples, Full(), batch=batch)
    results = [full]
    say(table(results))
    if not set(names) - {"Full"}:
        return results

    def add(result: Result) -> None:
        results.append(result)
        say(table([result]).splitlines()[1])

    adaptive = evaluate(model, processor, samples, AVL(S=45, C=30, K=3, P=90, T=60), full, batch)
    if "AVL" in names:
        add(adaptive)
    others = [name for name in names if name not in ("Full", "AVL")]
    text, layers = text_tokens(processor, samples), describe(model).layers
    image = family_of(model.config).image_tokens(model.config, samples[0].image.size)
    for policy in at_equal_memory(adaptive.stored, text, image, layers, others):
        add(evaluate(model, processor, samples, policy, full, batch))
    return results
