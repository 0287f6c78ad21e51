"""What the page does when something is pressed: runs, examples and scenes, predictions, downloads."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from avl import trace
from avl.engine.request import GenerationRequest
from avl.models import images as pictures
from avl.ui import settings as controls
from avl.ui.errors import Busy, kind, sentence
from avl.ui.following import Following
from avl.ui.gallery import Example
from avl.ui.limits import Limits
from avl.ui.queue import ThreadTransport
from avl.ui.runs import KeptRun, Runs, thumbnail
from avl.ui.settings import About
from avl.ui.turns import Asked
from avl.ui.visitors import visitor_of

log = logging.getLogger(__name__)

Scene = Callable[[int], Any]
"""Draw the scene of a seed: an object with ``image`` and ``questions`` (each with ``text`` and ``answer``)."""

_numbers = itertools.count(1)


def message(**fields: Any) -> dict[str, Any]:
    """Return one value for the player. The number makes every value differ, or the front end would skip a repeated one."""
    return {"seq": next(_numbers), **fields}


@dataclass(frozen=True)
class Shown:
    """What is known about the pictures that the page shows: questions that suit them, and how to tell them from others.

    Attributes:
        questions: to suggest.
        answers: the right answer of a question, where there is one.
        link: names the picture in an address; empty where it cannot, as for an upload.
        name: for people.
        id: differs between any two choices of pictures.
    """

    questions: list[str]
    answers: dict[str, str]
    link: str = ""
    name: str = ""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(6))

    @classmethod
    def of(cls, known: Any) -> Shown:
        """Return what a visitor's state holds, or nothing known where it holds something else."""
        try:
            return cls(**known)
        except TypeError:
            return cls([], {})

    def values(self, prompt: dict[str, Any]) -> list[Any]:
        """Return the values of the strip and of the visitor's state. ``prompt`` is added to the former."""
        return [message(questions=self.questions, link=self.link, id=self.id, **prompt), asdict(self)]


