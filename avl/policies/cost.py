"""The cost model: how many tokens a policy stores, reads and scores at step t, from sizes alone. Every prediction uses it.

The users are the page, ``Policy.at_stored``, the roofline and the benchmark's check; a test compares the model with the cache's own counts,
for every policy, layer and step. Counts are for one row; step 0 is the prefill, step t = 1, 2, … feeds generated token t - 1.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from avl.policies.base import KVBudget, Policy, PromptShape


@dataclass(frozen=True)
class Cost:
    """Token counts of one row, for one layer or summed over layers.

    Attributes:
        stored: tokens stored after the step.
        read: tokens whose keys and values the step's attention reads; for the prefill, those visible to its last query.
        scored: tokens whose attention weights a decode step needs for a ranking.
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
    """The answers of a policy's verbs for one layer; ``seen`` counts what the last query of the first pass reads, ``start`` what is stored
    in the window after it."""

    seen: int
    start: int
    budget: KVBudget
    core: int | None
    accumulates: bool


@functools.lru_cache(maxsize=512)
def _layers(policy: Policy, shape: PromptShape) -> tuple[_Layer, ...]:
    found = []
    for layer in range(shape.n_layers):
        budget, observation = policy.store(layer, shape), policy.observe(layer, shape)
        accumulates = observation is not None and observation.decode
        arriving = shape.n_text if shape.past is None else _arriving(policy, layer, shape)
        # the last query of the first pass sees all of its tokens, whatever is stored of them; where the window holds all, it counts them
        fed = policy.present(layer, shape) if shape.past is None or policy.pins_image else 0
        seen = policy.left(layer, shape) + fed + arriving
        found.append(_Layer(seen, window_start(policy, layer, shape), budget, policy.select(layer, shape), accumulates))
    return tuple(found)


@functools.lru_cache(maxsize=512)
def _kinds(policy: Policy, shape: PromptShape) -> tuple[tuple[_Layer, int], ...]:
    """Return the distinct layers and how many there are of each; most are equal, so that sums need not visit every layer."""
    return tuple(Counter(_layers(policy, shape)).items())


def window_tokens(policy: Policy, shape: PromptShape) -> int:
    """Return the number of prompt tokens in the window: the text, or all of them if image tokens are not pinned."""
    return shape.n_text if policy.pins_image else shape.length


def window_start(policy: Policy, layer: int, shape: PromptShape) -> int:
    """Return how many tokens the window of ``layer`` stores after the first pass, of a prompt or of a later turn."""
    budget = policy.store(layer, shape)
    if shape.past is None:
        return budget.start(window_tokens(policy, shape))
    arriving = _arriving(policy, layer, shape)
    if budget.turn is not None:
        arriving -= max(0, _entering(policy, shape) - budget.turn)
    return arriving if budget.window is None else min(arriving, budget.window)


def _arriving(policy: Policy, layer: int, shape: PromptShape) -> int:
    """Return how many tokens the window of ``layer`` holds within the first pass of a later turn: what is left, and what is new."""
    past = shape.past
    assert past is not None
    left, size = window_start(policy, layer, past.shape) + past.steps, policy.store(layer, past.shape).window
    return (left if size is None else min(left, size)) + _entering(policy, shape)


def _entering(policy: Policy, shape: PromptShape) -> int:
    """Return how many tokens of the first pass of a later turn belong to the window."""
    return shape.new - (shape.new_image if policy.pins_image else 0)


def _counts(layer: _Layer, t: int, update: bool) -> tuple[int, int, int]:
    """Return the tokens stored, read and scored; plain numbers, because a prediction adds up thousands of them."""
    budget, window, start, core = layer.budget, layer.budget.window, layer.start, layer.core
    if t == 0:
        return budget.image + start, layer.seen, 0
    # a new token is stored and read before another one is evicted, so a step reads one token more than the window
    held = start + t if window is None else min(start + t, window + 1)
    kept = held if window is None else min(held, window)
    image = budget.image if core is None or update else core
    ranked = budget.image if core is not None and update else 0
    return budget.image + kept, held + image, ranked + (held if layer.accumulates else 0)


def layer_cost(policy: Policy, shape: PromptShape, layer: int, t: int) -> Cost:
    """Return the token counts of one layer at step ``t``."""
    return Cost(*_counts(_layers(policy, shape)[layer], t, policy.is_update(t)))


def step_cost(policy: Policy, shape: PromptShape, t: int) -> Cost:
    """Return the token counts of all layers at step ``t``."""
    update = policy.is_update(t)
    stored = read = scored = 0
    for layer, count in _kinds(policy, shape):
        one = _counts(layer, t, update)
        stored, read, scored = stored + count * one[0], read + count * one[1], scored + count * one[2]
    return Cost(stored, read, scored)


def mean_cost(policy: Policy, shape: PromptShape, steps: Iterable[int] | None = None) -> Cost:
    """Return the mean of :func:`step_cost` over ``steps``, by default those of a full answer (whose first token comes from prefill)."""
    chosen = list(range(1, max(2, shape.max_new_tokens))) if steps is None else list(steps)
    return sum((step_cost(policy, shape, t) for t in chosen), Cost(0, 0, 0)).times(1 / len(chosen))


def update_steps(policy: Policy, shape: PromptShape) -> dict[str, list[int]]:
    """Return the core steps and the update steps of a full answer; empty for a policy that selects no core."""
    if all(layer.core is None for layer in _layers(policy, shape)):
        return {}
    steps = range(1, max(2, shape.max_new_tokens))
    kinds = {"core": [t for t in steps if not policy.is_update(t)], "update": [t for t in steps if policy.is_update(t)]}
    return {name: found for name, found in kinds.items() if found}


def stored_after_prefill(policy: Policy, shape: PromptShape) -> int:
    """Return the number of tokens that all layers store after prefill."""
    return int(step_cost(policy, shape, 0).stored)


def allocated_tokens(policy: Policy, shape: PromptShape) -> int:
    """Return the number of slots of all layers, free ones included, which determines the memory of a row's cache."""
    slots = (
        (layer.budget.image + layer.budget.capacity(layer.start, shape.max_new_tokens), count) for layer, count in _kinds(policy, shape)
    )
    return sum(each * count for each, count in slots)


def pruned_from(policy: Policy, shape: PromptShape) -> int | None:
    """Return the first layer whose prompt, in any turn so far, lacks image tokens; None where every layer sees all of them."""
    turns, past = [shape], shape.past
    while past is not None:
        turns.append(past.shape)
        past = past.shape.past
    found = (layer for turn in turns for layer in range(turn.n_layers) if policy.present(layer, turn) < turn.new_image)
    return min(found, default=None)
