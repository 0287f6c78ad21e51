"""``avl figures --out DIR``: the paper's figures of a model. ``avl figures TRACE.json``: what they show for one recorded run."""

from __future__ import annotations

import dataclasses
import importlib
import json as json_format
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avl.cli.options import Json, Source, grouped, read_file

if TYPE_CHECKING:
    from avl.evaluation.figures.answers import Answer, Asked
    from avl.evaluation.figures.made import Figure
    from avl.evaluation.figures.settings import Task
    from avl.evaluation.figures.written import Written

RECORDED, PICTURED, READING, SCORED = ("1", "3", "4", "5"), ("3", "4", "5"), "8", ("9", "10")
"""Figures of recorded attention; those of them that need pictures; that of times; those of scores on a task."""
FIGURES = (*RECORDED, READING, *SCORED)
DESCRIBE = "Describe this image in detail."
BATCH = 16
"""Samples of a task at a time."""


def _numbers(text: str) -> str:
    wanted = [one.strip() for one in text.split(",")]
    for one in wanted:
        if one not in FIGURES:
            raise typer.BadParameter(f"{one!r} is no figure that can be measured: choose from {','.join(FIGURES)}")
    return ",".join(one for one in FIGURES if one in wanted)


@dataclass(frozen=True)
class Wanted:
    """Which figures of a model, and what is asked for them."""

    figures: Annotated[str, typer.Option(parser=_numbers, metavar="N,N…", help="which of them")] = ",".join(FIGURES)
    images: Annotated[
        list[Path] | None,
        typer.Option(help="pictures to ask about; default: test scenes for the bundled model, the gallery's photographs for others"),
    ] = None
    question: Annotated[
        list[str] | None,
        typer.Option(help=f"asked of every picture, or of a language model; default: the pictures' own, or {DESCRIBE!r}"),
    ] = None
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of each recorded answer", min=1)] = 96
    samples: Annotated[int, typer.Option(help="the bundled model's held-out questions: recorded, and scored for 9 and 10", min=1)] = 150
    seed: Annotated[int, typer.Option(help="of these", min=0)] = 0
    batches: Annotated[list[int] | None, typer.Option(metavar="ROWS...", help="of Figure 8", min=1)] = None
    rounds: Annotated[int, typer.Option(help="of Figure 8: times of each of its arms", min=1)] = 15

    @property
    def numbers(self) -> list[str]:
        """The figures' numbers, in order."""
        return self.figures.split(",")

    def check(self) -> None:
        """Refuse pictures and questions that cannot be used."""
        from avl.models.images import open_image
        from avl.models.prompt import check_text

        for one in self.question or []:
            check_text(one)
        for path in self.images or []:
            open_image(path)

    def asked(self, bundled: bool) -> list[Asked]:
        """Return what is asked: each question of each picture; without questions the pictures' own, or a description."""
        from avl.evaluation.figures.answers import Asked
        from avl.evaluation.tasks import held_out
        from avl.models.images import open_image
        from avl.ui.gallery import examples

        scenes: list[tuple[Any, str, list[str]]]
        if self.images:
            scenes = [(open_image(path), path.name, [DESCRIBE]) for path in self.images]
        elif bundled:
            drawn = enumerate(held_out(self.samples, self.seed))
            scenes = [(sample.image, f"test scene {number}", [sample.question.text]) for number, sample in drawn]
        else:
            scenes = [(open_image(one.path), one.path.name, list(one.questions)) for one in examples(False)]
        if not scenes:
            raise ValueError("the gallery is not installed, so that there is no picture to ask about: pass --images")
        return [Asked(picture, name, question) for picture, name, own in scenes for question in self.question or own]

    def made(self, model: Any, name: str, source: Source) -> dict[str, Any]:
        """Return what all figures have in common: command, model, machine, versions, date, settings."""
        from avl.evaluation.rows import today
        from avl.telemetry import machine_card

        settings = dataclasses.asdict(self) | {"images": [path.name for path in self.images or []]}
        usual = dataclasses.asdict(Wanted()) | {"images": []}
        flags = [f"--{flag.replace('_', '-')} {_words(value)}" for flag, value in settings.items() if value != usual[flag]]
        return {
            "command": " ".join(["avl figures --model", name, *flags, "--out DIR"]),
            "model": _card(model, name, source.revision),
            "machine": machine_card(model.device),
            "version": importlib.import_module("avl").__version__,
            "date": today(),
            "settings": settings,
        }


