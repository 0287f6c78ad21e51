"""Attention and agreement over length as one record, a table and a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avl import charts
from avl.evaluation.lengths.agreement import Along
from avl.evaluation.lengths.attention import LongAnswer
from avl.evaluation.lengths.bins import bins, means
from avl.evaluation.lengths.documents import Behind

HOLDS = 0.8
"""Continuity holds where concordance exceeds chance at the end of an answer by at least this much of what it does at the beginning."""

LEAST = 0.05
"""Concordance less above chance than this is none."""


def record(made: dict[str, Any], answer: LongAnswer, policies: Sequence[Along], documents: Sequence[Behind] = ()) -> dict[str, Any]:
    """Return everything as plain values: means by bin of decode steps; a bin without values has None.

    Args:
        made: model, machine, date and what was asked.
        answer: the answer and its attention.
        policies: along it.
        documents: scores behind documents, full attention's first at every length.
    """
    full = {one.document: one for one in reversed(documents)}  # the first of each length stays
    whole = {
        **made,
        "bins": bins(len(answer.image)),
        "attention": answer.to_dict(),
        "continuity": continuity(answer),
        "policies": [one.to_dict() for one in policies],
        "documents": [one.to_dict(full[one.document]) for one in documents],
    }
    return _finite(whole)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def continuity(answer: LongAnswer) -> dict[str, Any]:
    """Return whether the important image tokens change as slowly at the end of the answer as at its beginning, and the rule.

    ``holds`` is None where they are about as far as chance apart from the beginning, so that there is nothing to hold.
    """
    chance = answer.p / 100
    lag = max((name for name in answer.concordance if name != "prompt"), key=int)
    by_bin = means(answer.concordance[lag])
    first, last = by_bin[0], by_bin[-1]
    rule = f"concordance with {lag} steps before, less {chance:.0%} of chance: in the last bin at least {HOLDS:.0%} of the first"
    holds = bool(last - chance >= HOLDS * (first - chance)) if first - chance >= LEAST else None
    return {"rule": rule, "chance": chance, "first": first, "last": last, "holds": holds}


def table(found: dict[str, Any]) -> str:
    """Return a :func:`record` as lines of text: a column for each bin."""
    heads = [f"{first}-{end - 1}" if end - first > 1 else str(first) for first, end in found["bins"]]
    attention = found["attention"]
    rows: list[tuple[str, list[float | None] | None]] = [(f"image: top {attention['p']:g} % shared with", None)]
    rows += [("  the prompt's" if back == "prompt" else f"  {back} before", values) for back, values in attention["concordance"].items()]
    rows += [("attention on the image", attention["image"]), ("attention on text, by age", None)]
    rows += [(f"  {name}", values) for name, values in attention["text"].items()]
    for one in found["policies"]:
        rows += [(one["policy"], None), *((f"  {name}", one[name]) for name in ("agreement", "stored", "read"))]
        rows.append(("  perplexity, of full", one["perplexity, of full"]))
    lines = [f"{'decode step':34}" + "".join(f"{head:>11}" for head in heads)]
    for name, values in rows:
        cells = [] if values is None else ["–" if one is None else f"{one:.3f}" if "perplexity" in name else f"{one:.1%}" for one in values]
        lines.append(f"{name:34}" + "".join(f"{cell:>11}" for cell in cells))
    said = found["continuity"]
    holds = "holds" if said["holds"] else "cannot be told from chance" if said["holds"] is None else "does not hold"
    lines += ["", f"Continuity {holds}: {said['first']:.1%}, at the end {said['last']:.1%} ({said['rule']})."]
    if found["documents"]:
        lines += ["", f"{'behind a document of … tokens':48}{'tokens':>8}{'score':>8}{'difference':>18}{'stored':>9}{'read':>8}"]
    for one in found["documents"]:
        low, high = (f"{100 * end:+.1f}" for end in one["difference"])
        shares = f"{one['stored']:9.1%}{one['read']:8.1%}"
        lines.append(f"{one['policy']:48}{one['document']:8}{one['score']:8.1%}{f'{low} to {high}':>18}{shares}")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw concordance, attention on text by age and agreement over the decode step, as a PNG."""
    places = [math.sqrt(first * (end - 1)) for first, end in found["bins"]]
    attention = found["attention"]
    with charts.figure(15, 5, 3) as (figure, panels):
        for place, (back, values) in enumerate(attention["concordance"].items()):
            label = "with the prompt's" if back == "prompt" else f"with {back} before"
            panels[0].plot(places, _percent(values), **charts.style(place), label=label)
        panels[0].set(title=f"top {attention['p']:g} % of the image tokens shared, in %", ylim=(0, 101))
        for place, (name, values) in enumerate(attention["text"].items()):
            panels[1].plot(places, _percent(values), **charts.style(place), label=name)
        panels[1].set(title="attention on text by age in tokens, in %", ylim=(0, 101))
        for place, one in enumerate(found["policies"]):
            panels[2].plot(places, _percent(one["agreement"]), **charts.style(place), label=one["policy"])
        panels[2].set(title="likeliest token is full attention's, in %", ylim=(0, 101))
        for panel in panels:
            panel.set(xscale="log", xlabel="decode step")
            panel.set_xticks(places, [str(first) for first, _ in found["bins"]])
            panel.minorticks_off()
            panel.legend(frameon=False, fontsize="small", loc="upper left" if panel is panels[1] else "lower left")
        charts.save(figure, path)


def _percent(values: list[float | None]) -> list[float]:
    return [math.nan if one is None else 100 * one for one in values]
