"""What a benchmark result says: text, Markdown tables, the README's table, and PNG plots. Reads the result's JSON and nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from avl._paths import ASSETS

Result = dict[str, Any]

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""The README's performance table stands between these two lines."""

FONT = ASSETS / "fonts" / "DejaVuSansCondensed-Bold.ttf"
COLOURS = {"full": "#0072B2", "evict": "#E69F00", "avl": "#D55E00", "prune": "#CC79A7"}
OTHERS = ("#009E73", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's palette, told apart with every kind of colour vision; the markers differ too."""

INK, GREY, PALE = "#26262b", "#6b6b73", "#e3e3e8"
SCALE = 2  # drawn twice as large and reduced: smooth lines without a drawing library
WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 96, 40, 112, 128


def machine(result: Result) -> str:
    """Hardware and versions in one line."""
    card = result["machine"]
    what = card["gpu"] or f"{card['cpu']}, {card['threads']} of {card['cores']} threads"
    versions = [f"{name} {card[name]}" for name in ("torch", "transformers", "triton", "cuda") if card.get(name)]
    return ", ".join([what, f"Python {card['python']}", *versions])


def subject(result: Result) -> str:
    """Model, dtype and prompt in one line."""
    model, request = result["model"], result["request"]
    weights = "" if model["weights"] == "loaded" else f" ({model['weights']} weights)"
    return (
        f"{model['name']}{weights}, {model['dtype']} on {model['device']}, {request['n_image']} image + {request['n_text']} text tokens, "
        f"{request['new_tokens']} new tokens"
    )


def steps(result: Result) -> str:
    """How decode steps were run."""
    return "CUDA graphs" if result.get("decode") == "graphs" else "eager"


def title(result: Result, arm: str) -> str:
    """A policy's name for people."""
    names = {"full": "full attention", "evict": "evict only", "avl": "A-VL", "prune": "A-VL, pruned prompt"}
    return names.get(arm) or result["arms"][arm]["label"]


def amount(size: float | None) -> str:
    """Bytes for people, decimal units."""
    if size is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.1f} kB"


