"""The search: settings are measured on a task's samples, and dropped as soon as they are known to keep too little."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avl.evaluation.cells import EVERY, Cells, Task
from avl.evaluation.kept import kept_interval, upper_bound
from avl.evaluation.rows import Row
from avl.evaluation.tune.grid import Grid
from avl.policies import AVL, Full, Policy
from avl.policies.equal_memory import TOLERANCE


@dataclass(frozen=True)
class Tried:
    """One setting, measured.

    Attributes:
        policy: the setting.
        stage: in which it was tried: 1 or 2, or "tpe".
        n: samples that it answered.
        score: its mean score on them.
        kept: share of full attention's score on the same samples, 0 to 1 or above.
        interval: of the share kept, 95 %, from a paired bootstrap.
        upper: bound of the share kept that holds at all looks at once, see ``kept.upper_bound``.
        stored: share of a full cache stored, averaged over decode steps.
        read: share of a full cache read, likewise.
        dropped: whether it was dropped after ``n`` samples.
    """

    policy: Policy
    stage: int | str
    n: int
    score: float
    kept: float
    interval: tuple[float, float]
    upper: float
    stored: float
    read: float
    dropped: bool


def compared(policy: Policy, row: Row, full: Row, stage: int | str, keep: float | None = None) -> Tried:
    """Return a policy's row beside full attention's.

    Args:
        policy: that of the row.
        row: of one task.
        full: full attention's, of the same samples.
        stage: what it was measured for.
        keep: share of full attention's score; a setting whose bound is below it is dropped. None drops nothing.

    Raises:
        ValueError: full attention scores nothing, so there is nothing to keep.
    """
    ((task, points),) = row.points.items()
    base = full.points[task]
    if not any(base):
        raise ValueError(f"full attention scores 0 on {len(base)} samples of {task}: there is nothing to keep. Use another task or model")
    upper = upper_bound(points, base)
    return Tried(
        policy=policy,
        stage=stage,
        n=len(points),
        score=row.scores[task],
        kept=row.kept(full)[task],
        interval=kept_interval(points, base),
        upper=upper,
        stored=row.stored,
        read=row.read,
        dropped=keep is not None and upper < keep,
    )


class Tuner:
    """Measures settings on samples of one task, each setting once.

    After every ``every`` samples a setting is dropped where the upper bound of the share that it keeps is below ``keep``. The bound is
    paired with full attention's score of each sample and holds at all looks at once: a setting that keeps enough is ever dropped with a
    probability of at most 5 % (``kept.evidence`` says why). Nothing is random, and what the cells hold is not asked again.

    Args:
        cells: where answers are kept.
        task: what is asked.
        numbers: which of its samples.
        keep: share of full attention's score that a setting has to keep, 0 to 1.
        every: samples between two looks.
        say: takes a line for each setting.
    """

    def __init__(
        self, cells: Cells, task: Task, numbers: Sequence[int], keep: float, every: int = EVERY, say: Callable[[str], None] = print
    ) -> None:
        self._cells, self._task, self._numbers, self._every, self._say = cells, task, numbers, every, say
        self.keep = keep
        self._full: dict[int, Row] = {}
        self.tried: dict[Policy, Tried] = {}

    @property
    def full(self) -> Row:
        """Full attention's row over all samples."""
        return self._full_row(len(self._numbers))

    def _full_row(self, n: int) -> Row:
        if n not in self._full:
            self._full[n] = self._cells.row(Full(), self._task, self._numbers[:n])
        return self._full[n]

    def measure(self, policy: Policy, stage: int | str) -> Tried:
        """Return a setting's result, after as many samples as it took to drop it, or all."""
        if policy not in self.tried:
            size = len(self._numbers)
            for n in [*range(self._every, size, self._every), size]:
                full = self._full_row(n)
                row = self._cells.row(policy, self._task, self._numbers[:n])
                found = compared(policy, row, full, stage, self.keep if n < size else None)
                if found.dropped:
                    break
            self.tried[policy] = found
            self._say(line(found))
        return self.tried[policy]


def line(tried: Tried) -> str:
    """Return a setting as a line of text."""
    low, high = tried.interval
    end = f"dropped at {tried.n}: at most {tried.upper:.1%}" if tried.dropped else f"n {tried.n}"
    return (
        f"{tried.policy.label:46} score {tried.score:6.1%}  kept {tried.kept:6.1%} ({low:.1%} to {high:.1%})"
        f"  stored {tried.stored:6.1%}  read {tried.read:6.1%}  {end}"
    )


def best(tried: Sequence[Tried], keep: float) -> Tried | None:
    """Return the best setting: it stores least, then reads least, among those that answered everything and keep ``keep`` or more.

    What is stored depends a little on how long the answers are, so stored shares within ``equal_memory.TOLERANCE`` of the least count as
    equal. Of equal ones in both, the one that keeps more. None where no setting keeps enough.
    """
    enough = [one for one in tried if not one.dropped and one.kept >= keep]
    if not enough:
        return None
    least = min(one.stored for one in enough)
    return min((one for one in enough if one.stored <= least + TOLERANCE), key=lambda one: (one.read, -one.kept))


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Return the settings, by rising memory, than which no other has a score as high, stores as little and reads as little.

    Settings that were dropped are no part of it: they have not answered everything.
    """
    whole = [one for one in tried if not one.dropped]

    def beaten(one: Tried, by: Tried) -> bool:
        ours, theirs = (-one.score, one.stored, one.read), (-by.score, by.stored, by.read)
        return theirs != ours and all(their <= our for their, our in zip(theirs, ours, strict=True))

    return sorted((one for one in whole if not any(beaten(one, other) for other in whole)), key=lambda one: (one.stored, one.read))


def two_stages(tuner: Tuner, grid: Grid) -> Tried | None:
    """Try a grid as the A-VL paper did: S, C and K first (and spread), then P and T at the best of those.

    Returns:
        The best setting of both stages, the first of which runs without P and T; None where none of them keeps enough, and then there is
        no second stage.
    """
    settings, _, _ = grid.first()
    chosen = best([tuner.measure(policy, 1) for policy in settings], tuner.keep)
    if chosen is None:
        return None
    assert isinstance(chosen.policy, AVL)
    return best([chosen, *(tuner.measure(policy, 2) for policy in grid.second(chosen.policy))], tuner.keep)
