"""Own web components: constant markup, style and script from ``assets/player``; data travels as values, never as templates.

Gradio renders an ``html_template`` with Handlebars and evaluates the result as a JS template string, so a value in it could run code.
Here the template is a bare ``<div>``: the script builds the DOM from its own constants, and everything that a model, a visitor or a file
says reaches the page through ``textContent`` or a canvas.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import plotly
from starlette.requests import Request
from starlette.responses import Response

from avl._paths import ASSETS

FOLDER = ASSETS / "player"
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

ENTRIES = {"player": "player.js", "controls": "controls.js", "gallery": "gallery.js", "header": "header.js", "sweep": "sweep.js"}
"""The module that each component starts with."""

_HANDED = "element, trigger, props, server, watch"  # by Gradio to a component's script

_IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const)\b)", re.MULTILINE)
_EXPORTED = re.compile(r"^export (?:async )?(?:function|class|const) ([A-Za-z_$][\w$]*)", re.MULTILINE)
_COMMENT = re.compile(r"^[ \t]*(?://[^\n]*|/\*\*(?:[^*]|\*(?!/))*\*/)[ \t]*\n", re.MULTILINE)  # lines that are comments alone
_LEFT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


def modules(entry: str) -> list[Path]:
    """Return the modules that ``entry`` needs, each after those that it imports, itself last.

    Raises:
        ValueError: modules import one another in a circle, or one is missing.
    """
    ordered: list[Path] = []
    open_ones: list[Path] = []

    def visit(file: Path) -> None:
        if file in ordered:
            return
        if file in open_ones:
            raise ValueError(f"{file.name} imports itself, by way of {', '.join(one.name for one in open_ones)}")
        if not file.is_file():
            raise ValueError(
                f"there is no module {file}, which {open_ones[-1].name if open_ones else 'a component'} imports: restore the file"
            )
        open_ones.append(file)
        for _, address in _IMPORT.findall(file.read_text("utf-8")):
            visit((file.parent / address).resolve())
        open_ones.pop()
        ordered.append(file)

    visit((FOLDER / entry).resolve())
    return ordered


class _Joiner:
    """Modules as parts of one script, each in a scope of its own."""

    def __init__(self) -> None:
        self._names: dict[Path, str] = {}
        self._exported: dict[Path, set[str]] = {}
        self.parts: list[str] = []

    def add(self, file: Path) -> None:
        """Append a module whose imports were added before."""
        given = ", ".join(sorted(self._exports(file)))
        self.parts.append(f"const {self._names[file]} = (() => {{ // {file.name}\n{self.body(file)}\nreturn {{ {given} }};\n}})();")

    def body(self, file: Path) -> str:
        """Return a module's text, with constants for what it imports.

        Raises:
            ValueError: it imports or exports in another way than the join knows, or what it imports is not exported.
        """
        source = file.read_text("utf-8")
        self._names.setdefault(file, f"m{len(self._names)}")
        taken = []
        for wanted, address in _IMPORT.findall(source):
            other = (file.parent / address).resolve()
            pairs = [one.strip().partition(" as ") for one in wanted.split(",") if one.strip()]
            missing = {name for name, _, _ in pairs} - self._exports(other)
            if missing:
                raise ValueError(f"{file.name} imports {', '.join(sorted(missing))}, which {other.name} does not export")
            fields = ", ".join(f"{name}: {alias}" if alias else name for name, _, alias in pairs)
            taken.append(f"const {{ {fields} }} = {self._names[other]};\n")
        body = _COMMENT.sub("", _EXPORT.sub("", _IMPORT.sub("", source)))
        left = _LEFT.search(body)
        if left:
            raise ValueError(f"{file.name} has {left.group()!r}, which the page cannot join: see assets/player/README.md")
        return f"{''.join(taken)}{body}"

    def _exports(self, file: Path) -> set[str]:
        self._names.setdefault(file, f"m{len(self._names)}")
        return self._exported.setdefault(file, set(_EXPORTED.findall(file.read_text("utf-8"))))


def join(entry: str) -> str:
    """Join a module and all that it imports to one script: nothing has to be built before the page runs.

    Modules import by ``import { a, b as c } from "./file.js";`` and export functions, classes and constants where they are declared.

    Raises:
        ValueError: a module imports or exports in another way, or what it imports is not exported.
    """
    joiner = _Joiner()
    for file in modules(entry):
        joiner.add(file)
    return "\n".join(joiner.parts)


def _style() -> str:
    return f"const STYLE = {json.dumps((FOLDER / 'style.css').read_text('utf-8'))};"


def script(name: str) -> str:
    """Return the JavaScript of one component that stands alone, as in a report: the style as a constant, then its modules."""
    return f"'use strict';\n{_style()}\n{join(ENTRIES[name])}"


@functools.cache
def page_script() -> str:
    """Return the JavaScript of all components: the style and each module once, then a function for each component."""
    joiner = _Joiner()
    entries = {name: modules(entry) for name, entry in ENTRIES.items()}
    for file in dict.fromkeys(file for files in entries.values() for file in files[:-1]):
        joiner.add(file)
    functions = [f"{name}({_HANDED}) {{ // {files[-1].name}\n{joiner.body(files[-1])}\n}}," for name, files in entries.items()]
    parts = [_style(), *joiner.parts, "window.avlComponents = {", *functions, "};"]
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "\n})();\n"


def component(name: str, value: Any = None, **options: Any) -> gr.HTML:
    """Return one of our components as a ``gr.HTML``. ``value`` and further properties are JSON data for its script."""
    version = hashlib.sha256(page_script().encode()).hexdigest()[:12]
    return gr.HTML(
        value=value,
        html_template=f'<div class="avl avl-{name}"></div>',
        css_template="",
        head=f'<script src="{SCRIPT_ADDRESS}?{version}"></script>',  # Gradio loads it once, whatever the number of components
        js_on_load=f"window.avlComponents.{name}({_HANDED});",
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

SCRIPT_ADDRESS = "avl/page.js"
"""Where it finds its own scripts."""


async def plotly_script(request: Request) -> Response:
    """Answer with plotly.js from the installed package."""
    return await _sent(request, _plotly)


async def own_script(request: Request) -> Response:
    """Answer with the page's own scripts."""
    return await _sent(request, page_script)


@functools.cache
def _plotly() -> str:
    return PLOTLY_JS.read_text("utf-8")


@functools.cache
def _packed(source: Callable[[], str]) -> bytes:
    return gzip.compress(source().encode(), 6, mtime=0)


async def _sent(request: Request, source: Callable[[], str]) -> Response:
    """Answer with a script, packed where the browser takes that: a quarter of the bytes."""
    headers = {"Cache-Control": "max-age=86400", "Vary": "Accept-Encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(await asyncio.to_thread(source), media_type="text/javascript", headers=headers)
    packed = await asyncio.to_thread(_packed, source)
    return Response(packed, media_type="text/javascript", headers={**headers, "Content-Encoding": "gzip"})
