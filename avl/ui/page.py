"""The page: inputs on the left, the player on the right, and what is connected to what."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from avl import trace
from avl.engine.sweep import with_sweeps
from avl.ui import api, components, gallery, sweep_api, sweeps, turn_api, what_if
from avl.ui import settings as controls
from avl.ui.application import Application
from avl.ui.blocks import SpokenBlocks
from avl.ui.functions import player_functions, settings_functions
from avl.ui.handlers import PictureHandlers, RunHandlers, Scene, message
from avl.ui.limits import Limits
from avl.ui.logs import RunLog
from avl.ui.metrics import Metrics
from avl.ui.queue import Race, ThreadTransport
from avl.ui.runs import Runs
from avl.ui.security import host_names
from avl.ui.settings import About
from avl.ui.turn_handlers import TurnHandlers
from avl.ui.zero import ZeroGPU

IDLE_SECONDS = 5  # between two readings of the header, while nothing runs
QUEUE_SECONDS = 0.01  # between two looks of Gradio's queue for work; its own 0.001 takes 4 % of a core for ever
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, **PRIVATE}


@dataclass
class Page:
    """The built page and what belongs to it."""

    blocks: gr.Blocks
    runs: Runs
    transport: ThreadTransport
    application: Application
    options: dict[str, Any]
    remove_files: Callable[[], None]

    def launch(self, hosts: Sequence[str] | None = None, **options: Any) -> Any:
        """Serve it.

        Args:
            hosts: names that it answers for beside this machine's own, None for those that suit the address that is listened on.
            options: Gradio's own arguments, which beat the page's.
        """
        names = host_names(hosts, options.get("server_name"), bool(options.get("share")))
        return self.blocks.launch(**{**self.options, "app_kwargs": self.application.options(names), **options})


def theme() -> gr.themes.Base:
    """Return system fonts (nothing is fetched) and neutral surfaces that match assets/player/style.css."""
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
        block_info_text_color="#566370",
        block_info_text_color_dark="#a3afbc",
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
    warm_up: Callable[[threading.Event], None] | None = None,
    idle: Callable[[], dict[str, Any]] | None = None,
    limits: Limits | None = None,
    metrics: bool = True,
    own_folder: Path | None = None,
) -> Page:
    """Build the page.

    Args:
        race: runs a request and yields its events; the only way to the model.
        about: what the page says and predicts about the model.
        scene: draws a scene with known answers, for "New scene"; None hides the button.
        recorded: a trace to show until the visitor runs something.
        zero_gpu: ``spaces.GPU`` where runs happen on ZeroGPU; else they happen in this process.
        warm_up: what each new process of ZeroGPU's does first; takes an event that tells it to end.
        idle: reads memory and power between runs for the header, as ``telemetry.idle``; None shows none.
        limits: how much visitors may take, None for the usual.
        metrics: whether ``/metrics`` answers.
        own_folder: Gradio's folder for files where it is this page's alone, to be kept small; None leaves it to others.

    Returns:
        The page; ``launch`` serves it.
    """
    limits = limits or Limits()
    counters = Metrics()
    race = with_sweeps(race)
    if zero_gpu is not None:
        race = ZeroGPU(race, zero_gpu, warm_up)
    transport = ThreadTransport(race, limits, (RunLog(), counters), in_context=zero_gpu is not None)
    runs = Runs(limits)
    if recorded is not None:
        runs.keep("recorded", recorded)
    shelf = gallery.examples(about.bundled)
    swept = Runs(dataclasses.replace(limits, run_bytes=limits.run_bytes // 8))
    on_run = RunHandlers(about, runs, transport, limits)
    on_turn = TurnHandlers(on_run, runs)
    on_sweep = sweeps.SweepHandlers(about, swept, transport, limits)
    on_picture = PictureHandlers(about, shelf, scene)
    scripts = {f"/{components.PLOTLY_ADDRESS}": components.plotly_script, f"/{components.SCRIPT_ADDRESS}": components.own_script}
    answers: dict[str, Any] = {"/healthz": on_run.health, **scripts}
    if metrics:
        counters.watch(lambda: transport.load, lambda: transport.trouble is not None)
        answers["/metrics"] = counters.answer
    application = Application(limits, answers, own_folder)
    on_run.following.unread = application.unread
    on_sweep.unread = application.unread

    def tidy() -> None:
        runs.tidy()
        swept.tidy()

    application.tidy = tidy
    with SpokenBlocks(title=about.title, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as blocks:
        parts = _layout(
            about,
            shelf,
            on_picture,
            player_functions(runs, recorded, on_run.following),
            [*sweeps.sweep_functions(swept, about), *what_if.what_if_functions(about)],
            recorded is not None,
            idle() if idle else None,
        )
        _connect(parts, on_run, on_turn, on_sweep, on_picture)
        if idle is not None:
            _read_between_runs(parts.header, idle, transport)
        gr.api(api.endpoint(transport, about, application.unread), api_name="compare", concurrency_limit=None)
        gr.api(turn_api.endpoint(transport, about, application.unread), api_name="ask_on", concurrency_limit=None)
        gr.api(sweep_api.endpoint(transport, about, application.unread), api_name="sweep", concurrency_limit=None)
        gr.api(what_if.endpoint(about), api_name="what_if", concurrency_limit=None)
        blocks.unload(on_run.left)
    blocks.queue(max_size=64, api_open=False)
    # Gradio has no settings for these
    blocks._queue.sleep_when_free = QUEUE_SECONDS
    blocks._queue.progress_update_sleep_when_free = IDLE_SECONDS  # nothing here reports progress through it
    launch = {
        "theme": theme(),
        "max_file_size": limits.file_bytes,
        "state_session_capacity": limits.sessions,
        "show_error": False,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "_frontend": False,  # else Gradio asks its own server for the page, and a busy machine that takes 3 s for it does not start
        "footer_links": ["api"],
    }
    return Page(blocks, runs, transport, application, launch, on_picture.remove_files)


@dataclass
class _Parts:
    """The components that something is connected to."""

    header: gr.HTML
    image: gr.Image
    more: gr.File
    strip: gr.HTML
    question: gr.Textbox
    run: gr.Button
    stop: gr.Button
    settings: gr.HTML
    player: gr.HTML
    sweep: gr.HTML
    known: gr.State


def _layout(
    about: About,
    shelf: tuple[gallery.Example, ...],
    on_picture: PictureHandlers,
    functions: list[Callable[[Any], Any]],
    sweep_functions: list[Callable[[Any], Any]],
    recorded: bool,
    idle: dict[str, Any] | None,
) -> _Parts:
    """Place the components: the header above, inputs and settings left, the player right."""
    facts = about.facts()
    opening = shelf[0] if shelf else None
    offered, answers = on_picture.opening()
    header = components.component("header", value=idle, about=facts)
    known = gr.State(answers, time_to_live=3600)
    with gr.Row(equal_height=False):
        with gr.Column(scale=0, min_width=348, elem_id="avl-left"):
            image = gr.Image(
                value=str(opening.path) if opening else None,
                label="Picture",
                sources=["upload", "webcam", "clipboard"],
                height=220,
                elem_id="avl-picture",
                buttons=[],
            )
            components.take_paths(image)
            with gr.Accordion("More pictures", open=False, elem_id="avl-more"):
                alone = " The bundled model was trained on single pictures, so expect poor answers." if about.bundled else ""
                gr.Markdown(f"Ask about all of these and the one above, {controls.MAX_PICTURES} at most.{alone}")
                more = gr.File(label="Pictures", file_count="multiple", file_types=["image"], elem_id="avl-more-pictures", height=200)
                components.take_paths(more)
            strip = components.component(
                "gallery",
                value=offered,
                examples=[
                    {
                        "key": example.key,
                        "name": example.name,
                        "thumbnail": gallery.thumbnail(example.path),
                        "conversation": list(example.conversation),
                    }
                    for example in shelf
                ],
                scenes=on_picture.draws,
                context=about.context,
            )
            question = gr.Textbox(
                value=opening.questions[0] if opening else "",
                label="Question",
                info="Enter runs it, Shift+Enter starts a new line",
                lines=2,
                max_lines=5,
                max_length=controls.MAX_QUESTION,
                elem_id="avl-question",
                submit_btn=False,
            )
            with gr.Row(elem_id="avl-go"):
                run = gr.Button("Run", variant="primary", elem_id="avl-run", min_width=80)
                stop = gr.Button("Stop", variant="secondary", interactive=False, elem_id="avl-stop", min_width=80)
            settings = components.component(
                "controls",
                value=controls.settings(about),
                about=facts,
                policies=controls.catalog(about.layers),
                server_functions=settings_functions(about),
            )
        with gr.Column(scale=1, min_width=320):
            player = components.component(
                "player",
                value=message(run="recorded", recorded=True) if recorded else None,
                plotly=components.PLOTLY_ADDRESS,
                about=facts,
                server_functions=functions,
            )
            sweep = components.component(
                "sweep",
                plotly=components.PLOTLY_ADDRESS,
                about=facts,
                policies=controls.catalog(about.layers),
                server_functions=sweep_functions,
            )
    return _Parts(header, image, more, strip, question, run, stop, settings, player, sweep, known)


def _connect(
    parts: _Parts,
    on_run: RunHandlers,
    on_turn: TurnHandlers,
    on_sweep: sweeps.SweepHandlers,
    on_picture: PictureHandlers,
) -> None:
    """Connect buttons, the strip and uploads with their handlers."""
    inputs = [parts.image, parts.more, parts.question, parts.settings, parts.known]
    outputs, sweep_outputs = [parts.player, parts.run, parts.stop], [parts.sweep, parts.run, parts.stop]
    # our own queue in front of the worker tells a visitor his position; Gradio's would hide it, and frees its slot too early
    limits: dict[str, Any] = {"concurrency_limit": None, **PRIVATE, "trigger_mode": "once"}
    parts.run.click(on_run.run, inputs, outputs, **limits)
    signal = "() => { document.dispatchEvent(new CustomEvent('avl:stop')); return []; }"
    parts.stop.click(on_run.stop, None, None, js=signal, **AT_ONCE)
    parts.stop.click(on_sweep.stop, None, None, **AT_ONCE)
    parts.sweep.select(on_sweep.run, inputs, sweep_outputs, **limits)
    parts.player.select(on_run.rejoin, None, outputs, **limits)
    parts.player.submit(on_turn.ask, None, outputs, **limits)
    pictures, offered = [parts.image, parts.more], [parts.strip, parts.known]
    asked = [*pictures, parts.question]
    parts.strip.select(on_picture.pick, [parts.known, *asked], [*asked, *offered], **AT_ONCE)
    parts.image.upload(on_picture.own_picture, asked, offered, **AT_ONCE)
    # without the picture: it may still be the old one when this is heard
    parts.image.clear(on_picture.cleared, [parts.more, parts.question], offered, **AT_ONCE)
    for event in (parts.more.upload, parts.more.clear, parts.more.delete):
        event(on_picture.more_pictures, [*asked, parts.known], offered, **AT_ONCE)
    parts.question.blur(on_picture.measured, [*asked, parts.known], parts.strip, **AT_ONCE)


def _read_between_runs(header: gr.HTML, idle: Callable[[], dict[str, Any]], transport: ThreadTransport) -> None:
    """Keep the header's readings fresh, never beside a run: that would take time from what is being measured."""

    def between_runs() -> Any:
        return gr.skip() if transport.load[0] else idle()

    gr.Timer(IDLE_SECONDS).tick(between_runs, None, header, **AT_ONCE)
