"""``avl bench``."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from avl._files import write_whole
from avl._paths import ASSETS
from avl.cli.options import Json, Source, grouped, policy_names, read_file
from avl.models.checkpoints import RANDOM_WEIGHTS
from avl.policies import AVL, POLICIES

OTHERS = [policy for policy in POLICIES.values() if policy is not AVL]


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.split("x"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT, such as 1024x768", param_hint="--picture") from None
    return width, height


@grouped
def bench(
    source: Source,
    random_weights: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"full-size random model instead: {', '.join(RANDOM_WEIGHTS)}")
    ] = None,
    width_of: Annotated[
        str | None, typer.Option(metavar="NAME", help="few layers of that random model instead, rows and threads in turns; for a CPU")
    ] = None,
    layers: Annotated[int, typer.Option(help="layers with --width-of")] = 1,
    scale: Annotated[float, typer.Option(help="shrink the random model (tests)")] = 1.0,
    picture: Annotated[str | None, typer.Option(metavar="WxH", help="picture of the random model; default: the family's usual one")] = None,
    image: Annotated[Path, typer.Option(help="picture of a loaded model", show_default=False)] = ASSETS / "gallery" / "scene-4.png",
    question: Annotated[str, typer.Option(help="question to a loaded model")] = "Describe the picture.",
    batch: Annotated[list[int] | None, typer.Option(metavar="ROWS...", help="default: 1 8 16 32 64 on a GPU, 1 4 on a CPU")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="default: 128; 32 with --quick")] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY...",
            help="A-VL with the paper's settings: avl, evict (without a core), prune (with P); others with their defaults: "
            f"{policy_names(OTHERS)}; with parameters: avl:S=30,C=20,K=3. Default: full evict avl",
        ),
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="default: 5; 2 with --quick")] = None,
    decode: Annotated[Literal["auto", "eager", "graphs"], typer.Option(help="how steps run; auto: CUDA graphs on a GPU")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch; default: torch's own choice")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer batches, tokens and repeats")] = False,
    no_references: Annotated[bool, typer.Option("--no-references", help="leave out transformers' own generate")] = False,
    no_largest: Annotated[bool, typer.Option("--no-largest", help="leave out the largest batch that fits")] = False,
    json: Json = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="also draw the result into DIR")] = None,
    render: Annotated[
        list[Path] | None, typer.Option(metavar="FILE...", help="README RESULT…: only put the results' tables into the README")
    ] = None,
) -> None:
    """Measure time, memory and roofline of policies in one engine.

    Prints what it runs on, the roofline card, the tables, and one JSON line last.
    """
    if render:
        from avl.bench import report

        readme, *files = render
        text = read_file(readme).decode("utf-8", errors="surrogateescape")
        results = [_result(file) for file in files]
        readme.write_text(report.render(text, results), encoding="utf-8", errors="surrogateescape")
        return
    if width_of is not None:
        _widths(width_of, layers, batch or [1, 4, 8, 16], threads, repeats or 5, scale, not no_references, json)
        return
    size = None if picture is None else _size(picture)
    new_tokens = new_tokens or (32 if quick else 128)
    repeats = (2 if quick else 5) if repeats is None else repeats
    if new_tokens < 4 or repeats < 1 or min(batch or [1]) < 1:
        raise ValueError("--new-tokens is at least 4 (an update step and a core step), --repeats and --batch at least 1")
    if random_weights is not None and source.device_map is not None:
        raise ValueError("--device-map spreads a checkpoint, and random weights are made on one device: pass --device, or --model")
    import torch

    from avl.bench import benchmark, report
    from avl.charts import require_matplotlib

    if plots:
        require_matplotlib()
    if threads:
        torch.set_num_threads(threads)
    if random_weights is None:
        model, processor = source.load()
        subject = benchmark.loaded(model, processor, image, question, new_tokens, decode)
    else:
        subject = benchmark.made(
            *(random_weights, new_tokens),
            scale=scale,
            picture=size,
            device=source.device,
            dtype=source.dtype,
            decode=decode,
        )
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
    if (note := benchmark.paper_note(subject)) is not None:
        print(note, file=sys.stderr)
    result = benchmark.benchmark(
        subject,
        benchmark.parse_arms(policies or ["full", "evict", "avl"], subject),
        batch or benchmark.usual_batches(subject.device, quick),
        repeats,
        quick=quick,
        references=not no_references,
        largest_batch=not no_largest,
        keep=lambda so_far: _keep(so_far, json),
    )
    print(report.tables(result))
    if plots:
        from avl.bench.plots import draw

        for file in draw(result, plots):
            print(f"drew {file}", file=sys.stderr)
    print(json_format.dumps(result))


def _widths(
    name: str, layers: int, batches: list[int], threads: int | None, rounds: int, scale: float, references: bool, json: Path | None
) -> None:
    import torch

    from avl.bench import report, widths

    counts = [threads] if threads else sorted({1, torch.get_num_threads()})
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
    result = widths.measure(
        name, layers, batches, counts, rounds, scale=scale, references=references, keep=lambda so_far: _keep(so_far, json)
    )
    print(report.widths(result))
    print(json_format.dumps(result))


def _keep(result: dict[str, Any], file: Path | None) -> None:
    """Write a result whole, so that whatever ends the run leaves the last one."""
    if file is not None:
        write_whole(file, json_format.dumps(result, indent=1) + "\n")


def _result(file: Path) -> dict[str, Any]:
    """Return what ``--json`` wrote. Raises ValueError where the file holds anything else."""
    from avl.bench import report

    try:
        result: dict[str, Any] = json_format.loads(read_file(file))
        report.whole(result)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{file} is not a result that avl bench --json wrote ({type(error).__name__}: {error})") from None
    return result
