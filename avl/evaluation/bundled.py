"""The bundled model's held-out questions as tasks that cells ask."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from avl.evaluation.cells import Answer
from avl.evaluation.evaluate import MAX_NEW_TOKENS, answer
from avl.evaluation.memory import batches, workload
from avl.evaluation.tasks import TASKS, held_out, score
from avl.policies import Policy
from avl.policies.equal_memory import Workload


class Bundled:
    """Questions of one of ``TASKS``: qa, read or describe.

    Args:
        model: an attached model.
        processor: its processor.
        name: the task.
        size: samples, a scene each.
        seed: another seed gives other scenes.
        batch: samples at a time.

    Raises:
        ValueError: the task is unknown, or there is no sample.
    """

    def __init__(self, model: Any, processor: Any, name: str, size: int, seed: int = 0, batch: int = 16) -> None:
        if name not in TASKS:
            raise ValueError(f"no task is called {name!r}: choose from {', '.join(TASKS)}")
        if size < 1:
            raise ValueError(f"{size} samples are none: ask for at least 1")
        self.name, self.size = name, size
        self.made: Mapping[str, Any] = {"seed": seed, "max_new_tokens": MAX_NEW_TOKENS, "batch": batch}
        # of every ten at least three are of each task
        self.samples = [one for one in held_out(10 * -(-size // 3), seed) if one.question.task == name][:size]
        self._model, self._processor, self._batch = model, processor, batch

    def ask(self, policy: Policy, numbers: Sequence[int]) -> list[Answer]:
        """Return the answers to these samples under a policy, batched by length."""
        found = []
        asked = [self.samples[number] for number in numbers]
        for places in batches(asked, self._batch):
            began = time.monotonic()
            texts, counts = answer(self._model, self._processor, [asked[place] for place in places], policy)
            stored, read, full, seconds = (value / len(places) for value in (*counts, time.monotonic() - began))
            found += [Answer(numbers[place], text, stored, read, full, seconds) for place, text in zip(places, texts, strict=True)]
        return found

    def scores(self, texts: Mapping[int, str]) -> dict[int, float]:
        """Return the score of each answer, 0 to 1."""
        return {number: score(self.samples[number].question, text) for number, text in texts.items()}

    def steps(self, numbers: Sequence[int]) -> Workload:
        """Return the decode steps of right answers to these samples, over which policies are set to a stored share."""
        return workload(self._model, self._processor, [self.samples[number] for number in numbers], self._batch, MAX_NEW_TOKENS)