def _words(value: Any) -> str:
    return " ".join(shlex.quote(str(one)) for one in (value if isinstance(value, list) else [value]))


@grouped
def figures(
    wanted: Wanted,
    source: Source,
    file: Annotated[
        Path | None, typer.Argument(metavar="[TRACE.json]", help="a run recorded with its attention: avl record, compare --scores")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="where the figures go; scores that it has are not measured again")] = None,
    arm: Annotated[int | None, typer.Option(help="with TRACE.json: which run of it; full attention is the one to ask. Default: 0")] = None,
    p: Annotated[
        float | None, typer.Option("-p", help="with TRACE.json: percent of the tokens whose agreement is counted. Default: 50")
    ] = None,
    mass: Annotated[
        float | None, typer.Option(help="with TRACE.json: percent of the attention that the fewest tokens are to hold. Default: 80")
    ] = None,
    json: Json = None,
) -> None:
    """Measure the paper's figures on a model, and say where it agrees with the paper: SVG and data each, an index, one JSON line last.

    1, 3, 4 and 5 are full attention's recorded attention, 8 the time of reading 30 % of a cache, 9 and 10 scores on the bundled model's
    held-out questions. A language model without pictures has 1 and 8. With TRACE.json: tables of that run instead.
    """
    if file is not None:
        of_model = {"--out": out, "--images": wanted.images, "--question": wanted.question, "--batches": wanted.batches}
        _refuse(of_model, "belongs to the figures of a model, and TRACE.json is a recorded run: leave one of them out")
        _one_run(file, 0 if arm is None else arm, 50 if p is None else p, 80 if mass is None else mass, json)
        return
    _refuse({"--arm": arm, "-p": p, "--mass": mass}, "belongs to a recorded run: name its TRACE.json, or leave it out")
    if out is None:
        raise ValueError("there is nowhere to write: pass --out DIR, or a recorded TRACE.json")
    _of_model(wanted, source, out, json)


def _refuse(given: dict[str, Any], why: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} {why}")


def _one_run(file: Path, arm: int, p: float, mass: float, json: Path | None) -> None:
    from rich.console import Console

    from avl.evaluation.figures.summary import summary, tables
    from avl.trace import Trace

    result = summary(Trace.from_json(read_file(file)), arm=arm, p=p, mass=mass)
    console = Console()
    for part in tables(result):
        console.print(part)
    _last(result, json)


