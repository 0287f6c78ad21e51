"""How right a model's answers to held-out questions are under each policy: ``avl eval``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from avl.cache.cache import make_cache
from avl.evaluation.memory import Workload, at_equal_memory, batches, prompt, stored_share, workload
from avl.evaluation.rows import Row, Rows, table, today
from avl.evaluation.tasks import TASKS, Sample, score
from avl.models.families import describe
from avl.policies import AVL, POLICIES, Full, Policy, cli_name, parse_policy

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
    """A model and its questions: measures what its rows do not hold yet.

    Args:
        model: an attached model.
        processor: its processor.
        samples: what to ask.
        rows: where rows go.
        batch: samples at a time.
    """

    def __init__(self, model: Any, processor: Any, samples: Sequence[Sample], rows: Rows, batch: int = 16) -> None:
        self._model, self._processor, self._samples, self.rows, self._batch = model, processor, samples, rows, batch
        self.steps: Workload = workload(model, processor, samples, batch, MAX_NEW_TOKENS)

    def row(self, policy: Policy) -> Row:
        """Return a policy's row, measured now unless it has been before."""
        row = self.rows.find(policy)
        if row is None:
            row = evaluate(self._model, self._processor, self._samples, policy, self._batch)
            self.rows.add(row)
        return row

    def equal(self, policy: Policy, to: Policy) -> Policy | None:
        """Return a policy at the memory of another one; None, and a note beside the rows, where it cannot be."""
        try:
            return at_equal_memory(policy, stored_share(to, self.steps), self.steps)
        except ValueError as error:
            self.rows.notes.setdefault("left out", {})[f"{policy.title} at the memory of {to.label}"] = str(error)
            self.rows.write()
            return None


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


def evaluate_all(measured: Measured, policies: Sequence[tuple[Policy, bool]], say: Callable[[str], None] = print) -> None:
    """Score full attention and policies.

    Args:
        measured: what is asked, and where rows go.
        policies: as from :func:`wanted`; the memory is that of the first A-VL among them, else of :data:`ADAPTIVE`.
        say: takes each line of the table as soon as it is known.
    """
    full = measured.row(Full())
    say(table([full], full))
    reference = next((policy for policy, _ in policies if isinstance(policy, AVL)), ADAPTIVE)
    for policy, equal in policies:
        chosen = measured.equal(policy, reference) if equal else policy
        if chosen is None:
            say(f"{policy.title} is left out: it cannot store what {reference.label} stores")
        elif not isinstance(chosen, Full):
            say(table([measured.row(chosen)], full).splitlines()[1])
