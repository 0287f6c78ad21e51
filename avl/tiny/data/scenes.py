"""Drawn scenes with known contents: the data of the bundled model, and the page's "New scene" button.

A scene is a 336 x 336 picture: a background, up to four coloured objects, perhaps a sign with a word and a price tag. Everything in
it is known, so every question has a right answer. Drawing needs Pillow and numpy alone and takes a few milliseconds; the same seed gives
the same scene on every machine. Held out of training: some colour and shape pairs, a fifth of the words, a fifth of the prices.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from avl.tiny.data.words import TEST_NUMBERS, TEST_WORDS, TRAIN_NUMBERS, TRAIN_WORDS, is_test_word

CANVAS = 336  # pixels, both sides
PATCH = 14
GRID = CANVAS // PATCH
PITCH = 28  # pixels from one letter of a sign to the next
SIGN_MARGIN, SIGN_POST, TAG_MARGIN = 9.0, 18.0, 20.0  # pixels left of the first letter, below the board
MAX_LETTERS = 5
MAX_DIGITS = 2

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
    from avl.tiny.data.drawing import render  # these two need the classes of this file
    from avl.tiny.data.questions import questions

    scene = Scene(render(items, background, rng), background, tuple(items), seed, split)
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
