"""The page: inputs on the left, the player on the right, one handler between them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from avl import trace
from avl.models import images as pictures
from avl.ui import api, gallery, report
from avl.ui import components as player
from avl.ui import settings as controls
from avl.ui.queue import Busy, Job, Race, Request, ThreadTransport, ZeroGPUTransport, batches, sentence
from avl.ui.settings import About

log = logging.getLogger(__name__)

Scene = Callable[[int], Any]
"""Draw the scene of a seed: an object with ``image`` and ``questions`` (each with ``text`` and ``answer``)."""

IDLE_SECONDS = 5  # between two readings of the header, while nothing runs

_numbers = itertools.count(1)


def uploaded(payload: Any) -> Any:
    """The uploaded file, or files, as they are. The stock components open or check them first, and answer junk with "Error"."""
    if payload is None:
        return None
    return payload.path if hasattr(payload, "path") else [file.path for file in payload]


@dataclass
class Page:
    """The built page and what belongs to it."""

    blocks: gr.Blocks
    runs: report.Runs
    transport: ThreadTransport | None
    options: dict[str, Any]

    def launch(self, **options: Any) -> Any:
        """Serve it; Gradio's own arguments beat the page's."""
        return self.blocks.launch(**{**self.options, **options})


def message(**fields: Any) -> dict[str, Any]:
    """One value for the player. The number makes every value differ, or the front end would skip a repeated one."""
    return {"seq": next(_numbers), **fields}


class Stream:
    """One run as the values that the player receives: batches of events, at the end the whole trace."""

    def __init__(self, key: str, request: Request, meta: dict[str, Any], runs: report.Runs) -> None:
        self.key = key
        self.trace = trace.Trace(images=[pictures.data_uri(image) for image in request.images], meta=meta)
        self._pictures_sent = False
        runs.add(key, self.trace)

    def batch(self, events: list[trace.Event], state: str, position: int) -> dict[str, Any]:
        first = len(self.trace.events)
        for event in events:
            self.trace.append(event)
        images = [] if self._pictures_sent else self.trace.images
        self._pictures_sent = True
        return message(run=self.key, state=state, position=position, first=first, images=images, events=[e.to_dict() for e in events])

    def whole(self) -> dict[str, Any]:
        return message(run=self.key, state="done", trace=self.trace.to_dict())


def theme() -> gr.themes.Base:
    """System fonts (nothing is fetched) and neutral surfaces that match assets/player/style.css."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.sky,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Liberation Mono", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
    ).set(
        body_background_fill="#f4f6f8",
        body_background_fill_dark="#0f141a",
        body_text_color="#17212b",
        body_text_color_dark="#e9eef4",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171e27",
        block_border_color="#dbe1e8",
        block_border_color_dark="#2c3743",
        block_label_text_color="#566370",
        block_label_text_color_dark="#a3afbc",
        input_background_fill="#eef1f5",
        input_background_fill_dark="#202a35",
        input_placeholder_color="#5d6a77",
        input_placeholder_color_dark="#94a1af",
        button_secondary_background_fill="#e6ebf1",
        button_secondary_background_fill_dark="#2a3541",
        button_secondary_text_color="#17212b",
        button_secondary_text_color_dark="#e9eef4",
    )


