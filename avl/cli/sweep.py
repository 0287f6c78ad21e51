"""``avl sweep IMAGE "question"``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avl.cli.options import Json, Source, grouped, policy_names, policy_spec
from avl.policies import parse_policy
from avl.policies.plan import parse_over

if TYPE_CHECKING:
    from avl.trace.sweeps import Sweep, SweepPoint

MOVED = "it takes a picture and a question: avl sweep IMAGE QUESTION --over S=5:60:5; scores over S on the bundled data are avl eval-sweep"
"""What to say to arguments of the command that had this name before."""
FORMER = ("--samples", "--shares", "--spreads", "--others", "--out")


def moved(arguments: list[str]) -> bool:
    """Return whether these are arguments of the command that had this name before."""
    return not arguments or any(argument.partition("=")[0] in FORMER for argument in arguments)


@grouped
def sweep(
    image: Annotated[list[Path], typer.Argument(help="one picture, or several")],
    question: Annotated[str, typer.Argument(help="a question about them")],
    source: Source,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RANGE...", help="one parameter, or two for a grid: S=5:60:5 C=10,20,off. Default: S=5:60:5"),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(parser=policy_spec, metavar="POLICY", help=f"what is varied: {policy_names()}; other parameters hold: avl:S=45,C=30"),
    ] = "avl:S=45,C=30,K=3",
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of each answer")] = 96,
    batch: Annotated[int, typer.Option(help="the same request so many times at once")] = 1,
    repeats: Annotated[int, typer.Option(help="run each point so many times: times are medians")] = 1,
    temperature: Annotated[float, typer.Option(help="of the sampling; 0 for greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="nucleus of the sampling")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="of the sampling; drawn once for all points where there is none")] = None,
    json: Json = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="also write a line for each point to FILE")] = None,
) -> None:
    """Vary a policy on one question: which setting still gives full attention's answer, and what it stores, reads and takes.

    Prints full attention's answer, a line for each point, with its answer where that differs, and a verdict.
    """
    asked, base = parse_over(over or ["S=5:60:5"]), parse_policy(policy)
    from rich.console import Console

    from avl.engine.sweep import sweep as sweeping
    from avl.engine.sweep import sweep_request
    from avl.models.images import open_image
    from avl.models.prompt import Question
    from avl.policies.plan import plan

    # refuse what cannot be before a model is loaded
    pictures = [open_image(one) for one in image]
    given = {"max_new_tokens": max_new_tokens, "batch": batch, "repeats": repeats, "temperature": temperature, "top_p": top_p, "seed": seed}
    sweep_request(pictures, question, plan(base, asked), **given)
    model, processor = source.load()
    found = sweeping(
        *(model, processor, pictures, Question(question), asked, base, max_new_tokens),
        batch=batch,
        repeats=repeats,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    console = Console(stderr=True)
    with console.status("full attention …", spinner="line") as status:
        for row in found:
            number = 0 if row.point is None else row.point + 1
            status.update(f"{number} of {len(found.result.start.points)} points, newest {row.label}")
    for file, text in ((json, found.result.to_json), (csv, found.result.to_csv)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text(), encoding="utf-8")
    print(table(found.result))


def table(found: Sweep) -> str:
    """Return a sweep as text: what it ran on, full attention's answer, a line for each point, what was skipped, and the verdict."""
    start, rows = found.start, found.rows
    full = rows[0]
    hardware = start.machine["gpu"] or start.machine["cpu"]
    batch = f" · batch {start.batch}" if start.batch > 1 else ""
    names = [axis.name for axis in start.axes]
    width = [max(len(name), *(len(_value(row, name)) for row in rows)) for name in names]
    kept = " ".join(f"{name}={value:g}" for name, value in start.policy.items() if isinstance(value, int | float))
    lines = [
        f"{start.model['name']} · {start.model['dtype']} · {hardware} · {start.n_image} image tokens{batch}",
        f"{start.title}{f' with {kept}' if kept else ''}, over {' and '.join(names)}; {_runs(start.repeats)}",
        *("", "Full attention:", f"  {full.text}", ""),
    ]
    head = "  ".join(name.rjust(size) for name, size in zip(names, width, strict=True))
    lines.append(f"{head}  {'same':>4}{'alike':>10}{'KV stored':>18}{'KV read/step':>18}{'first token':>13}{'ms/token':>10}")
    for row in rows:
        values = "  ".join(_value(row, name).rjust(size) for name, size in zip(names, width, strict=True))
        step = "–" if row.median_ms is None else f"{row.median_ms:.2f}"
        alike = f"{row.identical}/{len(full.tokens)}"
        same = "full" if row.point is None else "yes" if row.same else "no"
        bytes_ = (
            f"{count / 2**20:.2f} MiB {share:>4.0%}"
            for count, share in ((row.stored_bytes, row.stored_share), (row.read_bytes, row.read_share))
        )
        lines.append(f"{values}  {same:>4}{alike:>10}{''.join(f'{text:>18}' for text in bytes_)}{row.ttft_ms:>10.0f} ms{step:>10}")
        if not row.same:
            lines.append(f"{'':>{len(head)}}    {row.text}")
        lines += [f"{'':>{len(head)}}    ({note})" for note in row.notes]
    for skipped in start.skipped:
        named = ", ".join(f"{name}={'off' if value is None else f'{value:g}'}" for name, value in skipped.values.items())
        lines.append(f"skipped {named}: {skipped.reason}")
    end = found.end
    return "\n".join([*lines, "", *([end.text] if end else [])])


def _value(row: SweepPoint, name: str) -> str:
    if row.point is None:
        return ""
    value = row.values[name]
    return "off" if value is None else f"{value:g}"


def _runs(repeats: int) -> str:
    return "each point ran once, so small differences of times are noise" if repeats == 1 else f"times are medians of {repeats} runs"
