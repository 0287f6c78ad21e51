"""Pixels of a scene: its background and items drawn with Pillow, and the item that each patch shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from avl._paths import ASSETS
from avl.tiny.data.scenes import CANVAS, COLORS, GRID, PATCH, PITCH, SIGN_MARGIN, SIGN_POST, TAG_MARGIN, Item

SUPERSAMPLE = 2  # drawn this much larger, then averaged down, for smooth edges
FONT_FILES = ("DejaVuSansCondensed-Bold.ttf", "DejaVuSerifCondensed-Bold.ttf", "DejaVuSansMono-Bold.ttf")
FONT_FOLDER = ASSETS / "fonts"


def render(
    items: Sequence[Item],
    background: str,
    rng: np.random.Generator,
    under: Image.Image | None = None,
) -> Image.Image:
    """Draw a background and its items and return 336 x 336 RGB. `under` is a backdrop to use instead of drawing one."""
    image = backdrop(background, rng) if under is None else under.copy()
    pen = _Pen(ImageDraw.Draw(image), SUPERSAMPLE)
    for item in items:
        if item.kind == "object":
            _draw_object(pen, item, rng)
        else:
            _draw_text_item(image, pen, item)
    return image.reduce(SUPERSAMPLE)


class _Pen:
    """Draws in canvas coordinates, whatever the supersampling."""

    def __init__(self, to: ImageDraw.ImageDraw, scale: float) -> None:
        self.to, self.scale = to, scale

    def points(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def polygon(self, points: list[tuple[float, float]], fill, outline=None, width: float = 0) -> None:
        points = self.points(points)
        self.to.polygon(points, fill=fill)
        if outline is not None:
            self.to.line([*points, points[0], points[1]], fill=outline, width=round(width * self.scale), joint="curve")

    def ellipse(self, box: tuple[float, float, float, float], fill, outline=None, width: float = 0) -> None:
        (a, b), (c, d) = self.points([(box[0], box[1]), (box[2], box[3])])
        self.to.ellipse((a, b, c, d), fill=fill, outline=outline, width=round(width * self.scale))

    def rectangle(self, box: tuple[float, float, float, float], fill, outline=None, width: float = 0, radius: float = 0) -> None:
        (a, b), (c, d) = self.points([(box[0], box[1]), (box[2], box[3])])
        self.to.rounded_rectangle((a, b, c, d), radius * self.scale, fill=fill, outline=outline, width=round(width * self.scale))


def _mix(a: tuple[int, ...], b: tuple[int, ...], t: float) -> tuple[int, ...]:
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))


def _jitter(rng: np.random.Generator, color: tuple[int, ...], by: int = 12) -> tuple[int, ...]:
    return tuple(int(np.clip(c + d, 0, 255)) for c, d in zip(color, rng.integers(-by, by + 1, 3), strict=True))


def _gradient(top: tuple[int, ...], bottom: tuple[int, ...]) -> Image.Image:
    """Return a vertical gradient over the canvas, supersampled."""
    side = CANVAS * SUPERSAMPLE
    t = (np.arange(side) / side)[:, None]
    column = (np.asarray(top) * (1 - t) + np.asarray(bottom) * t).astype(np.uint8)[:, None, :]
    return Image.fromarray(column, "RGB").resize((side, side))


def _hills(rng: np.random.Generator, base: float, height: float) -> list[tuple[float, float]]:
    phase, turns = rng.uniform(0, 6.28), rng.uniform(0.8, 1.8)
    xs = np.linspace(-8, CANVAS + 8, 25)
    ys = base - height * np.sin(phase + turns * 6.28 * xs / CANVAS)
    return [*zip(xs.tolist(), ys.tolist(), strict=True), (CANVAS + 8.0, CANVAS + 8.0), (-8.0, CANVAS + 8.0)]


def backdrop(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw and return an empty scene, supersampled."""
    horizon = float(rng.uniform(0.45, 0.7)) * CANVAS
    blue = _jitter(rng, (124, 182, 232))
    pale = _jitter(rng, (218, 236, 250), 5)
    tops = {
        "sky": (_jitter(rng, (88, 156, 226)), _jitter(rng, (196, 224, 246), 6)),
        "meadow": (blue, pale),
        "beach": (_jitter(rng, (140, 200, 240)), pale),
        "desert": (_jitter(rng, (250, 206, 150)), _jitter(rng, (252, 232, 200), 5)),
        "night": (_jitter(rng, (14, 18, 52), 6), _jitter(rng, (52, 54, 110), 8)),
        "room": (_jitter(rng, (226, 214, 196), 14), _jitter(rng, (214, 200, 182), 14)),
        "snow": (_jitter(rng, (170, 188, 208), 8), _jitter(rng, (214, 224, 234), 5)),
        "sea": (_jitter(rng, (40, 150, 176)), _jitter(rng, (8, 62, 104), 8)),
        "stripes": ((0, 0, 0), (0, 0, 0)),
        "dots": ((0, 0, 0), (0, 0, 0)),
    }
    image = _gradient(*tops[kind])
    pen = _Pen(ImageDraw.Draw(image), SUPERSAMPLE)
    if kind in ("sky", "meadow"):
        for _ in range(5 if kind == "sky" else 2):
            x, y = rng.uniform(0, CANVAS), rng.uniform(10, CANVAS - 30 if kind == "sky" else horizon * 0.6)
            for dx, dy, r in ((-20, 4, 11), (-4, -3, 16), (16, 3, 12)):
                puff = (x + dx - r * 1.5, y + dy - r * 0.7, x + dx + r * 1.5, y + dy + r * 0.7)
                pen.ellipse(puff, fill=_mix(pale, (255, 255, 255), 0.45))
    if kind == "meadow":
        pen.polygon(_hills(rng, horizon - 14, 16), fill=_jitter(rng, (136, 186, 108)))
        pen.polygon(_hills(rng, horizon + 22, 10), fill=_jitter(rng, (112, 168, 84)))
    elif kind == "beach":
        pen.rectangle((-4, horizon - 46, CANVAS + 4, horizon + 20), fill=_jitter(rng, (70, 150, 190)))
        pen.polygon(_hills(rng, horizon + 8, 4), fill=_jitter(rng, (232, 212, 164), 8))
    elif kind == "desert":
        pen.polygon(_hills(rng, horizon - 10, 18), fill=_jitter(rng, (222, 172, 112), 8))
        pen.polygon(_hills(rng, horizon + 34, 12), fill=_jitter(rng, (206, 150, 90), 8))
    elif kind == "snow":
        pen.polygon(_hills(rng, horizon - 12, 18), fill=_jitter(rng, (224, 232, 242), 5))
        pen.polygon(_hills(rng, horizon + 26, 9), fill=_jitter(rng, (240, 244, 250), 4))
    elif kind == "night":
        for x, y, r in np.stack([rng.uniform(0, CANVAS, 60), rng.uniform(0, CANVAS, 60), rng.uniform(0.5, 1.3, 60)], -1).tolist():
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(220, 222, 240))
    elif kind == "room":
        wood = _jitter(rng, (158, 116, 82))
        pen.rectangle((-4, horizon, CANVAS + 4, CANVAS + 4), fill=wood)
        pen.rectangle((-4, horizon - 8, CANVAS + 4, horizon), fill=(240, 236, 228))
        for index, y in enumerate(np.arange(horizon + 18, CANVAS, 18)):
            pen.rectangle((-4, y, CANVAS + 4, y + 1.2), fill=_mix(wood, (0, 0, 0), 0.25))
            for x in np.arange(-20.0 + 37 * (index % 3), CANVAS, 110):
                pen.rectangle((x, y - 17, x + 1.2, y), fill=_mix(wood, (0, 0, 0), 0.25))
    elif kind == "sea":
        line = _mix(tops[kind][0], (255, 255, 255), 0.35)
        for y in np.arange(16 + rng.uniform(0, 20), CANVAS, 44):
            phase = rng.uniform(0, 6.28)
            xs = np.linspace(-6, CANVAS + 6, 60)
            points = pen.points(list(zip(xs.tolist(), (y + 4 * np.sin(phase + xs / 11)).tolist(), strict=True)))
            pen.to.line(points, fill=_mix(line, tops[kind][1], y / CANVAS), width=3)
    elif kind in ("stripes", "dots"):
        first = _jitter(rng, (232, 226, 236), 18)
        second = _mix(first, _jitter(rng, (170, 186, 200), 30), 0.55)
        pen.rectangle((-4, -4, CANVAS + 4, CANVAS + 4), fill=first)
        if kind == "stripes":
            lean, step, start = float(rng.choice([0, 0, 120, -120])), float(rng.uniform(26, 40)), float(rng.uniform(-40, 0))
            for x in np.arange(start - 130, CANVAS + 130, step):
                pen.polygon([(x, -4), (x + step / 2, -4), (x + step / 2 + lean, CANVAS + 4), (x + lean, CANVAS + 4)], fill=second)
        else:
            step, start = float(rng.uniform(26, 36)), float(rng.uniform(-20, 0))
            for j, y in enumerate(np.arange(start, CANVAS + 20, step)):
                for x in np.arange(start + (step / 2 if j % 2 else 0), CANVAS + 20, step):
                    pen.ellipse((x - 4.5, y - 4.5, x + 4.5, y + 4.5), fill=second)
    return image


