"""Drawn scenes with known contents: the data of the bundled model, and the page's "New scene" button.

A scene is a 336 x 336 picture: a background, up to four coloured objects, perhaps a sign with a word and a price tag. Everything in
it is known, so every question has a right answer. Drawing needs Pillow and numpy alone and takes a few milliseconds; the same seed gives
the same scene on every machine. Held out of training: some colour and shape pairs, a fifth of the words, a fifth of the prices.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .words import TEST_NUMBERS, TEST_WORDS, TRAIN_NUMBERS, TRAIN_WORDS, is_test_word

CANVAS = 336  # pixels, both sides
PATCH = 14
GRID = CANVAS // PATCH
PITCH = 28  # pixels from one letter of a sign to the next
SIGN_MARGIN, SIGN_POST, TAG_MARGIN = 9.0, 18.0, 20.0  # pixels left of the first letter, below the board
MAX_LETTERS = 5
MAX_DIGITS = 2
SUPERSAMPLE = 2  # drawn this much larger, then averaged down: smooth edges

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "house", "tree", "cup", "fish")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 132, 31),
    "yellow": (250, 214, 40),
    "green": (46, 150, 62),
    "blue": (38, 92, 210),
    "purple": (126, 52, 168),
    "pink": (244, 130, 182),
    "white": (246, 246, 242),
}
FAR_COLOUR = 60.0  # distance in RGB from every named colour at which a colour is none of them
SIZES: dict[str, tuple[int, int]] = {"small": (42, 48), "medium": (67, 75), "large": (94, 103)}  # pixels
POSITIONS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
BACKGROUNDS = ("sky", "meadow", "beach", "desert", "night", "room", "snow", "sea", "stripes", "dots")
SETTINGS = {  # how a sentence names a background
    "sky": "the sky",
    "meadow": "a meadow",
    "beach": "a beach",
    "desert": "a desert",
    "night": "the night",
    "room": "a room",
    "snow": "the snow",
    "sea": "the sea",
    "stripes": "stripes",
    "dots": "dots",
}
PLURALS = {s: "fish" if s == "fish" else s + "s" for s in SHAPES}
FONT_FILES = ("DejaVuSansCondensed-Bold.ttf", "DejaVuSerifCondensed-Bold.ttf", "DejaVuSansMono-Bold.ttf")
FONT_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "fonts"


def is_test_pair(colour: str, shape: str) -> bool:
    """Whether this colour and shape never meet in a training picture."""
    return zlib.crc32(f"{colour} {shape}".encode()) % 7 == 0


@dataclass(frozen=True)
class Item:
    """One thing in a scene. `box` is (left, top, right, bottom) in pixels; `position` one of POSITIONS."""

    kind: str  # "object", "sign" or "tag"
    box: tuple[float, float, float, float]
    position: str
    shape: str = ""
    colour: str = ""
    size: str = ""
    text: str = ""  # the sign's word in capitals, or the price without its "$"
    style: int = 0  # chooses font and board; no question asks for it
    tint: tuple[int, int, int] | None = None  # drawn in this colour, which has no name; `colour` is then ""

    @property
    def centre(self) -> tuple[float, float]:
        """The centre in pixels, (x, y)."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def pair(self) -> str:
        """Colour and shape, as in "red star"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Question:
    """A question with its right answer. `task` is "qa", "read" or "describe"; `facts` are what a right description must state."""

    text: str
    answer: str
    task: str
    facts: tuple[str, ...] = ()
    kind: str = ""


@dataclass
class Scene:
    """A picture and all that is known about it."""

    image: Image.Image
    background: str
    items: tuple[Item, ...]
    seed: int = 0
    split: str = "test"
    questions: list[Question] = field(default_factory=list)

    @property
    def objects(self) -> list[Item]:
        """The objects in reading order."""
        return [i for i in self.items if i.kind == "object"]

    @property
    def sign(self) -> Item | None:
        """The sign, if there is one."""
        return next((i for i in self.items if i.kind == "sign"), None)

    @property
    def tag(self) -> Item | None:
        """The price tag, if there is one."""
        return next((i for i in self.items if i.kind == "tag"), None)

    @property
    def facts(self) -> tuple[str, ...]:
        """Every fact that a full description states."""
        return (self.background, f"{len(self.objects)} objects", *(f for i in self.items for f in item_facts(i)))


def item_facts(item: Item) -> tuple[str, ...]:
    """What there is to say about one item, a short string for each fact."""
    if item.kind == "object":
        return (item.pair, f"{item.pair} is {item.size}", f"{item.pair} at {item.position}")
    name = "sign" if item.kind == "sign" else "price"
    return (f"{name} {item.text}", f"{name} at {item.position}")


# ---------------------------------------------------------------------------------------------------------------- layout


def draw(seed: int, split: str = "test") -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: any integer ≥ 0; the same seed and split give the same scene.
        split: "train" or "test". A test scene has at least one held-out colour and shape pair; its word and price are held out.

    Returns:
        The scene, 336 x 336 RGB, with every question that can be asked about it.

    Raises:
        ValueError: for another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    items = lay_out(rng, split)
    background = str(rng.choice(BACKGROUNDS))
    scene = Scene(render(items, background, rng), background, tuple(items), seed, split)
    from .questions import questions  # questions.py needs the classes of this file

    scene.questions = questions(scene, rng)
    return scene


def lay_out(
    rng: np.random.Generator,
    split: str,
    text: tuple[float, float] = (0.6, 0.4),
    invented: float = 0.0,
    unnamed: float = 0.0,
) -> list[Item]:
    """Choose what is in a scene and where, in reading order.

    Args:
        rng: the source of chance.
        split: "train" or "test".
        text: how likely a sign and a price tag are.
        invented: share of signs whose word is a string of random letters, so that no list of words is learned by heart.
        unnamed: share of objects in a colour that has no name, so that shapes are learned apart from the colours they came in.
    """
    count = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.35, 0.15]))
    wanted: list[dict] = []
    if rng.random() < text[0]:
        wanted.append({"kind": "sign", "text": _word(rng, split, invented), "style": int(rng.integers(1000))})
    if rng.random() < text[1]:
        numbers = TEST_NUMBERS if split == "test" else TRAIN_NUMBERS
        wanted.append({"kind": "tag", "text": str(rng.choice(numbers)), "style": int(rng.integers(1000))})
    wanted += sorted(_objects(rng, split, count), key=lambda o: -o["side"])
    for want in wanted:
        if unnamed and want["kind"] == "object" and rng.random() < unnamed:
            want |= {"colour": "", "tint": _nameless(rng)}
    items: list[Item] = []
    for want in wanted:
        placed = _place(rng, want, items)
        if placed is not None:
            items.append(placed)
    # Rows of the 3 x 3 positions first, then columns: the order in which a description names things.
    return sorted(items, key=lambda i: (i.kind != "object", i.kind == "tag", POSITIONS.index(i.position)))


def _word(rng: np.random.Generator, split: str, invented: float) -> str:
    if split == "train" and rng.random() < invented:
        while True:
            letters = rng.integers(0, 26, size=int(rng.integers(3, MAX_LETTERS + 1)))
            word = "".join(chr(65 + int(c)) for c in letters)
            if not is_test_word(word):
                return word
    return str(rng.choice(TEST_WORDS if split == "test" else TRAIN_WORDS))


def _nameless(rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour far from every colour with a name."""
    while True:
        colour = rng.integers(0, 256, 3)
        if min(np.linalg.norm(colour - np.array(named)) for named in COLOURS.values()) > FAR_COLOUR:
            return int(colour[0]), int(colour[1]), int(colour[2])


