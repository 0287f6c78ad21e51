"""Drawn scenes with known contents: the data of the bundled model, and the page's "New scene" button.

A scene is a 336 x 336 picture: a background, up to four colored objects, and perhaps a sign with a word and a price tag. Its contents are
known, so every question has a right answer. Drawing needs only Pillow and numpy and takes a few milliseconds; a seed gives the same scene
on every machine. Some pairs of color and shape, a fifth of the words and a fifth of the prices are held out of training.
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
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 132, 31),
    "yellow": (250, 214, 40),
    "green": (46, 150, 62),
    "blue": (38, 92, 210),
    "purple": (126, 52, 168),
    "pink": (244, 130, 182),
    "white": (246, 246, 242),
}
FAR_COLOR = 60.0  # a color this far in RGB from every named color has no name
SIZES: dict[str, tuple[int, int]] = {"small": (42, 48), "medium": (67, 75), "large": (94, 103)}  # pixels
POSITIONS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
BACKGROUNDS = ("sky", "meadow", "beach", "desert", "night", "room", "snow", "sea", "stripes", "dots")
SETTINGS = {  # background -> its name in a sentence
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


def is_test_pair(color: str, shape: str) -> bool:
    """Return whether this pair of color and shape is held out of training."""
    return zlib.crc32(f"{color} {shape}".encode()) % 7 == 0


@dataclass(frozen=True)
class Item:
    """One item of a scene. `box` is (left, top, right, bottom) in pixels; `position` is one of POSITIONS."""

    kind: str  # "object", "sign" or "tag"
    box: tuple[float, float, float, float]
    position: str
    shape: str = ""
    color: str = ""
    size: str = ""
    text: str = ""  # the sign's word in capitals, or the price without its "$"
    style: int = 0  # selects font and board; no question asks about it
    tint: tuple[int, int, int] | None = None  # RGB of a color without a name; `color` is then ""

    @property
    def center(self) -> tuple[float, float]:
        """Center (x, y) in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def pair(self) -> str:
        """Color and shape, as in "red star"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Question:
    """A question and its right answer. `task` is "qa", "read" or "describe"; `facts` are those that a full description must state."""

    text: str
    answer: str
    task: str
    facts: tuple[str, ...] = ()
    kind: str = ""


@dataclass
class Scene:
    """A picture and its known contents."""

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
    """Return the facts about one item, each as a short string."""
    if item.kind == "object":
        return (item.pair, f"{item.pair} is {item.size}", f"{item.pair} at {item.position}")
    name = "sign" if item.kind == "sign" else "price"
    return (f"{name} {item.text}", f"{name} at {item.position}")


def draw(seed: int, split: str = "test") -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: any integer ≥ 0; the same seed and split give the same scene.
        split: "train" or "test". A test scene has at least one held-out color and shape pair; its word and price are held out.

    Returns:
        The scene, 336 x 336 RGB, with all its questions.

    Raises:
        ValueError: the split is neither of these.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    items = lay_out(rng, split)
    background = str(rng.choice(BACKGROUNDS))
    from avl.tiny.data.drawing import render  # both import this file
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
    """Choose the items of a scene and their places; return them in reading order.

    Args:
        rng: random generator.
        split: "train" or "test".
        text: probabilities of a sign and of a price tag.
        invented: fraction of signs with random letters, so that the model does not memorize the list of words.
        unnamed: fraction of objects in a color without a name, so that the model learns shapes independently of colors.
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
            want |= {"color": "", "tint": _nameless(rng)}
    items: list[Item] = []
    for want in wanted:
        placed = _place(rng, want, items)
        if placed is not None:
            items.append(placed)
    # objects, sign, tag, each by position row by row: the order in which a description names them
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
    """Return a random color far from all named colors."""
    while True:
        color = rng.integers(0, 256, 3)
        if min(np.linalg.norm(color - np.array(named)) for named in COLORS.values()) > FAR_COLOR:
            return int(color[0]), int(color[1]), int(color[2])


def _objects(rng: np.random.Generator, split: str, count: int) -> list[dict]:
    chosen: list[dict] = []
    for index in range(count):
        while True:
            shape, color = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))
            # repeated shapes and colors make "how many stars" a real question
            if chosen and rng.random() < 0.25:
                shape = chosen[int(rng.integers(len(chosen)))]["shape"]
            if chosen and rng.random() < 0.15:
                color = chosen[int(rng.integers(len(chosen)))]["color"]
            held_out = is_test_pair(color, shape)
            if (held_out and split == "train") or (not held_out and split == "test" and index == 0):
                continue
            if all((shape, color) != (o["shape"], o["color"]) for o in chosen):
                break
        size = str(rng.choice(list(SIZES)))
        chosen.append({"kind": "object", "shape": shape, "color": color, "size": size, "side": float(rng.uniform(*SIZES[size]))})
    return chosen


def _place(rng: np.random.Generator, want: dict, placed: list[Item]) -> Item | None:
    """Place one item in free space, None if there is none. Centers keep off the borders between positions, so "where" has one answer."""
    if want["kind"] == "sign":
        w, h = PITCH * len(want["text"]) + 2 * SIGN_MARGIN, 52 + SIGN_POST
    elif want["kind"] == "tag":
        w, h = PITCH * (len(want["text"]) + 1) + TAG_MARGIN + 6, 48.0
    else:
        w = h = want["side"]
    # Items are aligned to a grid: letters to whole patches, objects to half patches. Few distinct crops of each letter remain, few enough
    # for a tower this small, trained in minutes.
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
    """Return a random value in [low, high] that equals a multiple of `step` plus `offset`, None if there is none."""
    first, last = math.ceil((low - offset) / step), math.floor((high - offset) / step)
    return float(rng.integers(first, last + 1)) * step + offset if first <= last else None
