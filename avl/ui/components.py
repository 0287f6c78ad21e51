"""Own web components: constant markup, style and script from ``assets/player``; data travels as values, never as templates.

Gradio renders an ``html_template`` with Handlebars and evaluates the result as a JS template string, so a value in it could run code.
Here the template is a bare ``<div>``: the script builds the DOM from its own constants, and everything that a model, a visitor or a file
says reaches the page through ``textContent`` or a canvas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from starlette.requests import Request
from starlette.responses import FileResponse

from avl._paths import ASSETS

FOLDER = ASSETS / "player"
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

SCRIPTS: dict[str, tuple[str, ...]] = {
    "player": (
        "base.js",
        "stats.js",
        "trace.js",
        "lattice.js",
        "overlay.js",
        "charts.js",
        "race.js",
        "heat.js",
        "analysis.js",
        "tour.js",
        "player.js",
        "curves.js",
        "arms.js",
        "picture.js",
        "result.js",
        "asked.js",
        "link.js",
        "start.js",
    ),
    "controls": ("base.js", "controls.js"),
    "gallery": ("base.js", "gallery.js"),
    "header": ("base.js", "header.js"),
}
"""The files that make up each component, in order; they share one function scope."""


def script(name: str) -> str:
    """Return the JavaScript of one component: its markup and style as string constants, then its files."""
    markup = (FOLDER / f"{name}.html").read_text("utf-8")
    style = (FOLDER / "style.css").read_text("utf-8")
    head = f"'use strict';\nconst MARKUP = {json.dumps(markup)};\nconst STYLE = {json.dumps(style)};\n"
    return head + "\n".join((FOLDER / file).read_text("utf-8") for file in SCRIPTS[name])


def component(name: str, value: Any = None, **options: Any) -> gr.HTML:
    """Return one of our components as a ``gr.HTML``. ``value`` and further properties are JSON data for its script."""
    return gr.HTML(
        value=value,
        html_template=f'<div class="avl avl-{name}"></div>',
        css_template="",
        js_on_load=script(name),
        apply_default_css=False,
        elem_id=f"avl-{name}",
        padding=False,
        **options,
    )


def take_paths(component: gr.Image | gr.File) -> None:
    """Make a component hand uploads over as paths. The stock ones open or check them first, and answer junk with "Error".

    Not a subclass: Gradio writes a stub file beside the source of every subclass of its components.
    """

    def paths(payload: Any) -> Any:
        if payload is None:
            return None
        return payload.path if hasattr(payload, "path") else [file.path for file in payload]

    component.preprocess = paths  # type: ignore[method-assign]


PLOTLY_ADDRESS = "avl/plotly.min.js"
"""Where the page finds plotly.js, below its own address. Gradio's address of a file would name a folder of the server."""


async def plotly_script(_: Request) -> FileResponse:
    """Answer with plotly.js from the installed package."""
    return FileResponse(PLOTLY_JS, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})