def silhouette(shape: str, box: tuple[float, float, float, float]) -> list[tuple[str, list]]:
    """Return the outline of a shape as parts that fill its box: ("polygon", points) or ("ellipse", [corner, corner])."""
    x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + w * u, y + h * v) for u, v in points]

    if shape in ("circle", "ring"):
        return [("ellipse", at((0, 0), (1, 1)))]
    if shape == "square":
        return [("polygon", at((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)))]
    if shape == "triangle":
        return [("polygon", at((0.5, 0.03), (0.99, 0.95), (0.01, 0.95)))]
    if shape == "star":
        corners = []
        for k in range(10):
            radius = 0.53 if k % 2 == 0 else 0.23
            corners.append((0.5 + radius * math.sin(k * math.pi / 5), 0.54 - radius * math.cos(k * math.pi / 5)))
        return [("polygon", at(*corners))]
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        u = 0.5 + 0.5 * np.sin(t) ** 3
        v = 0.45 - (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 32
        return [("polygon", at(*zip(u.tolist(), v.tolist(), strict=True)))]
    if shape == "house":
        return [("polygon", at((0.5, 0.0), (1.0, 0.42), (0.88, 0.42), (0.88, 0.98), (0.12, 0.98), (0.12, 0.42), (0.0, 0.42)))]
    if shape == "tree":
        return [("polygon", at((0.5, 0), (0.72, 0.3), (0.64, 0.3), (0.86, 0.56), (0.74, 0.56), (0.96, 0.82), (0.04, 0.82), (0.26, 0.56),
                               (0.14, 0.56), (0.36, 0.3), (0.28, 0.3)))]  # fmt: skip
    if shape == "cup":
        return [("polygon", at((0.05, 0.14), (0.72, 0.14), (0.66, 0.78), (0.54, 0.94), (0.23, 0.94), (0.11, 0.78)))]
    # fish
    t = np.linspace(0.42, 2 * math.pi - 0.42, 30)
    body = [(0.44 + 0.43 * math.cos(a), 0.5 + 0.34 * math.sin(a)) for a in t]
    return [("polygon", at(*body, (1.0, 0.18), (0.94, 0.5), (1.0, 0.82)))]


def _draw_object(pen: _Pen, item: Item, rng: np.random.Generator) -> None:
    x, y, w = item.box[0], item.box[1], item.box[2] - item.box[0]
    main = _jitter(rng, item.tint or COLORS[item.color], 9)
    dark, light = _mix(main, (20, 16, 24), 0.62), _mix(main, (255, 255, 255), 0.45)
    line = 2.6

    def box(u0: float, v0: float, u1: float, v1: float) -> tuple[float, float, float, float]:
        return (x + w * u0, y + w * v0, x + w * u1, y + w * v1)

    if item.shape == "tree":
        pen.rectangle(box(0.42, 0.8, 0.58, 1.0), fill=(110, 74, 44), outline=(58, 40, 26), width=2)
    if item.shape == "ring":
        (a, b), (c, d) = pen.points([(item.box[0], item.box[1]), (item.box[2], item.box[3])])
        thick = 0.25 * w
        pen.to.ellipse((a, b, c, d), outline=dark, width=round(thick * pen.scale))
        inset = line * pen.scale
        pen.to.ellipse((a + inset, b + inset, c - inset, d - inset), outline=main, width=round((thick - 2 * line) * pen.scale))
        return
    if item.shape == "cup":
        (a, b), (c, d) = pen.points([box(0.56, 0.26, 1.0, 0.7)[:2], box(0.56, 0.26, 1.0, 0.7)[2:]])
        pen.to.ellipse((a, b, c, d), outline=dark, width=round(0.11 * w * pen.scale))
    for kind, points in silhouette(item.shape, item.box):
        if kind == "ellipse":
            pen.ellipse((*points[0], *points[1]), fill=main, outline=dark, width=line)
        else:
            pen.polygon(points, fill=main, outline=dark, width=line)
    if item.shape == "circle":
        pen.ellipse(box(0.22, 0.16, 0.42, 0.34), fill=light)
    elif item.shape == "house":
        pen.rectangle(box(0.42, 0.62, 0.6, 0.98), fill=dark)
        pen.rectangle(box(0.2, 0.52, 0.36, 0.68), fill=light, outline=dark, width=1.5)
        pen.rectangle(box(0.66, 0.52, 0.82, 0.68), fill=light, outline=dark, width=1.5)
    elif item.shape == "cup":
        pen.ellipse(box(0.09, 0.06, 0.68, 0.22), fill=dark)
        pen.ellipse(box(0.14, 0.09, 0.63, 0.19), fill=light)
    elif item.shape == "fish":
        pen.ellipse(box(0.13, 0.36, 0.25, 0.48), fill=(250, 250, 250), outline=dark, width=1.4)
        pen.ellipse(box(0.16, 0.39, 0.22, 0.45), fill=(20, 20, 24))
        pen.polygon([(x + w * u, y + w * v) for u, v in ((0.42, 0.46), (0.62, 0.4), (0.62, 0.62))], fill=light)
    elif item.shape == "heart":
        pen.ellipse(box(0.17, 0.16, 0.36, 0.32), fill=light)


_BOARDS = (((250, 248, 240), (36, 36, 44)), ((196, 150, 98), (44, 24, 8)), ((28, 92, 70), (248, 248, 240)), ((34, 48, 92), (250, 240, 200)),
           ((48, 46, 50), (250, 250, 250)))  # fmt: skip
_TAGS = ((255, 244, 200), (250, 250, 250), (255, 224, 120), (226, 240, 220))


@lru_cache(maxsize=512)
def _glyph(character: str, font_file: str, height: int) -> Image.Image:
    """Return the mask of one letter, squeezed to fit the pitch."""
    font = ImageFont.truetype(str(FONT_FOLDER / font_file), height)
    box = font.getbbox(character)
    mask = Image.new("L", (int(box[2] - box[0]), int(box[3] - box[1])))
    ImageDraw.Draw(mask).text((-box[0], -box[1]), character, font=font, fill=255)
    widest = (PITCH - 4) * SUPERSAMPLE
    return mask.resize((widest, mask.height)) if mask.width > widest else mask


def _write(image: Image.Image, pen: _Pen, text: str, left: float, middle: float, style: int, fill: tuple[int, int, int]) -> None:
    """Write letters at equal pitch, from the first letter's cell at x = `left`, centered at y = `middle`, in canvas pixels."""
    font_file = FONT_FILES[style % len(FONT_FILES)]
    for index, character in enumerate(text):
        glyph = _glyph(character, font_file, 41 * SUPERSAMPLE)
        ((x, y),) = pen.points([(left + PITCH * (index + 0.5), middle)])
        image.paste(fill, (round(x - glyph.width / 2), round(y - glyph.height / 2)), glyph)


def _draw_text_item(image: Image.Image, pen: _Pen, item: Item) -> None:
    left, top, right, bottom = item.box
    if item.kind == "sign":
        board, ink = _BOARDS[item.style // 7 % len(_BOARDS)]
        for x in (left + 22, right - 30):
            pen.rectangle((x, bottom - 20, x + 8, bottom), fill=(104, 76, 50))
        pen.rectangle((left, top, right, bottom - SIGN_POST), fill=board, outline=_mix(board, (0, 0, 0), 0.45), width=2.5, radius=5)
        _write(image, pen, item.text, left + SIGN_MARGIN, (top + bottom - SIGN_POST) / 2, item.style, ink)
        return
    paper = _TAGS[item.style // 7 % len(_TAGS)]
    middle = (top + bottom) / 2
    corner = [(left + 16, top), (right, top), (right, bottom), (left + 16, bottom), (left, middle)]
    pen.polygon(corner, fill=paper, outline=(96, 80, 56), width=2)
    pen.ellipse((left + 9, middle - 4, left + 17, middle + 4), fill=(120, 100, 76))
    _write(image, pen, "$" + item.text, left + TAG_MARGIN, middle, item.style, (150, 24, 24) if item.style % 2 else (30, 30, 36))


def owners(items: Sequence[Item], least: float = 0.2) -> np.ndarray:
    """Find the item that each patch shows.

    Returns:
        int array [24, 24]: index into `items`, or -1 where no item covers at least the fraction `least` of the patch.
    """
    mask = Image.new("L", (CANVAS, CANVAS))
    pen = _Pen(ImageDraw.Draw(mask), 1)
    for index, item in enumerate(items):
        if item.kind == "object":
            for kind, points in silhouette(item.shape, item.box):
                if kind == "ellipse":
                    pen.ellipse((*points[0], *points[1]), fill=index + 1)
                else:
                    pen.polygon(points, fill=index + 1)
        else:
            pen.rectangle((item.box[0], item.box[1], item.box[2], item.box[3] - (SIGN_POST if item.kind == "sign" else 0)), fill=index + 1)
    tiles = np.asarray(mask).reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3)
    patches = tiles.reshape(GRID, GRID, PATCH * PATCH)
    shares = np.stack([(patches == index + 1).mean(-1) for index in range(len(items))] or [np.zeros(patches.shape[:2])], -1)
    return np.where(shares.max(-1) >= least, shares.argmax(-1), -1) if items else np.full(patches.shape[:2], -1)
