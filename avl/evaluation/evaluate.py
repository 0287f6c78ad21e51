"""How right a model's answers to held-out questions are under each policy: ``avl eval``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from avl.cache.cache import make_cache
from avl.evaluation.memory import batches, prompt, workload
from avl.evaluation.rows import Row, Rows, table, today
from avl.evaluation.tasks import TASKS, Sample, score
from avl.models.families import describe
from avl.policies import AVL, POLICIES, Full, Policy, cli_name, parse_policy
from avl.policies.equal_memory import Workload, at_share, stored_share

MAX_NEW_TOKENS = 96  # the longest right answer needs 80

ADAPTIVE = AVL(S=45, C=30, K=3, P=90, T=60)
"""What ``avl`` without parameters means here: all five."""

OTHERS = tuple(cli_name(policy) for name, policy in POLICIES.items() if name not in ("Full", "AVL"))
"""What A-VL is compared with."""

_WITH_SPREAD = tuple(f"avl:S=45,C=30,K=3,P=90,T=60,spread={percent}" for percent in (20, 33, 45))
_NO_SCORES = ("avl:S=45", "avl:S=45,spread=45")  # the same memory, all chosen by scores and none
TABLE = ("full", "avl", *_WITH_SPREAD, *OTHERS, *_NO_SCORES)
"""The rows of the whole table."""


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
    texts = [prompt(processor, sample) for sample in samples]
    inputs = processor(images=[s.image for s in samples], text=texts, return_tensors="pt", padding=True).to(model.device, model.dtype)
    cache = make_cache(model, inputs, policy, max_new_tokens=MAX_NEW_TOKENS)
    meter = _Meter(cache, len(samples), int(inputs["attention_mask"].sum()), describe(model).layers)
    with torch.inference_mode():
        out = model.generate(**inputs, past_key_values=cache, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stopping_criteria=[meter])
    answers = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [a.strip() for a in answers], (meter.stored, meter.read, meter.full)


def evaluate(model: Any, processor: Any, samples: Sequence[Sample], policy: Policy, batch: int = 16) -> Row:
    """Score a policy on samples.

    Args:
        model: an attached model.
        processor: its processor.
        samples: what to ask.
        policy: under which policy to answer.
        batch: samples at a time.
    """
    began = time.monotonic()
    found = [0.0] * len(samples)
    stored = read = whole = 0
    for indices in batches(samples, batch):
        answers, (a, b, c) = answer(model, processor, [samples[index] for index in indices], policy)
        stored, read, whole = stored + a, read + b, whole + c
        for index, text in zip(indices, answers, strict=True):
            found[index] = round(score(samples[index].question, text), 4)  # as a file keeps it
    points = {task: tuple(p for p, s in zip(found, samples, strict=True) if s.question.task == task) for task in TASKS}
    shares = [round(count / max(whole, 1), 4) for count in (stored, read)]
    return Row(policy.label, policy.to_dict(), points, shares[0], shares[1], round(time.monotonic() - began, 1), today())


class Measured:
    """What is asked of a model: measures the policies that its rows do not hold yet.

    Args:
        rows: where rows go.
        steps: the decode steps of right answers, over which memory is equal.
        measure: asks everything under a policy.
    """

    def __init__(self, rows: Rows, steps: Workload, measure: Callable[[Policy], Row]) -> None:
        self.rows, self.steps, self._measure = rows, steps, measure

    @classmethod
    def single(cls, model: Any, processor: Any, samples: Sequence[Sample], rows: Rows, batch: int = 16) -> Self:
        """Return single questions to an attached model, ``batch`` at a time."""
        steps = workload(model, processor, samples, batch, MAX_NEW_TOKENS)
        return cls(rows, steps, lambda policy: evaluate(model, processor, samples, policy, batch))

    def row(self, policy: Policy) -> Row:
        """Return a policy's row, measured now unless it has been before."""
        row = self.rows.find(policy)
        if row is None:
            row = self._measure(policy)
            self.rows.add(row)
        return row

    def equal(self, policy: Policy, to: Policy | float) -> Policy | None:
        """Return a policy at the memory of another one, or at a stored share; None, and a note beside the rows, where it cannot be."""
        try:
            return at_share(policy, stored_share(to, self.steps) if isinstance(to, Policy) else to, self.steps)
        except ValueError as error:
            self.rows.notes.setdefault("left out", {})[f"{policy.title} at {memory_of(to)}"] = str(error)
            self.rows.write()
            return None


def memory_of(to: Policy | float) -> str:
    """Name the memory that policies get."""
    return f"the memory of {to.label}" if isinstance(to, Policy) else f"{to:.4g} of a full cache"


def wanted(specs: Sequence[str]) -> list[tuple[Policy, bool]]:
    """Return the policies that texts mean, and whether each is to be set to A-VL's memory: those named without parameters are.

    Raises:
        ValueError: a policy or a parameter is unknown or out of range.
    """
    found = []
    for spec in specs:
        policy = parse_policy(spec)
        bare = ":" not in spec
        if bare and isinstance(policy, AVL):
            policy = ADAPTIVE
        found.append((policy, bare and policy.budget is not None and not isinstance(policy, AVL)))
    return found


def evaluate_all(
    measured: Measured,
    policies: Sequence[tuple[Policy, bool]],
    stored: float | None = None,
    say: Callable[[str], None] = print,
    lines: Callable[[Sequence[Row], Row], str] = table,
) -> None:
    """Score full attention and policies.

    Args:
        measured: what is asked, and where rows go.
        policies: as from :func:`wanted`; the memory is that of the first A-VL among them, else of :data:`ADAPTIVE`.
        stored: a share of a full cache (0 to 1) that every policy with a budget gets instead.
        say: takes each line of the table as soon as it is known.
        lines: writes rows, beside full attention's, as a table: a head, and a line for each.
    """
    full = measured.row(Full())
    say(lines([full], full))
    reference = stored or next((policy for policy, _ in policies if isinstance(policy, AVL)), ADAPTIVE)
    for policy, equal in policies:
        set_to = policy.budget is not None if stored else equal
        chosen = measured.equal(policy, reference) if set_to else policy
        if chosen is None:
            say(f"{policy.title} is left out: it cannot store {memory_of(reference)}")
        elif not isinstance(chosen, Full):
            say(lines([measured.row(chosen)], full).splitlines()[1])
