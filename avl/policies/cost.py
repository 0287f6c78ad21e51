"""The cost model: how many tokens a policy stores, reads and scores at step t. The one closed form behind every prediction.

The page's predictions, ``Policy.at_stored``, the roofline and the benchmark's check use it; a test holds it equal to what the cache counts,
for every policy, layer and step. Counts are of one row; step 0 is the prefill, step t = 1, 2, … feeds generated token t.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from avl.policies.base import KVBudget, Policy, PromptShape


@dataclass(frozen=True)
class Cost:
    """Tokens of one row, of one layer or added up over the layers.

    Attributes:
        stored: held after the step.
        read: keys and values that the step's attention reads; of the prefill, what its last query could read.
        scored: tokens whose attention weights rank something at a decode step.
    """

    stored: float
    read: float
    scored: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.stored + other.stored, self.read + other.read, self.scored + other.scored)

    def times(self, factor: float) -> Cost:
        """Return all counts multiplied by ``factor``."""
        return Cost(self.stored * factor, self.read * factor, self.scored * factor)


@dataclass(frozen=True)
class _Layer:
    """What a policy's verbs say of one layer; ``present`` and ``start`` count prompt tokens: in prefill, and in the window after it."""

    present: int
    start: int
    budget: KVBudget
    core: int | None
    accumulates: bool


@functools.lru_cache(maxsize=512)
def _layers(policy: Policy, shape: PromptShape) -> tuple[_Layer, ...]:
    prompt, found = window_tokens(policy, shape), []
    for layer in range(shape.n_layers):
        budget, observation = policy.store(layer, shape), policy.observe(layer, shape)
        accumulates = observation is not None and observation.decode
        present = policy.present(layer, shape) + shape.n_text
        found.append(_Layer(present, budget.start(prompt), budget, policy.select(layer, shape), accumulates))
    return tuple(found)


@functools.lru_cache(maxsize=512)
def _kinds(policy: Policy, shape: PromptShape) -> tuple[tuple[_Layer, int], ...]:
    """The different layers and how many there are of each: most are alike, so sums need not visit every one."""
    return tuple(Counter(_layers(policy, shape)).items())


def window_tokens(policy: Policy, shape: PromptShape) -> int:
    """Return the prompt tokens that belong to the window: the text, or all of them where images are not pinned."""
    return shape.n_text if policy.pins_image else shape.length


def _counts(layer: _Layer, t: int, update: bool) -> tuple[int, int, int]:
    """Tokens stored, read and scored. Plain numbers: a prediction adds up thousands of them."""
    budget, window, core = layer.budget, layer.budget.window, layer.core
    if t == 0:
        return budget.image + layer.start, layer.present, 0
    held = kept = layer.start + t
    if window is not None:
        # a new token is stored and attended to before the weakest one leaves: one more than the window is read
        held, kept = min(held, window + 1), min(kept, window)
    whole = core is None or update
    scored = (held if layer.accumulates else 0) + (budget.image if update and core is not None else 0)
    return budget.image + kept, held + (budget.image if whole or core is None else core), scored


def layer_cost(policy: Policy, shape: PromptShape, layer: int, t: int) -> Cost:
    """Return the tokens of one layer at step ``t``."""
    return Cost(*_counts(_layers(policy, shape)[layer], t, policy.is_update(t)))


def step_cost(policy: Policy, shape: PromptShape, t: int) -> Cost:
    """Return the tokens of all layers at step ``t``."""
    update = policy.is_update(t)
    stored = read = scored = 0
    for layer, count in _kinds(policy, shape):
        one = _counts(layer, t, update)
        stored, read, scored = stored + count * one[0], read + count * one[1], scored + count * one[2]
    return Cost(stored, read, scored)


def mean_cost(policy: Policy, shape: PromptShape, steps: Iterable[int] | None = None) -> Cost:
    """Return the mean of :func:`step_cost` over ``steps``, by default those of a whole answer (prefill gives its first token)."""
    chosen = list(range(1, max(2, shape.max_new_tokens))) if steps is None else list(steps)
    return sum((step_cost(policy, shape, t) for t in chosen), Cost(0, 0, 0)).times(1 / len(chosen))


def update_steps(policy: Policy, shape: PromptShape) -> dict[str, list[int]]:
    """Return the answer's core steps and update steps apart; empty for a policy whose steps are all alike."""
    if all(layer.core is None for layer in _layers(policy, shape)):
        return {}
    steps = range(1, max(2, shape.max_new_tokens))
    kinds = {"core": [t for t in steps if not policy.is_update(t)], "update": [t for t in steps if policy.is_update(t)]}
    return {name: found for name, found in kinds.items() if found}


def stored_after_prefill(policy: Policy, shape: PromptShape) -> int:
    """Return the tokens that all layers hold after prefill."""
    return int(step_cost(policy, shape, 0).stored)


def allocated_tokens(policy: Policy, shape: PromptShape) -> int:
    """Return the slots of all layers, the window's free ones included: what a row's cache takes in memory."""
    prompt = window_tokens(policy, shape)
    return sum(count * (layer.budget.image + layer.budget.capacity(prompt, shape.max_new_tokens)) for layer, count in _kinds(policy, shape))


def pruned_from(policy: Policy, shape: PromptShape) -> int | None:
    """Return the first layer whose prompt lacks image tokens; None where every layer sees all of them."""
    return next((layer for layer in range(shape.n_layers) if policy.present(layer, shape) < shape.n_image), None)