def spread(questions: list[tuple[str, str]], most: int = 6) -> list[tuple[str, str]]:
    """Return a few of a scene's many questions, of different kinds: the first ones and an even pick of the rest."""
    if len(questions) <= most:
        return questions
    rest = questions[3:]
    return questions[:3] + [rest[i * len(rest) // (most - 3)] for i in range(most - 3)]


def buttons(running: bool) -> list[gr.Button]:
    """Run and Stop, of which one can be pressed."""
    return [gr.Button(interactive=not running), gr.Button(interactive=running)]


class Stream:
    """One run as the values that a page receives: batches of events, each sent once, and at the end how many there were.

    Events travel as the text of a JSON list. Gradio walks through every value several times on both sides and sends what differs from the
    value before, field by field; a text is one thing to all of these.

    Args:
        run: what is received.
        first: number of the event to begin with.
    """

    def __init__(self, run: KeptRun, first: int = 0) -> None:
        self._run, self._next = run, first
        self._pictures_sent = False

    def batch(self) -> dict[str, Any]:
        """Return the next value: ``events`` that are new, and the number of those before them; the first one has the pictures too."""
        run, first = self._run, self._next
        events = run.trace.events[first:]
        self._next += len(events)
        begin = {} if self._pictures_sent else {"images": run.trace.images, "meta": run.trace.meta}
        self._pictures_sent = True
        state = "running" if run.over else run.state  # that it is over is told by the last value
        return message(run=run.key, state=state, position=run.position, first=first, events=trace.events_json(events), **begin)

    def end(self) -> dict[str, Any]:
        """Return the last value: the number of events, by which the player finds out that it missed some. Gradio sends it twice."""
        return message(run=self._run.key, state="done", count=len(self._run.trace.events), meta=self._run.trace.meta)


def kept(request: GenerationRequest, meta: dict[str, Any], visitor: str | None) -> KeptRun:
    """Return what is kept of a run that is about to be queued."""
    recorded = trace.Trace(images=[pictures.data_uri(image) for image in request.images], meta=meta)
    return KeptRun(recorded, visitor, thumbnail(request.images[0]))


class RunHandlers:
    """Run and Stop; and the server's health.

    Args:
        about: the model that is asked.
        runs: where runs are kept.
        transport: the worker thread with its queue.
        limits: how much one run may generate.

    Attributes:
        following: lets pages read runs.
        transport, limits: as given.
    """

    def __init__(self, about: About, runs: Runs, transport: ThreadTransport, limits: Limits) -> None:
        self._about, self._runs = about, runs
        self.transport, self.limits = transport, limits
        self.following = Following(transport, runs)

    def _check(self, path: Any, more: Any, question: Any, chosen: Any, known: Any) -> tuple[GenerationRequest, dict[str, Any]]:
        request = controls.prepare([one for one in (path, *(more or [])) if one], question, chosen, self._about)
        self.limits.check_work(request)
        shown = Shown.of(known)
        names = [str(shown.name or Path(str(path)).name), *(Path(str(one)).name for one in more or [])]
        meta: dict[str, Any] = {"pictures": names, "picture_id": str(shown.id), "repeats": request.repeats}
        if shown.link and not more:
            meta["link"] = str(shown.link)
        return request, meta

    async def run(self, path: Any, more: Any, question: Any, chosen: Any, known: Any, visitor: gr.Request) -> AsyncIterator[list[Any]]:
        """Queue a run and hand its events on as they come."""
        try:
            request, meta = await asyncio.to_thread(self._check, path, more, question, chosen, known)
            asked = await asyncio.to_thread(Asked.of, request, [path, *(more or [])], Shown.of(known).answers)
            run = await asyncio.to_thread(kept, request, meta | asked.meta(request.question), visitor_of(visitor))
            run.asked = asked
            self.following.start(run, request, str(visitor.session_hash))
            del request  # the job holds the pictures, and gives them up with its end
            async with contextlib.aclosing(self.read(run, visitor)) as values:
                async for value in values:
                    yield value
        except Exception as error:  # a person sees a sentence, the log the rest
            if kind(error) not in ("input", "busy"):
                log.exception("the handler failed")
            self.transport.refused(error)
            yield [message(state="refused", message=sentence(error)), *buttons(running=False)]

    async def rejoin(self, event: gr.EventData, visitor: gr.Request) -> AsyncIterator[list[Any]]:
        """Read a run again, in a page that was loaded anew: its events from number ``first`` on, and then as they come."""
        data = event._data if isinstance(event._data, dict) else {}
        run, first = self._runs.find(data.get("run")), data.get("first", 0)
        if run is None or type(first) is not int or first < 0:
            yield [message(state="gone", run=str(data.get("run"))[:64]), *buttons(running=False)]
            return
        try:
            async with contextlib.aclosing(self.read(run, visitor, first)) as values:
                async for value in values:
                    yield value
        except Busy as error:
            yield [message(state="gone", run=run.key, message=sentence(error)), *buttons(running=False)]

    async def read(self, run: KeptRun, visitor: gr.Request, first: int = 0) -> AsyncGenerator[list[Any]]:
        """Yield what the page, Run and Stop show of a run, to its end."""
        stream, shown = Stream(run, first), buttons(running=True)
        async with contextlib.aclosing(self.following.read(run, str(visitor.session_hash))) as news:
            async for _ in news:
                yield [stream.batch(), *shown]
                shown = [gr.skip(), gr.skip()]
        yield [stream.end(), *buttons(running=False)]

    def stop(self, visitor: gr.Request) -> None:
        """End the visitor's runs, waiting and running ones."""
        self.following.stop(str(visitor.session_hash))

    def left(self, visitor: gr.Request) -> None:
        """Note that a page was closed, or is loaded again."""
        self.following.left(str(visitor.session_hash))

    async def health(self, _: HttpRequest) -> JSONResponse:
        """Answer ``/healthz``: 200 where runs are taken, else 503 with the reason."""
        trouble, (running, waiting) = self.transport.trouble, self.transport.load
        state: dict[str, Any] = {
            "state": trouble[0] if trouble else "ready",
            "model": self._about.name,
            "running": running,
            "waiting": waiting,
        }
        if trouble is not None:
            state["reason"] = trouble[1]
        return JSONResponse(state, 503 if trouble else 200)


class PictureHandlers:
    """The strip of examples, scenes and questions, and uploads.

    Args:
        about: the model that is asked.
        shelf: the example pictures.
        scene: draws a scene with known answers, None where there is none to draw.
    """

    def __init__(self, about: About, shelf: tuple[Example, ...], scene: Scene | None) -> None:
        self._about, self._shelf, self._scene = about, shelf, scene
        self._folder: Path | None = None

    def remove_files(self) -> None:
        """Delete the drawn scenes."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def draws(self) -> bool:
        """Whether there are scenes to draw."""
        return self._scene is not None

    def opening(self) -> list[Any]:
        """Return the strip's first value and what is known about the first example."""
        if not self._shelf:
            return Shown([], {}).values({})
        first = self._shelf[0]
        return self._offer(first).values(self._prompt([first.path], first.questions[0]))

    @staticmethod
    def _offer(example: Example) -> Shown:
        return Shown(list(example.questions), dict(example.answers), f"ex={example.key}", example.name)

    def _prompt(self, paths: Sequence[Any], question: Any) -> dict[str, Any]:
        """Return the size of the prompt of chosen pictures, or ``problem``, a sentence, where one of them cannot be used."""
        chosen = [path for path in paths if path]
        if not chosen:
            return {}
        asked = question if isinstance(question, str) and 0 < len(question.strip()) <= controls.MAX_QUESTION else "?"
        try:
            if len(chosen) > controls.MAX_PICTURES:
                raise ValueError(f"There are too many pictures: {controls.MAX_PICTURES} at most.")
            sizes = [pictures.open_image(controls.upload(path)).size for path in chosen]
            return {"prompt": asdict(self._about.prompt(sizes, asked)), "pictures": len(chosen)}
        except ValueError as error:
            return {"problem": sentence(error)}

    def pick(self, event: gr.EventData, known: Any, path: Any, more: Any, question: Any) -> list[Any]:
        """Follow a click in the strip or a link: an example, a new scene, or a question.

        Pictures that stay are given back, never skipped: for a skipped output Gradio builds the component anew in this visitor's session,
        and the new one would decode uploads by itself.
        """
        data = event._data if isinstance(event._data, dict) else {}
        shown, number = Shown.of(known), data.get("question")
        asked = data.get("ask") if isinstance(data.get("ask"), str) else None
        if isinstance(number, int) and 0 <= number < len(shown.questions):
            asked = shown.questions[number]
            return [path, more, asked, self.measured(path, more, asked, known), gr.skip()]
        number = data.get("example")
        if isinstance(number, int) and 0 <= number < len(self._shelf):
            return self._show(self._offer(self._shelf[number]), self._shelf[number].path, asked)
        if data.get("scene") and self._scene is not None:
            return self._draw(self._scene, data.get("seed"), asked)
        if asked is not None:
            asked = asked[: controls.MAX_QUESTION]
            return [path, more, asked, self.measured(path, more, asked, known), gr.skip()]
        return [path, more, gr.skip(), gr.skip(), gr.skip()]

    def _show(self, shown: Shown, path: Path, asked: str | None) -> list[Any]:
        question = shown.questions[0] if asked is None else asked[: controls.MAX_QUESTION]
        return [str(path), None, question, *shown.values(self._prompt([path], question))]

    def _draw(self, scene: Scene, seed: Any, question: str | None) -> list[Any]:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="avl-scenes-"))
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
            seed = secrets.randbelow(2**31)
        drawn = scene(seed)
        # few files, written over and over: a button that anybody may press must not fill the disk
        file = self._folder / f"scene-{seed % 64}.png"
        drawn.image.save(file)
        asked = spread([(question.text[:1].upper() + question.text[1:], question.answer) for question in drawn.questions])
        return self._show(Shown([text for text, _ in asked], dict(asked), f"scene={seed}", f"scene {seed}"), file, question)

    def own_picture(self, path: Any, more: Any, question: Any) -> list[Any]:
        """Forget the example: an upload replaces it, and nothing is known about that."""
        name = Path(str(path)).name if path else ""
        return Shown(["Describe the picture."], {}, name=name).values(self._prompt([path, *(more or [])], question))

    def cleared(self, more: Any, question: Any) -> list[Any]:
        """Forget the picture that was removed."""
        return self.own_picture(None, more, question)

    def more_pictures(self, path: Any, more: Any, question: Any, known: Any) -> list[Any]:
        """Follow a change of the further pictures: from then on it is another choice of pictures."""
        shown = dataclasses.replace(Shown.of(known), id=secrets.token_urlsafe(6))
        return shown.values(self._prompt([path, *(more or [])], question))

    def measured(self, path: Any, more: Any, question: Any, known: Any) -> dict[str, Any]:
        """Measure the prompt anew, after the question changed."""
        # what is known stays as it is: this may be heard after the picture went, and would bring it back
        return message(measured={"id": Shown.of(known).id, **self._prompt([path, *(more or [])], question)})
