"""Equal memory: a policy's budget is set so that it stores, on average over the very steps that are measured, what another one stores.

By the cost model over the samples' own lengths, so nothing is run. Prompt shares would not do: SnapKV's cache grows with the answer,
H2O's does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from avl.evaluation.tasks import Sample
from avl.models.families import describe, family_of, image_token_id
from avl.policies import Policy, PromptShape
from avl.policies.base import nearest_budget
from avl.policies.cost import step_cost

TOLERANCE = 0.003
"""Stored shares closer than this count as equal. A token more or less per layer of LLaVA's 576 is 0.0017."""

Workload = dict[PromptShape, Counter[int]]
"""Shape of a prompt -> decode step -> the rows of that shape that take the step."""


def batches(samples: Sequence[Sample], size: int) -> list[list[int]]:
    """Return the samples' indices by batch. Answers of one kind are about as long, so that few rows of a batch wait for the others."""

    def length(index: int) -> tuple[str, str, int]:
        question = samples[index].question
        return question.task, question.kind, len(question.answer)

    order = sorted(range(len(samples)), key=length)
    return [order[start : start + size] for start in range(0, len(order), size)]


def prompt(processor: Any, sample: Sample) -> str:
    """Return a sample's prompt, as the model's chat template writes it."""
    content = [{"type": "image"}, {"type": "text", "text": sample.question.text}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def workload(model: Any, processor: Any, samples: Sequence[Sample], batch: int, limit: int) -> Workload:
    """Return the steps of right answers: a batch takes as many as its longest answer has tokens, of which ``limit`` is the most."""
    tokenizer, config, layers = processor.tokenizer, model.config, describe(model).layers
    family = family_of(config)
    steps: Workload = {}
    for indices in batches(samples, batch):
        answers = [len(tokenizer(samples[i].question.answer, add_special_tokens=False)["input_ids"]) for i in indices]
        longest = min(max(answers), limit - 1)  # the end of the sequence takes the step after the last token, and prefill gave the first
        for index in indices:
            ids = tokenizer(prompt(processor, samples[index]))["input_ids"]
            text = len(ids) - ids.count(image_token_id(config))
            shape = PromptShape(family.image_tokens(config, samples[index].image.size), text, limit, layers)
            steps.setdefault(shape, Counter()).update(range(1, longest + 1))
    return steps


def stored_share(policy: Policy, steps: Workload) -> float:
    """Return which share of a full cache the policy stores, averaged over the steps as `evaluate` measures it."""
    stored = full = 0.0
    for shape, counts in steps.items():
        for step, rows in counts.items():
            stored += rows * step_cost(policy, shape, step).stored
            full += rows * shape.n_layers * (shape.length + step)
    return stored / full


def at_equal_memory(policy: Policy, share: float, steps: Workload) -> Policy:
    """Return the policy with its budget set to store ``share`` (0 to 1) of a full cache on average over ``steps``.

    Raises:
        ValueError: it cannot come within :data:`TOLERANCE`; says what it can store.
    """
    knob = policy.budget
    if knob is None:
        raise ValueError(f"{policy.title} stores everything: it has no memory to set")

    def stored(thousandths: int) -> float:
        return stored_share(policy.with_budget(thousandths), steps)

    def distance(one: Policy) -> float:
        return abs(stored_share(one, steps) - share)

    best = policy.with_budget(nearest_budget(stored, share))
    if distance(best) > TOLERANCE:
        least, most = (stored(value) for value in (1, 100_000))
        raise ValueError(f"{policy.title} cannot store {share:.1%}: with {knob} from 0.001 to 100 it stores {least:.1%} to {most:.1%}")
    enough = max(distance(best), TOLERANCE / 10)  # a round number that stores next to the same reads better
    exact = getattr(best, knob)
    rounded = (replace(policy, **{knob: round(exact, digits)}) for digits in range(3) if round(exact, digits) > 0)
    return next((one for one in rounded if distance(one) <= enough), best)
