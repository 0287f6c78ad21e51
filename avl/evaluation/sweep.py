"""``avl sweep``: answers against memory. A-VL's S from 100 down to 5, the other policies at the memory that it then uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avl import charts
from avl.evaluation.evaluate import Result, at_equal_memory, evaluate, text_tokens
from avl.evaluation.tasks import TASKS
from avl.models.families import describe, family_of
from avl.policies import AVL, POLICIES, Full

SHARES = (100, 80, 60, 45, 30, 20, 10, 5)
TITLES = {"qa": "short answers", "read": "reading (ANLS)", "describe": "descriptions (facts right)"}


def sweep(model, processor, samples, shares: Sequence[float], others: Sequence[str], batch: int = 16) -> dict[str, list[Result]]:
    """Evaluate A-VL with C = 2/3 S, K=3 at each S, and the other policies at the share of the cache that A-VL stored there.

    Returns:
        policy name -> one result for each share that it could be set to.
    """
    full = evaluate(model, processor, samples, Full(), batch=batch)
    out: dict[str, list[Result]] = {"Full": [full], "AVL": [], **{name: [] for name in others}}
    text, layers = text_tokens(processor, samples), describe(model).layers
    image = family_of(model.config).image_tokens(model.config, samples[0].image.size)
    for share in shares:
        core = None if share == 100 else round(share * 2 / 3, 2)
        result = evaluate(model, processor, samples, AVL(S=share, C=core, K=3), full, batch)
        out["AVL"].append(result)
        _say("AVL", result)
        for name in others:
            for policy in at_equal_memory(min(result.stored, 1.0), text, image, layers, [name]):
                out[name].append(evaluate(model, processor, samples, policy, full, batch))
                _say(name, out[name][-1])
    return out


def _say(name: str, result: Result) -> None:
    scores = "  ".join(f"{task} {value:6.1%}" for task, value in result.scores.items())
    print(f"{name:13} stored {result.stored:6.1%} read {result.read:6.1%}  {scores}", flush=True)


def plot(results: dict[str, list[Result]], path: Path) -> None:
    """Draw one panel a task, share of the full cache stored against score, as a PNG."""
    with charts.figure(13.2, 4.4, len(TASKS)) as (figure, panels):
        for panel, task in zip(panels, TASKS, strict=True):
            panel.set(title=TITLES[task], xlim=(0, 102), ylim=(0, 102), xlabel="stored share of the full cache in %")
            full = results["Full"][0].scores.get(task, 0.0)
            panel.axhline(100 * full, color=charts.INK, linestyle="--", linewidth=1.5, label="full attention")
            for place, (name, policy) in enumerate(POLICIES.items()):
                points = [(100 * one.stored, 100 * one.scores[task]) for one in results.get(name, []) if task in one.scores]
                if points and name != "Full":
                    panel.plot(*zip(*points, strict=True), **charts.style(place), label=policy.title)
        panels[0].set_ylabel("score in %")
        charts.legend(figure, panels[0])
        charts.save(figure, path)