def number(value: float | None) -> str:
    """Three significant digits or so."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def header(result: Result) -> str:
    """What it runs on, what is measured, and the roofline card."""
    measured, roofline = result["bandwidth"], result["roofline"]
    lines = [
        machine(result),
        subject(result) + f"; decode attention: {result['implementation']}; steps: {steps(result)}"
        f"; layers: {result.get('layers', 'the model')}",
        f"bandwidth of this run in GB/s: copy {measured['copy']:.1f}, triad {measured['triad']:.1f}, read {measured['read']:.1f}; "
        f"matrix product {measured['tflops']:.2f} TFLOP/s",
        f"roofline at copy bandwidth: a step reads {amount(roofline['weight_bytes'])} of weights, and per row",
    ]
    for arm, facts in roofline["arms"].items():
        floors = ", ".join(f"{floor:.3f} ms at batch {batch}" for batch, floor in facts["floor_ms"].items())
        lines.append(
            f"  {title(result, arm):20} {result['arms'][arm]['label']}: KV stored {amount(facts['stored_bytes'])}, "
            f"read {amount(facts['read_bytes'])}; floor {floors}"
        )
    if result["evidence"] != "gpu":
        lines.append("No GPU: a CPU's caches hold part of a small model, so a share of the floor can exceed 100 %.")
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _quartiles(spread: dict[str, Any] | None) -> str:
    return "" if spread is None else f"{spread['median']:.2f} ({spread['q1']:.2f}–{spread['q3']:.2f})"


def tables(result: Result) -> str:
    """Everything measured, as Markdown."""
    head = ["batch", "policy", "first token ms", "ms per token", "p99 of a step", "tokens/s", "times faster (quartiles)"]
    head += ["floor ms", "share of floor", "KV stored", "KV read per step", "KV peak", "torch peak"]
    rows = [
        [
            str(row["batch"]), title(result, row["arm"]), number(row["ttft_ms"]["median"]), number(row["tpot_ms"]["median"]),
            number(row["step_p99_ms"]), number(row["tokens_per_s"]), _quartiles(row["ratio"]), number(row["floor_ms"]),
            f"{row['floor_share']:.0%}", amount(row["stored_bytes"]), amount(row["read_bytes"]), amount(row["kv_peak_bytes"]),
            amount(row["torch_peak_bytes"]),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    parts = [f"**{subject(result)}.** {machine(result)}; medians of {result['repeats']} runs, the arms alternating; {result['date'][:10]}."]
    parts.append(_table(head, rows, 2))
    if result.get("decode") == "graphs":
        took = ", ".join(f"{title(result, row['arm'])} {row['prepare_ms']['median']:.0f}" for row in result["rows"])
        how = "warmed up once per shape and captured for every answer, in no step's time"
        parts.append(f"Decode steps are CUDA graphs, {how}. It took ms: {took}.")
    kinds = [
        [str(row["batch"]), title(result, row["arm"]), number(row["core_ms"]["median"]), number(row["core_floor_ms"]),
         number(row["update_ms"]["median"]), number(row["update_floor_ms"])]
        for row in result["rows"] if "core_ms" in row and "update_ms" in row
    ]  # fmt: skip
    if kinds:
        parts.append(_table(["batch", "policy", "core step ms", "its floor", "update step ms", "its floor"], kinds, 2))
    if result["references"]:
        ours = {row["batch"]: row["tpot_ms"]["median"] for row in result["rows"] if row["arm"] == "avl"}
        found = []
        for entry in result["references"]:
            if entry["tpot_ms"] is None:
                found.append([str(entry["batch"]), entry["name"], "–", "–", entry["note"]])
                continue
            ms = entry["tpot_ms"]["median"]
            over = f"{ms / ours[entry['batch']]:.2f}" if entry["batch"] in ours else "–"
            found.append([str(entry["batch"]), entry["name"], number(entry["ttft_ms"]["median"]), number(ms), over])
        parts.append("Outside references, full attention by transformers' own code; no ratio above rests on them:")
        parts.append(_table(["batch", "reference", "first token ms", "ms per token", "over our A-VL"], found, 2))
    if result["largest"]:
        sizes = [
            [title(result, arm), str(entry["predicted"]), number_or_dash(entry["confirmed"]), number(entry["tokens_per_s"])]
            for arm, entry in result["largest"].items()
        ]
        parts.append(_table(["largest batch that fits", "predicted", "found by trying", "tokens/s there"], sizes, 1))
    return "\n\n".join([*parts, "\n".join(f"* {line}" for line in sentences(result))])


def number_or_dash(count: int | None) -> str:
    """A whole number, or a dash where there is none."""
    return "–" if count is None else str(count)


def sentences(result: Result) -> list[str]:
    """What the numbers mean, the cells where a policy does not pay first."""
    lines = []
    for row in result["rows"]:
        ratio = row["ratio"]
        if ratio is None:
            continue
        where = f"{title(result, row['arm'])} at batch {row['batch']}"
        base = title(result, ratio["to"])
        if ratio["median"] < 1:
            verdict = f"{where} does not pay: a token takes {1 / ratio['median']:.2f} times as long as with {base}"
        elif ratio["q1"] <= 1 <= ratio["q3"]:
            verdict = f"{where} takes about as long as {base} ({ratio['median']:.2f} times faster, within the spread of the runs)"
        else:
            continue
        lines.append(f"{verdict}; by bytes it could be {row['floor_ratio']:.2f} times faster.")
    lines += [f"Batch {gap['batch']}, {title(result, gap['arm'])}: skipped, {gap['reason']}." for gap in result["skipped"]]
    if result["evidence"] != "gpu":
        lines.append("Measured on a CPU: these times say nothing about a GPU.")
    return lines


def render(readme: str, results: Sequence[Result]) -> str:
    """The README with the tables of ``results`` between its two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    start, stop = readme.find(BEGIN), readme.find(END)
    if start < 0 or stop < start or readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README needs the lines {BEGIN} and {END} once each, in this order")
    body = "\n\n".join(tables(result) for result in results)
    return f"{readme[:start]}{BEGIN}\n\n{body}\n\n{readme[stop:]}"


