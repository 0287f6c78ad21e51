"""The look of charts: one palette by position, the bundled font, matplotlib without a display. matplotlib is in the extra ``bench``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avl._paths import ASSETS

PALETTE = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#7A7A00")
"""Okabe and Ito's palette, told apart with every kind of color vision (yellow darkened, to be seen on white); the markers differ too."""

MARKERS = "osD^vPX*"
INK, GRAY, PALE = "#26262b", "#6b6b73", "#e3e3e8"
FONT = ASSETS / "fonts" / "DejaVuSansCondensed-Bold.ttf"


def style(place: int) -> dict[str, Any]:
    """Return color, marker and line of the entry at ``place``, as keywords of ``plot``."""
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)], "markersize": 7, "linewidth": 2.2}


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
        "axes.titleweight": "bold", "axes.labelweight": "bold", "figure.labelweight": "bold",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRAY, "xtick.color": GRAY, "ytick.color": GRAY,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": PALE, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
    }  # fmt: skip
    with matplotlib.rc_context(look):
        made = Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
        FigureCanvasAgg(made)
        yield made, list(made.subplots(1, columns, squeeze=False)[0])


def legend(figure: Any, panel: Any) -> None:
    """Put the legend of ``panel`` below all panels."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)


def save(figure: Any, path: Path) -> Path:
    """Write a PNG; the same figure gives the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path