def _last(result: dict[str, Any], json: Path | None) -> None:
    line = json_format.dumps(result, ensure_ascii=False)
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(line + "\n", encoding="utf-8")
    print(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _of_model(wanted: Wanted, source: Source, out: Path, json: Path | None) -> None:
    from avl.charts import require_matplotlib
    from avl.evaluation.figures.written import Written, check_folder
    from avl.models.loading import load_language, model_name

    # refuse what cannot be before a model is loaded
    require_matplotlib()
    wanted.check()
    check_folder(out)
    language = None
    if source.device_map is None:
        language = load_language(source.model, device=source.device, dtype=source.dtype, revision=source.revision)
    if language is not None and wanted.images:
        raise ValueError(f"{source.model} takes no pictures: leave out --images")
    model, processor = language or source.load()
    name = model_name(model)
    written = Written(out, wanted.made(model, name, source))
    recorded = {number: make for number, make in _of_answers().items() if number in wanted.numbers}
    if language is not None:
        for number in [one for one in recorded if one in PICTURED]:
            del recorded[number]
            written.skip(number, f"it is about image tokens, and {name} takes no pictures")
    if recorded:
        answers = _recorded(model, processor, language is not None, name == "tiny", wanted)
        for number, make in recorded.items():
            _add(written, number, partial(make, answers))
    if READING in wanted.numbers:
        _add(written, READING, partial(_reading, model, wanted))
    scored = {number: make for number, make in _of_task().items() if number in wanted.numbers}
    if scored and name == "tiny":
        task = _task(model, processor, source, wanted, out / "scores.json")
        for number, make_scored in scored.items():
            _add(written, number, partial(make_scored, task, "the bundled model's held-out questions"))
    else:
        for number in scored:
            written.skip(number, f"it needs a task with right answers, and those at hand are the bundled model's, not {name}'s")
    _show(written)
    _last(written.record(), json)


def _recorded(model: Any, processor: Any, language: bool, bundled: bool, wanted: Wanted) -> list[Answer]:
    """Return recorded answers; ``processor`` is a tokenizer where the model is a language model."""
    from rich.console import Console

    from avl.evaluation.figures.answers import record
    from avl.evaluation.figures.language import QUESTIONS, record_language

    answers: Iterable[Answer]
    if language:
        questions = wanted.question or list(QUESTIONS)
        count, answers = len(questions), record_language(model, processor, questions, wanted.max_new_tokens)
    else:
        asked = wanted.asked(bundled)
        count, answers = len(asked), record(model, processor, asked, wanted.max_new_tokens)
    found = []
    with Console(stderr=True).status("recording …", spinner="line") as status:
        for answer in answers:
            found.append(answer)
            status.update(f"recorded {len(found)} of {count} answers")
    _say(f"{len(found)} answers recorded")
    return found


def _of_answers() -> dict[str, Callable[[list[Answer]], Figure]]:
    from avl.evaluation.figures.concordance import figure_4, figure_5
    from avl.evaluation.figures.modalities import figure_1
    from avl.evaluation.figures.sparsity import figure_3

    return {"1": figure_1, "3": figure_3, "4": figure_4, "5": figure_5}


def _of_task() -> dict[str, Callable[[Task, str], Figure]]:
    from avl.evaluation.figures.settings import figure_9, figure_10

    return {"9": figure_9, "10": figure_10}


def _reading(model: Any, wanted: Wanted) -> Figure:
    from avl.evaluation.figures import reading

    reading.check_kernel(model.device, model.dtype)
    timed = reading.measure(model.device, model.dtype, wanted.batches or (), wanted.rounds, say=_say)
    return reading.figure_8(timed, model.device, model.dtype)


def _task(model: Any, processor: Any, source: Source, wanted: Wanted, file: Path) -> Task:
    """Return the bundled model's held-out questions as a task; its rows are in ``file``."""
    from avl.attention.attachment import attach
    from avl.evaluation.evaluate import Measured
    from avl.evaluation.rows import Rows
    from avl.evaluation.tasks import held_out
    from avl.telemetry import machine_card

    attach(model)
    made = {"model": source.model, "revision": source.revision, "samples": wanted.samples, "seed": wanted.seed, "batch": BATCH}
    made |= {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch.")}
    measured = Measured.single(model, processor, held_out(wanted.samples, wanted.seed), Rows(made, machine_card(), file), BATCH)

    def row(policy: Any) -> Any:
        found = measured.row(policy)
        _say(f"{found.policy}: " + ", ".join(f"{task} {value:.1%}" for task, value in found.scores.items()))
        return found

    return row


def _add(written: Written, number: str, make: Callable[[], Figure]) -> None:
    """Make a figure and write it; where it cannot be made, say why."""
    from avl.evaluation.figures.made import CannotMakeError

    try:
        written.add(make())
    except CannotMakeError as error:
        written.skip(number, str(error))
        _say(f"Figure {number} is left out: {error}")


def _card(model: Any, name: str, revision: str | None) -> dict[str, Any]:
    from avl.models.families import describe

    facts = describe(model)
    return {
        "name": name,
        "revision": revision,
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "layers": facts.layers,
        "heads": facts.heads,
        "kv_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
    }


def _show(written: Written) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(show_lines=True)
    for heading in ("figure", "the paper", "here", "agrees"):
        shown.add_column(heading)
    for one in written.statements:
        shown.add_row(one.figure, one.claim, one.here, one.agrees + (f": {one.reason}" if one.reason else ""))
    console = Console()
    console.print(shown)
    for number, reason in written.skipped.items():
        console.print(f"Figure {number} is left out: {reason}.")
