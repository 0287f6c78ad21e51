"""What the page does when something is pressed: runs, examples and scenes, predictions, downloads."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from avl import trace
from avl.engine.request import GenerationRequest
from avl.models import images as pictures
from avl.ui import report
from avl.ui import settings as controls
from avl.ui.errors import kind, sentence
from avl.ui.gallery import Example
from avl.ui.job import Job
from avl.ui.limits import Limits
from avl.ui.queue import ThreadTransport, ZeroGPUTransport, batches
from avl.ui.settings import About
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


def _buttons(running: bool) -> list[gr.Button]:
    """Run and Stop, of which one can be pressed."""
    return [gr.Button(interactive=not running), gr.Button(interactive=running)]


class Stream:
    """One run as the values that the player receives: batches of events, at the end the whole trace."""

    def __init__(self, key: str, request: GenerationRequest, meta: dict[str, Any], runs: report.Runs) -> None:
        self.key = key
        self.trace = trace.Trace(images=[pictures.data_uri(image) for image in request.images], meta=meta)
        self._pictures_sent = False
        runs.add(key, self.trace)

    def batch(self, events: list[trace.Event], state: str, position: int) -> dict[str, Any]:
        """Return the next value: ``events`` and the number of those before them."""
        first = len(self.trace.events)
        for event in events:
            self.trace.append(event)
        images = [] if self._pictures_sent else self.trace.images
        meta = {} if self._pictures_sent else {"meta": self.trace.meta}
        self._pictures_sent = True
        told = [event.to_dict() for event in events]
        return message(run=self.key, state=state, position=position, first=first, images=images, events=told, **meta)

    def whole(self) -> dict[str, Any]:
        """Return the last value."""
        return message(run=self.key, state="done", trace=self.trace.to_dict())


class RunHandlers:
    """Run and Stop, on the worker thread or on ZeroGPU; and the server's health.

    Args:
        about: the model that is asked.
        runs: where runs are kept for downloads.
        transport: the worker thread with its queue, None on ZeroGPU.
        zero: ZeroGPU's generator, None elsewhere.
        limits: how much one run may generate.

    Attributes:
        unread: tells for how many seconds a session's oldest message has waited to be read.
    """

    def __init__(
        self, about: About, runs: report.Runs, transport: ThreadTransport | None, zero: ZeroGPUTransport | None, limits: Limits
    ) -> None:
        self._about, self._runs, self._transport, self._zero, self._limits = about, runs, transport, zero, limits
        self.unread: Callable[[str | None], float] = lambda session: 0.0

    def _check(self, path: Any, more: Any, question: Any, chosen: Any, known: Any) -> tuple[GenerationRequest, dict[str, Any]]:
        request = controls.prepare([one for one in (path, *(more or [])) if one], question, chosen, self._about)
        self._limits.check_work(request)
        shown = Shown.of(known)
        names = [str(shown.name or Path(str(path)).name), *(Path(str(one)).name for one in more or [])]
        meta: dict[str, Any] = {"pictures": names, "picture_id": str(shown.id), "repeats": request.repeats}
        if shown.link and not more:
            meta["link"] = str(shown.link)
        answers = shown.answers
        if not more and isinstance(answers, dict) and isinstance(answers.get(request.question), str):
            meta["expected"] = answers[request.question]
        return request, meta

    async def run(self, path: Any, more: Any, question: Any, chosen: Any, known: Any, visitor: gr.Request) -> AsyncIterator[list[Any]]:
        """Queue a run and hand its events on as they come."""
        transport = self._transport
        assert transport is not None
        job: Job | None = None
        try:
            request, meta = await asyncio.to_thread(self._check, path, more, question, chosen, known)
            stream = await asyncio.to_thread(Stream, secrets.token_urlsafe(16), request, meta, self._runs)
            job = transport.submit(request, str(visitor.session_hash), visitor_of(visitor))
            del request  # the job holds the pictures, and gives them up with its end
            yield [stream.batch([], "queued", transport.position(job)), *_buttons(running=True)]
            async for events in batches(transport, job, unread=lambda: self.unread(visitor.session_hash)):
                state = "stopping" if job.stop.is_set() and job.state != "done" else "running" if job.state == "done" else job.state
                yield [stream.batch(events, state, transport.position(job)), gr.skip(), gr.skip()]
            yield [stream.whole(), *_buttons(running=False)]
        except Exception as error:  # a person sees a sentence, the log the rest
            if kind(error) not in ("input", "busy"):
                log.exception("the handler failed")
            transport.refused(error)
            yield [message(state="refused", message=sentence(error)), *_buttons(running=False)]
        finally:
            # may run on the event loop when a tab closes: it only sets a flag, the worker cleans up
            if job is not None:
                transport.leave(job)

    def run_on_zero(self, path: Any, more: Any, question: Any, chosen: Any, known: Any) -> Iterator[list[Any]]:
        """Run in ZeroGPU's child process and hand the events on as they come."""
        assert self._zero is not None
        try:
            request, meta = self._check(path, more, question, chosen, known)
            stream = Stream(secrets.token_urlsafe(16), request, meta, self._runs)
            yield [stream.batch([], "queued", 0), *_buttons(running=True)]
            for event in self._zero.stream(request):
                yield [stream.batch([] if event is None else [event], "running", 0), gr.skip(), gr.skip()]
            yield [stream.whole(), *_buttons(running=False)]
        except ValueError as error:
            yield [message(state="refused", message=sentence(error)), *_buttons(running=False)]
        except gr.Error:
            raise  # ZeroGPU's own words about quota
        except Exception as error:
            log.exception("the handler failed")
            yield [message(state="refused", message=sentence(error)), *_buttons(running=False)]

    def stop(self, visitor: gr.Request) -> None:
        """End the visitor's runs, waiting and running ones."""
        if self._transport is not None:
            self._transport.stop(str(visitor.session_hash))

    def stopped_on_zero(self) -> list[Any]:
        """Return what the page shows once ZeroGPU's generator was closed."""
        return [message(state="done"), *_buttons(running=False)]

    async def health(self, _: HttpRequest) -> JSONResponse:
        """Answer ``/healthz``: 200 where runs are taken, else 503 with the reason."""
        trouble = self._transport.trouble if self._transport is not None else None
        running, waiting = self._transport.load if self._transport is not None else (0, 0)
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


