"""Equal memory: budgets with which policies store, on average over the same decode steps, the same share of a full cache.

By the cost model, so nothing runs. Shares of the prompt would not do: SnapKV's cache grows with the answer, H2O's does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from avl.policies.avl import AVL
from avl.policies.base import Policy, PromptShape, nearest_budget, number, shown
from avl.policies.cost import step_cost

TOLERANCE = 0.003
"""Stored shares closer than this count as equal. A token more or less per layer of LLaVA's 576 is 0.0017."""

Workload = dict[PromptShape, Counter[int]]
"""Shape of a prompt -> decode step -> the rows of that shape that take the step."""


def answer_steps(shape: PromptShape) -> Workload:
    """Return the decode steps of one longest answer to a prompt of ``shape``."""
    return {shape: Counter(range(1, max(2, shape.max_new_tokens)))}


def stored_share(policy: Policy, steps: Workload) -> float:
    """Return the share of a full cache (0 to 1) that the policy stores, averaged over ``steps``."""
    stored = full = 0.0
    for shape, counts in steps.items():
        for step, rows in counts.items():
            stored += rows * step_cost(policy, shape, step).stored
            full += rows * shape.n_layers * (shape.length + step)
    return stored / full


def at_share(policy: Policy, share: float, steps: Workload) -> Policy:
    """Return the policy with its budget set to store ``share`` (0 to 1) of a full cache on average over ``steps``.

    Raises:
        ValueError: it cannot come within :data:`TOLERANCE`, or one token per layer of a short prompt; says what it can store.
    """
    knob = policy.budget
    if knob is None:
        raise ValueError(f"{policy.title} stores everything: it has no memory to set")

    def stored(thousandths: int) -> float:
        return stored_share(policy.with_budget(thousandths), steps)

    def distance(one: Policy) -> float:
        return abs(stored_share(one, steps) - share)

    tolerance = max(TOLERANCE, 1 / min(shape.length + 1 for shape in steps))
    best = policy.with_budget(nearest_budget(stored, share))
    if distance(best) > tolerance:
        least, most = (stored(value) for value in (1, 100_000))
        raise ValueError(f"{policy.title} cannot store {share:.1%}: with {knob} from 0.001 to 100 it stores {least:.1%} to {most:.1%}")
    enough = max(distance(best), TOLERANCE / 10)  # a round number that stores next to the same reads better
    exact = getattr(best, knob)
    rounded = (policy.with_budget(round(1000 * round(exact, digits))) for digits in range(3) if round(exact, digits) > 0)
    return next((one for one in rounded if distance(one) <= enough), best)


def at_whole_percent(policy: Policy, share: float, steps: Workload) -> Policy:
    """Return the same with a budget of whole percent, as a slider sets it: the one that stores the nearest to ``share``.

    Raises:
        ValueError: as :func:`at_share`.
    """
    fitted = at_share(policy, share, steps)
    assert fitted.budget is not None
    below = int(getattr(fitted, fitted.budget))
    near = [fitted.with_budget(1000 * percent) for percent in (below, below + 1) if 1 <= percent <= 100]
    return min(near, key=lambda one: abs(stored_share(one, steps) - share))


def sets_memory(policies: Iterable[Policy]) -> Policy:
    """Return the policy whose memory the others get: the first A-VL, else the first with a budget.

    Raises:
        ValueError: none has a budget.
    """
    budgeted = [policy for policy in policies if policy.budget is not None]
    if not budgeted:
        raise ValueError("full attention stores everything: choose a policy that stores less, and the others get its memory")
    return next((policy for policy in budgeted if isinstance(policy, AVL)), budgeted[0])


@dataclass(frozen=True)
class EqualMemory:
    """Policies that store the same.

    Attributes:
        share: of a full cache that each stores, 0 to 1, mean over the decode steps of the longest answer.
        policies: in the order of the registry, full attention (which stores everything) included.
        left_out: a sentence for each policy that is missing, because it cannot store that share or does not fit the model.
    """

    share: float
    policies: tuple[Policy, ...]
    left_out: tuple[str, ...]


def at_equal_memory(to: Policy | float, shape: PromptShape, policies: Iterable[Policy] | None = None) -> EqualMemory:
    """Set policies to store what one of them stores, on average over the decode steps of the longest answer.

    Args:
        to: the policy whose memory the others get, and which stays as it is; or a share of a full cache, above 0 and at most 1.
        shape: of the prompt, see ``avl.prompt_shape``.
        policies: to set, their other parameters as they are; None for one of every kind, with the initial values of the page's sliders.
            A policy without a budget, such as full attention, stays as it is.

    Raises:
        ValueError: ``to`` is no policy with a budget and no such share, or a policy does not fit the model.
    """
    from avl.policies import POLICIES, parse_policy  # which import this file

    if isinstance(to, Policy):
        if to.budget is None:
            raise ValueError(f"{to.title} stores everything, and only it does: pass a policy with a budget, or a share")
        to.check_model(shape.n_layers)
        steps = answer_steps(shape)
        share = stored_share(to, steps)
    else:
        found = number(to)
        if found is None or not 0 < found <= 1:
            raise ValueError(f"to={shown(to)} is neither a policy nor a share above 0 and at most 1")
        steps, share = answer_steps(shape), float(found)
    if policies is None:
        policies = [to if isinstance(to, Policy) and name == to.name else parse_policy(name) for name in POLICIES]
    chosen: list[Policy] = []
    left_out: list[str] = []
    for policy in policies:
        if policy == to or policy.budget is None:
            chosen.append(policy)
            continue
        try:
            policy.check_model(shape.n_layers)
            chosen.append(at_share(policy, share, steps))
        except ValueError as error:
            left_out.append(str(error))
    return EqualMemory(share, tuple(chosen), tuple(left_out))
