"""The other search: optuna's TPE proposes settings of the whole grid at once, P and T included."""

from __future__ import annotations

from typing import Any

from avl.evaluation.tune.grid import Grid, alike
from avl.evaluation.tune.search import Tried, Tuner, best
from avl.policies import AVL

SHORT = "short"
"""Constraint of a trial: by how much it keeps too little; at most 0 where it keeps enough."""


def require_optuna() -> Any:
    """Return optuna.

    Raises:
        ValueError: it is not installed; says how to.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ValueError("--sampler tpe needs optuna, which is not installed: pip install 'optuna>=5.0', or use --sampler grid") from None
    return optuna


def new_study(seed: int = 0) -> Any:
    """Return a study with two objectives, stored and read, both to be small, under the constraint that enough is kept.

    It is kept in memory: the same seed proposes the same settings again, whose answers the cells hold.
    """
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed))


def suggest(trial: Any, grid: Grid) -> AVL:
    """Return the setting that a trial proposes: a place among each parameter's ascending values, off last.

    C and spread above S are lowered to the largest value of the grid that fits, or off where none does.
    """
    values: dict[str, Any] = {}
    for name, given in grid.axes.items():
        ordered = sorted(given, key=lambda value: (value is None, value or 0))
        values[name] = ordered[trial.suggest_int(name, 0, len(ordered) - 1)]
    for name in ("C", "spread"):
        if values.get(name) is not None and values[name] > values["S"]:
            values[name] = max((one for one in grid.axes[name] if one is not None and one <= values["S"]), default=None)
    return alike(AVL(**values), grid.axes.get("K", (3,)))


def propose(tuner: Tuner, grid: Grid, trials: int, study: Any) -> Tried | None:
    """Measure as many proposals of a study; one that was measured before costs nothing.

    Args:
        tuner: measures settings.
        grid: values of each parameter.
        trials: proposals.
        study: asked for each trial and told its outcome, as optuna's.

    Returns:
        The best setting, None where none keeps enough.
    """
    for _ in range(trials):
        trial = study.ask()
        found = tuner.measure(suggest(trial, grid), "tpe")
        trial.set_constraint(SHORT, tuner.keep - (found.upper if found.dropped else found.kept))
        study.tell(trial, [found.stored, found.read])
    return best(list(tuner.tried.values()), tuner.keep)
