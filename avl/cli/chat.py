"""``avl chat PICTURE "first question" "second question" "/image FILE" "third question" …``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avl.cli.compare import Against, arms
from avl.cli.options import ADAPTIVE, Source, grouped
from avl.policies import AVL

if TYPE_CHECKING:
    from PIL.Image import Image

    from avl.engine.conversation import Conversation
    from avl.trace import Trace


@grouped
def chat(
    picture: Annotated[Path, typer.Argument(help="what the questions are about")],
    questions: Annotated[list[str], typer.Argument(help="the questions, in order; '/image FILE' adds a picture to the next one")],
    source: Source,
    against: Against = None,
    adaptive: AVL = ADAPTIVE,
    more: Annotated[list[Path] | None, typer.Option("--more-pictures", metavar="PICTURE...", help="further pictures")] = None,
    reread: Annotated[bool, typer.Option("--reread/--no-reread", help="also answer with the pictures read again")] = True,
    max_new_tokens: Annotated[int, typer.Option(help="most tokens of each answer")] = 96,
    temperature: Annotated[float, typer.Option(help="of the sampling; 0 for greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="nucleus of the sampling")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="of the sampling")] = None,
    out: Annotated[Path | None, typer.Option(help="keep every turn: FILE.html or FILE.json becomes FILE-1.html, FILE-2.html, …")] = None,
) -> None:
    """Ask several questions about a picture, each of what every policy kept for those before, beside reading the picture again.

    A later question may bring pictures of its own: ``"/image FILE"`` before it.
    """
    if out is not None and out.suffix not in (".html", ".json"):
        raise ValueError(f"--out {out} has no known ending: use .html for a page that plays offline or .json for the trace")
    from avl.cli import tables, terminal
    from avl.engine.conversation import Conversation
    from avl.models.images import data_uri, open_image
    from avl.models.prompt import Question
    from avl.trace import Error, Trace

    asked = [(Question(question), [open_image(file) for file in files]) for question, files in with_pictures(questions)]
    policies = arms(against, adaptive)
    images = [open_image(one) for one in (picture, *(more or []))]
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
    with Conversation(*source.load(), images, policies, max_new_tokens=max_new_tokens, **sampling) as talk:
        for number, (question, new) in enumerate(asked, 1):
            images += new
            run = _turn(talk, question, new, reread and number > 1, Trace(images=[data_uri(image) for image in images]))
            print(f"{tables.turn(run)}\n")
            if out is not None:
                file = out.with_stem(f"{out.stem}-{number}")
                terminal.write(run, file)
                print(f"written to {file}\n")
            if run.of(Error):
                raise typer.Exit(1)


ADD = "/image"


def with_pictures(questions: list[str]) -> list[tuple[str, list[Path]]]:
    """Return the questions, each with the pictures that ``/image FILE`` adds to it.

    Raises:
        ValueError: a picture comes before the first question, or behind the last one, or has no file; one sentence.
    """
    found: list[tuple[str, list[Path]]] = []
    waiting: list[Path] = []
    for text in questions:
        if text.split(maxsplit=1)[:1] != [ADD]:
            found.append((text, waiting))
            waiting = []
            continue
        file = text.strip().removeprefix(ADD).strip()
        if not file:
            raise ValueError(f"{text!r} names no file: write '{ADD} FILE', in quotes, before the question that it belongs to")
        if not found:
            raise ValueError(f"{text!r} comes before the first question: pass more pictures of a first question as --more-pictures")
        waiting.append(Path(file))
    if waiting:
        raise ValueError(f"'{ADD} {waiting[0]}' has no question behind it: ask one")
    return found


def _turn(talk: Conversation, question: str, images: list[Image], reread: bool, run: Trace) -> Trace:
    """Ask one question and return its trace; what went wrong is on stderr too."""
    from avl.trace import Error

    for event in talk.stream(question, images=images, reread=reread):
        run.append(event)
    for error in run.of(Error):
        typer.echo(f"error: {error.message}", err=True)
    return run