def _objects(rng: np.random.Generator, split: str, count: int) -> list[dict]:
    chosen: list[dict] = []
    for index in range(count):
        while True:
            shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
            # Repeats make "how many stars" worth asking.
            if chosen and rng.random() < 0.25:
                shape = chosen[int(rng.integers(len(chosen)))]["shape"]
            if chosen and rng.random() < 0.15:
                colour = chosen[int(rng.integers(len(chosen)))]["colour"]
            held_out = is_test_pair(colour, shape)
            if (held_out and split == "train") or (not held_out and split == "test" and index == 0):
                continue
            if all((shape, colour) != (o["shape"], o["colour"]) for o in chosen):
                break
        size = str(rng.choice(list(SIZES)))
        chosen.append({"kind": "object", "shape": shape, "colour": colour, "size": size, "side": float(rng.uniform(*SIZES[size]))})
    return chosen


def _place(rng: np.random.Generator, want: dict, placed: list[Item]) -> Item | None:
    """Find room for one item; None if there is none. Centres keep clear of the borders between positions, so "where" has one answer."""
    if want["kind"] == "sign":
        w, h = PITCH * len(want["text"]) + 2 * SIGN_MARGIN, 52 + SIGN_POST
    elif want["kind"] == "tag":
        w, h = PITCH * (len(want["text"]) + 1) + TAG_MARGIN + 6, 48.0
    else:
        w = h = want["side"]
    # Things stand on a grid: letters fill whole patches, objects half ones. A tower this small, trained in minutes, sees few enough
    # different cuts through each letter to learn it.
    grid = ((PATCH / 2, 0.0), (PATCH / 2, 0.0))
    if want["kind"] != "object":
        margin_left, below = (SIGN_MARGIN, SIGN_POST) if want["kind"] == "sign" else (TAG_MARGIN, 0.0)
        grid = ((PATCH, w / 2 - margin_left), (PATCH, below / 2))
    used = {i.position for i in placed}
    third, margin = CANVAS / 3, 9
    for index in rng.permutation(9):
        if POSITIONS[index] in used:
            continue
        row, column = divmod(int(index), 3)
        x0 = max(column * third + (margin if column else 0), w / 2 + 2)
        x1 = min((column + 1) * third - (margin if column < 2 else 0), CANVAS - w / 2 - 2)
        y0 = max(row * third + (margin if row else 0), h / 2 + 2)
        y1 = min((row + 1) * third - (margin if row < 2 else 0), CANVAS - h / 2 - 2)
        if x0 >= x1 or y0 >= y1:
            continue
        for _ in range(6):
            x, y = _snap(rng, x0, x1, *grid[0]), _snap(rng, y0, y1, *grid[1])
            if x is None or y is None:
                break
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if all(box[2] + 4 < o.box[0] or o.box[2] + 4 < box[0] or box[3] + 4 < o.box[1] or o.box[3] + 4 < box[1] for o in placed):
                fields = {k: v for k, v in want.items() if k != "side"}
                return Item(box=box, position=POSITIONS[index], **fields)
    return None


