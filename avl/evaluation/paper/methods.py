"""The rows of Tables 2 and 3: policies, and what the paper printed of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from avl.evaluation.paper.published import AVERAGES_2, BENCHMARKS, FASTV, FULL, H2O, HALF, OURS, OURS_IS, TABLE_2, TABLE_3
from avl.policies import AVL, FastV, Full, Policy, PromptShape, parse_policy
from avl.policies import H2O as HeavyHitter
from avl.policies.presets import NEUTRAL
from avl.policies.presets import TABLE_3 as SETTINGS

TABLES = ("table2", "table3")


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        label: what it is called.
        policy: of tasks that ``by_task`` does not name.
        by_task: task -> its own policy.
        share: of a full cache (0 to 1) that the policy's budget is set to for each task; None leaves it.
        paper: task -> the score that the paper printed.
        average: of the paper's five tasks, as printed.
        paper_stored: as printed, in % of a full cache.
        paper_read: likewise.
    """

    label: str
    policy: Policy
    by_task: Mapping[str, Policy] = field(default_factory=dict)
    share: float | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
    average: float | None = None
    paper_stored: int | None = None
    paper_read: int | None = None

    def of(self, task: str, shape: PromptShape) -> Policy:
        """Return the policy for a task whose prompts have sizes like ``shape``.

        Raises:
            ValueError: the policy cannot store ``share``.
        """
        chosen = self.by_task.get(task, self.policy)
        if self.share is None:
            return chosen
        return chosen.at_stored(self.share, shape.n_image, shape.n_text, shape.n_layers)


def methods(asked: Sequence[str], model: str | None) -> list[Method]:
    """Return the rows to measure, full attention first.

    Args:
        asked: ``table2``, ``table3``, or policies as :func:`avl.policies.parse_policy` takes them.
        model: short name of one of the paper's models; None for any other, which the paper has no numbers of.

    Raises:
        ValueError: a policy or parameter is unknown or out of range.
    """
    found: list[Method] = []
    for one in asked:
        if one == "table2":
            found += table_2(model)
        elif one == "table3":
            found += table_3(model)
        else:
            policy = parse_policy(one)
            found.append(Method(policy.label, policy))
    rows = [row for row in found if not isinstance(row.policy, Full)]
    full = next((row for row in found if isinstance(row.policy, Full)), Method(FULL, Full()))
    return [full, *(row for number, row in enumerate(rows) if row not in rows[:number])]


def table_2(model: str | None) -> list[Method]:
    """Return Table 2's rows: full attention, FastV and H2O at half of a full cache, and the paper's method."""
    names, places = list(BENCHMARKS), OURS_IS[model or NEUTRAL]
    printed, averages = TABLE_2.get(model or "", {}), AVERAGES_2.get(model or "", {})
    settings = _settings(model)
    ours = {name: settings[place] for name, place in zip(names, places, strict=True)}

    def row(label: str, policy: Policy, by_task: Mapping[str, Policy] | None = None, share: float | None = None) -> Method:
        paper = dict(zip(names, printed.get(label, ()), strict=False))
        return Method(label, policy, by_task or {}, share, paper, averages.get(label))

    return [
        row(FULL, Full()),
        row(FASTV, FastV(), share=HALF),
        row(H2O, HeavyHitter(recent=75), share=HALF),
        row(OURS, settings[max(places)], ours),
    ]


def table_3(model: str | None) -> list[Method]:
    """Return Table 3's rows: full attention, and each setting of the model."""
    names, policies = list(BENCHMARKS)[:4], [Full(), *_settings(model)]
    if model is None:
        return [Method(policy.label, policy) for policy in policies]
    return [
        Method(
            FULL if isinstance(policy, Full) else policy.label,
            policy,
            paper=dict(zip(names, printed.scores, strict=True)),
            paper_stored=printed.stored,
            paper_read=printed.read,
        )
        for policy, printed in zip(policies, TABLE_3[model], strict=True)
    ]


def _settings(model: str | None) -> list[AVL]:
    """Return the settings of Table 3 for a model; those of :data:`NEUTRAL` where the paper has none."""
    rows = next(rows for name, _, rows in SETTINGS if name == (model or NEUTRAL))
    return [AVL(S=S, C=C, P=P, T=T) if K is None else AVL(S=S, C=C, K=K, P=P, T=T) for S, C, K, P, T in rows]