def build(
    race: Race,
    about: About,
    *,
    scene: Scene | None = None,
    recorded: trace.Trace | None = None,
    zero_gpu: Callable[..., Any] | None = None,
    idle: Callable[[], dict[str, Any]] | None = None,
    transport: ThreadTransport | None = None,
) -> Page:
    """Build the page.

    Args:
        race: runs a request and yields its events; the only way to the model.
        about: what the page says and predicts about the model.
        scene: draws a scene with known answers, for "New scene"; None hides the button.
        recorded: a trace to show until the visitor runs something.
        zero_gpu: ``spaces.GPU`` where the page runs on ZeroGPU; else one worker thread runs everything.
        idle: reads memory and power between runs for the header, as ``telemetry.idle``; None shows none.
        transport: for tests; by default a :class:`ThreadTransport` of ``race``.

    Returns:
        The page; ``launch`` serves it.
    """
    line = None if zero_gpu else transport or ThreadTransport(race)
    zero = ZeroGPUTransport(race, zero_gpu) if zero_gpu else None
    runs = report.Runs()
    recording_json = None if recorded is None else recorded.to_json()
    if recorded is not None:
        runs.add("recorded", recorded)
    shelf = gallery.examples(about.bundled)
    opening = shelf[0] if shelf else None
    scenes_folder = Path(tempfile.mkdtemp(prefix="avl-scenes-")) if scene else None
    settings = controls.settings(about)
    catalogue = {
        name: {"title": title, "budget": bool(many), "parameters": [vars(one) for one in many]}
        for name, (title, many) in controls.POLICIES.items()
    }
    facts = {**vars(about), "notes": list(about.notes)}
    free = [gr.skip(), gr.Button(interactive=True), gr.Button(interactive=False)]

    def missing(wanted: Any) -> Any:
        """Events of a run from a number on, for a page that missed a batch."""
        run = runs.get(wanted.get("run")) if isinstance(wanted, dict) else None
        first = wanted.get("first") if isinstance(wanted, dict) else None
        if run is None or not isinstance(first, int) or first < 0:
            return None
        return [event.to_dict() for event in run.events[first:]]

    def recording(_: Any) -> str | None:
        """The run that the page opens with, asked for after the first paint: within the page, its size would hold that up."""
        return recording_json

    def download(wanted: Any) -> str:
        """A run as JSON, CSV or an offline page."""
        run = runs.get(wanted.get("run")) if isinstance(wanted, dict) else None
        if run is None or not run.events:
            raise gr.Error("The server no longer has this run.", print_exception=False)
        kind = wanted.get("kind")
        return report.page(run) if kind == "html" else report.steps_csv(run) if kind == "csv" else run.to_json()

    def equal(wanted: Any) -> dict[str, Any]:
        """An arm's settings at the stored share of the other arm."""
        wanted = wanted if isinstance(wanted, dict) else {}
        return controls.at_stored(wanted.get("arm"), wanted.get("fraction"), about)

    def check(path: Any, more: Any, question: Any, chosen: Any, known: Any) -> tuple[Request, dict[str, Any]]:
        request = controls.prepare([one for one in (path, *(more or [])) if one], question, chosen, about)
        meta: dict[str, Any] = {}
        answers = known.get("answers") if isinstance(known, dict) else None
        if not more and isinstance(answers, dict) and isinstance(answers.get(request.question), str):
            meta["expected"] = answers[request.question]
        return request, meta

    async def run(path: Any, more: Any, question: Any, chosen: Any, known: Any, visitor: gr.Request) -> AsyncIterator[list[Any]]:
        assert line is not None
        job: Job | None = None
        try:
            request, meta = await asyncio.to_thread(check, path, more, question, chosen, known)
            stream_key = secrets.token_urlsafe(16)
            stream = await asyncio.to_thread(Stream, stream_key, request, meta, runs)
            job = line.submit(request, str(visitor.session_hash))
            del request  # the job holds the pictures, and gives them up with its end
            yield [stream.batch([], "queued", line.position(job)), gr.Button(interactive=False), gr.Button(interactive=True)]
            async for events in batches(line, job):
                state = "stopping" if job.stop.is_set() and job.state != "done" else "running" if job.state == "done" else job.state
                yield [stream.batch(events, state, line.position(job)), gr.skip(), gr.skip()]
            yield [stream.whole(), *free[1:]]
        except (ValueError, Busy) as error:
            yield [message(state="refused", message=sentence(error)), *free[1:]]
        except Exception as error:  # a person sees a sentence, the log the rest
            log.exception("the handler failed")
            yield [message(state="refused", message=sentence(error)), *free[1:]]
        finally:
            # may run on the event loop when a tab closes: it only sets a flag, the worker cleans up
            if job is not None:
                line.leave(job)

    def run_on_zero(path: Any, more: Any, question: Any, chosen: Any, known: Any) -> Iterator[list[Any]]:
        assert zero is not None
        try:
            request, meta = check(path, more, question, chosen, known)
            stream = Stream(secrets.token_urlsafe(16), request, meta, runs)
            yield [stream.batch([], "queued", 0), gr.Button(interactive=False), gr.Button(interactive=True)]
            for event in zero.stream(request):
                yield [stream.batch([] if event is None else [event], "running", 0), gr.skip(), gr.skip()]
            yield [stream.whole(), *free[1:]]
        except ValueError as error:
            yield [message(state="refused", message=sentence(error)), *free[1:]]
        except gr.Error:
            raise  # ZeroGPU's own words about quota
        except Exception as error:
            log.exception("the handler failed")
            yield [message(state="refused", message=sentence(error)), *free[1:]]

    def stop(visitor: gr.Request) -> None:
        if line is not None:
            line.stop(str(visitor.session_hash))

    def pick(event: gr.EventData, known: Any, path: Any, more: Any) -> list[Any]:
        """A click in the strip: an example, a new scene, or a question.

        Pictures that stay are given back, never skipped: for a skipped output Gradio builds the component anew in this visitor's session,
        and the new one would decode uploads by itself.
        """
        data = event._data if isinstance(event._data, dict) else {}
        questions = known.get("questions", []) if isinstance(known, dict) else []
        number = data.get("question")
        if isinstance(number, int) and 0 <= number < len(questions):
            return [path, more, questions[number], gr.skip(), gr.skip()]
        number = data.get("example")
        if isinstance(number, int) and 0 <= number < len(shelf):
            chosen = shelf[number]
            offered = suggestions(list(chosen.questions), dict(chosen.answers), f"ex={chosen.key}")
            return [str(chosen.path), None, chosen.questions[0], *offered]
        if data.get("scene") and scene is not None and scenes_folder is not None:
            seed = data.get("seed")
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
                seed = secrets.randbelow(2**31)
            drawn = scene(seed)
            # few files, written over and over: a button that anybody may press must not fill the disk
            file = scenes_folder / f"scene-{seed % 64}.png"
            drawn.image.save(file)
            asked = spread([(question.text[:1].upper() + question.text[1:], question.answer) for question in drawn.questions])
            return [str(file), None, asked[0][0], *suggestions([text for text, _ in asked], dict(asked), f"scene={seed}")]
        return [path, more, gr.skip(), gr.skip(), gr.skip()]

    def own_picture() -> list[Any]:
        """An upload replaces the example: nothing is known about it."""
        return suggestions(["Describe the picture."], {})

    with gr.Blocks(title="A-VL × LLaVA", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as blocks:
        header = player.component("header", value=idle() if idle else None, about=facts)
        opened = suggestions(list(opening.questions), dict(opening.answers), f"ex={opening.key}") if opening else suggestions([], {})
        known = gr.State(opened[1], time_to_live=3600)
        with gr.Row(equal_height=False):
            with gr.Column(scale=0, min_width=348, elem_id="avl-left"):
                image = gr.Image(
                    value=str(opening.path) if opening else None,
                    label="Picture",
                    sources=["upload", "clipboard"],
                    height=220,
                    elem_id="avl-picture",
                    buttons=[],
                )
                image.preprocess = uploaded  # type: ignore[method-assign]
                with gr.Accordion("More pictures", open=False, elem_id="avl-more"):
                    alone = " The bundled model learned from single pictures: expect little of it here." if about.bundled else ""
                    gr.Markdown(f"The question is about all of them and the one above.{alone}")
                    more = gr.File(
                        label="Pictures",
                        file_count="multiple",
                        file_types=["image"],
                        elem_id="avl-more-pictures",
                        height=120,
                    )
                    more.preprocess = uploaded  # type: ignore[method-assign]
                strip = player.component(
                    "gallery",
                    value=opened[0],
                    examples=[
                        {"key": example.key, "name": example.name, "thumbnail": gallery.thumbnail(example.path)} for example in shelf
                    ],
                    scenes=scene is not None,
                )
                question = gr.Textbox(
                    value=opening.questions[0] if opening else "",
                    label="Question",
                    lines=2,
                    max_lines=5,
                    max_length=controls.MAX_QUESTION,
                    elem_id="avl-question",
                    submit_btn=False,
                )
                with gr.Row(elem_id="avl-go"):
                    go = gr.Button("Run", variant="primary", elem_id="avl-run", min_width=80)
                    halt = gr.Button("Stop", variant="secondary", interactive=False, elem_id="avl-stop", min_width=80)
                chosen = player.component(
                    "controls", value=settings, about=facts, policies=catalogue, presets=controls.presets(), server_functions=[equal]
                )
            with gr.Column(scale=1, min_width=320):
                first = None if recorded is None else message(run="recorded", recorded=True)
                functions = [missing, download, recording]
                board = player.component("player", value=first, plotly=player.plotly_address(), about=facts, server_functions=functions)

        shared: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        inputs, outputs = [image, more, question, chosen, known], [board, go, halt]
        # our own line in front of the worker tells a visitor his place; Gradio's queue would hide it, and frees its slot too early
        limits: dict[str, Any] = {"concurrency_limit": None} if line is not None else {"concurrency_limit": 1, "concurrency_id": "gpu"}
        handler = run if line is not None else run_on_zero
        limits |= {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "once"}
        started: Any = [event(handler, inputs, outputs, **limits) for event in (go.click, question.submit)]
        signal = "() => { document.dispatchEvent(new CustomEvent('avl:stop')); return []; }"
        if line is not None:
            halt.click(stop, None, None, js=signal, **shared)
        else:
            # the child process cannot hear a flag of ours: closing its generator ends it
            halt.click(lambda: [message(state="done"), *free[1:]], None, outputs, cancels=started, **shared)
        strip.select(pick, [known, image, more], [image, more, question, strip, known], **shared)
        image.upload(own_picture, None, [strip, known], **shared)
        image.clear(own_picture, None, [strip, known], **shared)
        blocks.unload(stop)
        if idle is not None and line is not None:

            def between_runs() -> Any:
                # never beside a run: it would take time from what is being measured
                return gr.skip() if line.load[0] else idle()

            gr.Timer(IDLE_SECONDS).tick(between_runs, None, header, **shared)
        if line is not None:
            gr.api(api.endpoint(line, about), api_name="compare", concurrency_limit=None)

    async def health(_: HttpRequest) -> JSONResponse:
        ready = line is None or line.alive
        running, waiting = line.load if line is not None else (0, 0)
        state = {"state": "ready" if ready else "failed", "model": about.name, "running": running, "waiting": waiting}
        return JSONResponse(state, 200 if ready else 503)

    blocks.queue(max_size=64)
    launch = {
        "theme": theme(),
        "app_kwargs": {"routes": [Route("/healthz", health)]},
        "max_file_size": "8mb",
        "show_error": False,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "footer_links": ["api"],
    }
    return Page(blocks, runs, line, launch)


def suggestions(questions: list[str], answers: dict[str, str], link: str = "") -> list[Any]:
    """Values of the strip and of what the server knows about the picture; ``link`` names it in an address, where it has a name."""
    return [{"questions": questions, "link": link, "seq": next(_numbers)}, {"questions": questions, "answers": answers}]


def spread(questions: list[tuple[str, str]], most: int = 6) -> list[tuple[str, str]]:
    """A few of a scene's many questions, of different kinds: the first ones and an even pick of the rest."""
    if len(questions) <= most:
        return questions
    rest = questions[3:]
    return questions[:3] + [rest[i * len(rest) // (most - 3)] for i in range(most - 3)]