def _snap(rng: np.random.Generator, low: float, high: float, step: float, offset: float) -> float | None:
    """A random value in [low, high] that is `offset` more than a multiple of `step`; None if there is none."""
    first, last = math.ceil((low - offset) / step), math.floor((high - offset) / step)
    return float(rng.integers(first, last + 1)) * step + offset if first <= last else None


# --------------------------------------------------------------------------------------------------------------- drawing


def render(
    items: list[Item] | tuple[Item, ...],
    background: str,
    rng: np.random.Generator,
    under: Image.Image | None = None,
) -> Image.Image:
    """Draw a background and its items; returns 336 x 336 RGB. `under` is a backdrop that was drawn before, used as it is."""
    image = backdrop(background, rng) if under is None else under.copy()
    pen = _Pen(ImageDraw.Draw(image), SUPERSAMPLE)
    for item in items:
        if item.kind == "object":
            _draw_object(pen, item, rng)
        else:
            _draw_text_item(image, pen, item)
    return image.reduce(SUPERSAMPLE)


class _Pen:
    """Draws in canvas coordinates whatever the supersampling."""

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


def _jitter(rng: np.random.Generator, colour: tuple[int, ...], by: int = 12) -> tuple[int, ...]:
    return tuple(int(np.clip(c + d, 0, 255)) for c, d in zip(colour, rng.integers(-by, by + 1, 3), strict=True))


def _gradient(top: tuple[int, ...], bottom: tuple[int, ...]) -> Image.Image:
    """A vertical gradient over the canvas, supersampled."""
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
    """An empty scene, supersampled."""
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
    """The outline of a shape as ("polygon", points) and ("ellipse", [corner, corner]) parts that fill its box."""
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
    main = _jitter(rng, item.tint or COLOURS[item.colour], 9)
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
    """One letter as a mask, squeezed to the width that the pitch leaves it."""
    font = ImageFont.truetype(str(FONT_FOLDER / font_file), height)
    box = font.getbbox(character)
    mask = Image.new("L", (int(box[2] - box[0]), int(box[3] - box[1])))
    ImageDraw.Draw(mask).text((-box[0], -box[1]), character, font=font, fill=255)
    widest = (PITCH - 4) * SUPERSAMPLE
    return mask.resize((widest, mask.height)) if mask.width > widest else mask


def _write(image: Image.Image, pen: _Pen, text: str, left: float, middle: float, style: int, fill: tuple[int, int, int]) -> None:
    """Write letters of equal pitch; `left` is where the first letter's cell begins, `middle` the line's centre, in canvas pixels."""
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


def owners(items: list[Item] | tuple[Item, ...], least: float = 0.2) -> np.ndarray:
    """Which item each patch shows.

    Returns:
        int array [24, 24]: index into `items`, or -1 where no item covers at least the share `least` of the patch.
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