# what the scripts of the page call: plain functions, because Gradio marks each with an attribute, which a method does not take


def player_functions(runs: report.Runs, recorded: trace.Trace | None) -> list[Callable[[Any], Any]]:
    """Return the functions that the player calls: ``missing``, ``download`` and ``recording``."""
    recording_json = None if recorded is None else recorded.to_json()

    def missing(wanted: Any) -> Any:
        """Events of a run from a number on, for a page that missed a batch."""
        run = runs.get(wanted.get("run")) if isinstance(wanted, dict) else None
        first = wanted.get("first") if isinstance(wanted, dict) else None
        if run is None or not isinstance(first, int) or first < 0:
            return None
        return [event.to_dict() for event in run.events[first:]]

    def download(wanted: Any) -> str:
        """Return a run as JSON, CSV or an offline page."""
        run = runs.get(wanted.get("run")) if isinstance(wanted, dict) else None
        if run is None or not run.events:
            raise gr.Error("The server no longer has this run.", print_exception=False)
        kind = wanted.get("kind")
        return report.page(run) if kind == "html" else report.steps_csv(run) if kind == "csv" else run.to_json()

    def recording(_: Any) -> str | None:
        """Return the run that the page opens with, asked for after the first paint: within the page, its size would hold that up."""
        return recording_json

    def last(wanted: Any) -> str | None:
        """Return a run that the visitor had before the page was loaded anew, None where it is gone."""
        run = runs.get(wanted.get("run")) if isinstance(wanted, dict) else None
        return run.to_json() if run is not None and run.events else None

    return [missing, download, recording, last]


def settings_functions(about: About) -> list[Callable[[Any], Any]]:
    """Return the functions that the settings call: ``predict`` and ``equal``; both hear the size of the chosen pictures' prompt."""

    def predict(wanted: Any) -> dict[str, Any]:
        """Return what the arms of the settings will store and read."""
        wanted = wanted if isinstance(wanted, dict) else {}
        return controls.predict(wanted.get("settings"), about, controls.sent_prompt(wanted.get("prompt"), about))

    def equal(wanted: Any) -> dict[str, Any]:
        """Return an arm's parameters at the stored share of the other arm."""
        wanted = wanted if isinstance(wanted, dict) else {}
        prompt = controls.sent_prompt(wanted.get("prompt"), about)
        return controls.equal(wanted.get("settings"), wanted.get("arm"), about, prompt)

    return [predict, equal]