class _Chart:
    """A plot's frame: title, legend, axes with units, caption. Columns stand at equal distances, one for each label."""

    def __init__(self, heading: str, y_title: str, labels: Sequence[str], x_title: str, top: float, caption: Sequence[str]) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)
        self.labels, self._legend_x = labels, float(LEFT)
        step = _nice(top / 5)
        self.top = step * math.ceil(top / step * 1.02)
        self.text(LEFT, 24, heading, 22, INK, "lm")
        for count in range(round(self.top / step) + 1):
            y = self.y(count * step)
            self.line([(LEFT, y), (WIDTH - RIGHT, y)], PALE if count else GREY, 1)
            self.text(LEFT - 10, y, f"{count * step:g}", 14, GREY, "rm")
        for place, label in enumerate(labels):
            self.text(self.x(place), HEIGHT - BOTTOM + 18, label, 14, GREY, "mm")
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 44, x_title, 15, INK, "mm")
        side = Image.new("L", ((HEIGHT - TOP - BOTTOM) * SCALE, 24 * SCALE), 255)
        ImageDraw.Draw(side).text((side.width / 2, side.height / 2), y_title, font=_font(15), fill=INK, anchor="mm")
        self.image.paste(side.rotate(90, expand=True).convert("RGB"), (10 * SCALE, TOP * SCALE))
        for line, words in enumerate(caption):
            self.text(LEFT, HEIGHT - 46 + 20 * line, words, 12, GREY, "lm")

    def x(self, place: float) -> float:
        """Pixel of a column's middle."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / len(self.labels)

    def y(self, value: float) -> float:
        """Pixel of a value."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top

    def text(self, x: float, y: float, words: str, size: int, colour: str, anchor: str) -> None:
        """One line of text, made smaller where it would leave the picture."""
        while size > 8 and anchor[0] == "l" and x + _font(size).getlength(words) / SCALE > WIDTH - 8:
            size -= 1
        self.pen.text((x * SCALE, y * SCALE), words, font=_font(size), fill=colour, anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float, dashed: bool = False) -> None:
        """A line through points."""
        if not dashed:
            self.pen.line([(x * SCALE, y * SCALE) for x, y in points], fill=colour, width=round(width * SCALE), joint="curve")
            return
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            count = max(1, round(math.hypot(x1 - x0, y1 - y0) / 6))
            for piece in range(0, count, 2):
                ends = [(x0 + (x1 - x0) * t / count, y0 + (y1 - y0) * t / count) for t in (piece, min(piece + 1, count))]
                self.line(ends, colour, width)

    def mark(self, x: float, y: float, colour: str, kind: int) -> None:
        """A marker: circle, square, triangle or diamond."""
        r = 6.0
        if kind % 4 == 0:
            self.pen.ellipse([(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE], fill=colour)
            return
        shapes: list[list[tuple[float, float]]] = [
            [(-1, -1), (1, -1), (1, 1), (-1, 1)],
            [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
            [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        ]
        self.pen.polygon([((x + r * dx) * SCALE, (y + r * dy) * SCALE) for dx, dy in shapes[kind % 4 - 1]], fill=colour)

    def legend(self, words: str, draw: Callable[[float, float], None]) -> None:
        """The next entry of the legend; ``draw(x, y)`` puts its symbol with the middle there."""
        draw(self._legend_x + 12, 66)
        self.text(self._legend_x + 32, 66, words, 14, INK, "lm")
        self._legend_x += 54 + _font(14).getlength(words) / SCALE

    def save(self, path: Path) -> Path:
        """Write the PNG."""
        self.image.reduce(SCALE).save(path, optimize=True)
        return path


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), size * SCALE)


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(step, 1e-12)))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * 0.999)


