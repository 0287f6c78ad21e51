"""The look of charts: one palette by position, the bundled font, PNG or SVG without a display. matplotlib is in the extra ``bench``."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from avl._paths import ASSETS

PALETTE = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#7A7A00")
"""Okabe and Ito's palette, told apart with every kind of color vision (yellow darkened, to be seen on white); the markers differ too."""

MARKERS = "osD^vPX*"
INK, GRAY, PALE = "#26262b", "#6b6b73", "#e3e3e8"
FONT = ASSETS / "fonts" / "DejaVuSansCondensed-Bold.ttf"


def style(place: int) -> dict[str, Any]:
    """Return color, marker and line of the entry at ``place``, as keywords of ``plot``."""
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)], "markersize": 7, "linewidth": 2.2}


def shade(part: float) -> tuple[float, float, float]:
    """Return a color between light blue (0) and ink (1), for lines that have an order."""
    light, dark = (0.55, 0.78, 0.93), (0.09, 0.13, 0.29)
    return light[0] + part * (dark[0] - light[0]), light[1] + part * (dark[1] - light[1]), light[2] + part * (dark[2] - light[2])


def require_matplotlib() -> None:
    """Raise OSError with what to do where matplotlib is not installed: asked before anything long is measured that is to be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise OSError("drawing needs matplotlib, which is not installed: pip install 'matplotlib>=3.10'") from None


@contextmanager
def figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Any, list[Any]]]:
    """Give a figure of ``width x height`` inches at 100 dpi and its panels side by side; nothing global is changed.

    Raises:
        OSError: matplotlib is not installed.
    """
    with _blank(width, height) as made:
        yield made, list(made.subplots(1, columns, squeeze=False)[0])


@contextmanager
def mosaic(width: float, height: float, layout: Sequence[Sequence[str]], **options: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give a figure and its panels by name, laid out as the rows of ``layout`` say; a name that repeats spans its cells, "." is empty.

    Args:
        width: in inches at 100 dpi.
        height: likewise.
        layout: rows of names.
        options: of matplotlib's ``subplot_mosaic``.

    Raises:
        OSError: matplotlib is not installed.
    """
    with _blank(width, height) as made:
        yield made, dict(made.subplot_mosaic([list(row) for row in layout], **options))


@contextmanager
def _blank(width: float, height: float) -> Iterator[Any]:
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    known = {font.name for font in fontManager.ttflist if Path(font.fname) == FONT}
    if not known:
        fontManager.addfont(FONT)
        known = {fontManager.ttflist[-1].name}
    look: Any = {
        "font.family": known.pop(), "font.weight": "bold", "font.stretch": "condensed",
        "axes.titleweight": "bold", "axes.labelweight": "bold", "figure.labelweight": "bold", "figure.titleweight": "bold",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRAY, "xtick.color": GRAY, "ytick.color": GRAY,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": PALE, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
        "svg.hashsalt": "avl",
    }  # fmt: skip
    with matplotlib.rc_context(look):
        made = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
        FigureCanvasAgg(made)
        yield made


def legend(figure: Any, panel: Any) -> None:
    """Put the legend of ``panel`` below all panels."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)


def save(figure: Any, path: Path) -> Path:
    """Write a PNG; the same figure gives the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def save_svg(figure: Any, path: Path, title: str, description: str) -> Path:
    """Write an SVG with a title and a description for who cannot see it; the same figure gives the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = drawn.getvalue()
    start = text.index(">", text.index("<svg ")) + 1
    told = f'\n <title id="title">{escape(title)}</title>\n <desc id="desc">{escape(description)}</desc>'
    tag = text[:start].removesuffix(">") + ' role="img" aria-labelledby="title desc">'
    path.write_text(tag + told + text[start:], encoding="utf-8")
    return path


def band(panel: Any, x: Sequence[float], spread: dict[str, list[float]], factor: float = 1, **look: Any) -> None:
    """Draw a median as a line with its quartiles as a band: ``spread`` has ``q1``, ``median`` and ``q3``."""
    q1, median, q3 = ([factor * value for value in spread[name]] for name in ("q1", "median", "q3"))
    panel.fill_between(x, q1, q3, color=look["color"], alpha=0.18, linewidth=0)
    panel.plot(x, median, **look)