def _lines(result: Result, value: Callable[[Result], dict[str, Any] | None], floor: str, heading: str, y_title: str, path: Path) -> Path:
    """One line an arm over the batches, quartiles as whiskers, the floor dashed."""
    batches = sorted({row["batch"] for row in result["rows"]})
    rows = [row for row in result["rows"] if value(row) is not None]
    top = max(max((value(row) or {})["q3"], row[floor]) for row in rows)
    chart = _Chart(heading, y_title, [str(batch) for batch in batches], "rows decoded at once (batch)", max(top, 1e-9), _caption(result))
    if floor == "floor_ratio":
        chart.line([(LEFT, chart.y(1)), (WIDTH - RIGHT, chart.y(1))], INK, 1.5)
        chart.text(WIDTH - RIGHT, chart.y(1) + 12, "below this line it does not pay", 12, GREY, "rm")
    spare = list(OTHERS)
    for kind, arm in enumerate(result["arms"]):
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        colour = COLOURS.get(arm) or spare.pop(0)
        spare = spare or list(OTHERS)
        # arms stand a little apart, so that whiskers do not hide each other
        at = [chart.x(batches.index(row["batch"]) + (kind - (len(result["arms"]) - 1) / 2) * 0.05) for row in own]
        chart.line([(x, chart.y(row[floor])) for x, row in zip(at, own, strict=True)], colour, 1.5, dashed=True)
        points = []
        for x, row in zip(at, own, strict=True):
            spread = value(row) or {}
            chart.line([(x, chart.y(spread["q1"])), (x, chart.y(spread["q3"]))], colour, 2)
            chart.line([(x - 10, chart.y(row[floor])), (x + 10, chart.y(row[floor]))], colour, 1.5)
            points.append((x, chart.y(spread["median"])))
        chart.line(points, colour, 2.5)
        for x, y in points:
            chart.mark(x, y, colour, kind)
        chart.legend(title(result, arm), lambda x, y, colour=colour, kind=kind: chart.mark(x, y, colour, kind))  # type: ignore[misc]
    chart.legend("floor by bytes", lambda x, y: chart.line([(x - 12, y), (x + 12, y)], GREY, 1.5, dashed=True))
    return chart.save(path)


def _memory(result: Result, path: Path) -> Path:
    """Bars: KV bytes of one row that each arm stores, and reads in a mean step."""
    arms = result["roofline"]["arms"]
    unit, scale = ("GB", 1e9) if max(facts["stored_bytes"] for facts in arms.values()) >= 1e9 else ("MB", 1e6)
    top = max(max(facts["stored_bytes"], facts["read_bytes"]) for facts in arms.values()) / scale
    chart = _Chart("Keys and values of one row", unit, [title(result, arm) for arm in arms], "mean over the answer", top, _caption(result))
    colours = {"stored_bytes": "#0072B2", "read_bytes": "#E69F00"}
    half = (WIDTH - LEFT - RIGHT) / len(arms) * 0.26
    for place, facts in enumerate(arms.values()):
        for side, name in zip((-1, 1), colours, strict=True):
            colour = colours[name]
            value = facts[name] / scale
            middle = chart.x(place) + side * half * 0.55
            box = (middle - half / 2, chart.y(value), middle + half / 2, chart.y(0))
            chart.pen.rectangle([edge * SCALE for edge in box], fill=colour)
            chart.text(middle, chart.y(value) - 11, number(value), 13, INK, "mm")
    for words, colour in zip(("stored", "read per step"), colours.values(), strict=True):
        chart.legend(words, lambda x, y, colour=colour: chart.mark(x, y, colour, 1))  # type: ignore[misc]
    return chart.save(path)


def _caption(result: Result) -> tuple[str, str]:
    return f"{subject(result)}; {result['date'][:10]}", machine(result)


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw ``tpot.png`` (time per token over batch), ``ratio.png`` (against the first policy), ``kv.png``; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [_memory(result, folder / "kv.png")]
    if result["rows"]:
        files.append(_lines(result, lambda row: row["tpot_ms"], "floor_ms", "Time per token", "milliseconds", folder / "tpot.png"))
    if any(row["ratio"] for row in result["rows"]):
        base = title(result, next(row["ratio"]["to"] for row in result["rows"] if row["ratio"]))
        heading, y_title = f"Times faster than {base}", f"time of {base} / time"
        files.append(_lines(result, lambda row: row["ratio"], "floor_ratio", heading, y_title, folder / "ratio.png"))
    return files
