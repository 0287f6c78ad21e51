"""Stage 1: the vision tower learns to describe, at every patch, the whole item that the patch belongs to.

Temporary linear heads read each patch's output. Each patch of an object must predict the whole object (shape, color, size, position), each
patch of a sign every letter, and every patch the background and the number of objects. Features thus become redundant over patches, as in a
large CLIP: any surviving patch is enough. Of each training scene only some patches are given, most of those that show an item and a few of
the background, at a quarter of the cost of the whole picture. The end of the stage uses whole pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from avl.tiny.data import drawing, scenes
from avl.tiny.data.scenes import BACKGROUNDS, COLORS, GRID, MAX_DIGITS, MAX_LETTERS, PATCH, PITCH, POSITIONS, SHAPES, SIZES, Item

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
IGNORE = -100
PATCHES = GRID * GRID
GIVEN = 208  # patches given of a scene in most of the training
POOL, FRESH, AGAIN = 48, 0.15, 0.5  # backdrops kept; probability of drawing a new one; fraction of samples from earlier scenes

# head -> (labels per patch, classes); the names are those in the exported training log
HEADS: dict[str, tuple[int, int]] = {
    "kind": (1, 4),
    "shape": (1, len(SHAPES)),
    "colour": (1, len(COLORS)),
    "size": (1, len(SIZES)),
    "position": (1, len(POSITIONS)),
    "letters": (MAX_LETTERS, 27),
    "digits": (MAX_DIGITS, 11),
    "background": (1, len(BACKGROUNDS)),
    "count": (1, 5),
    "present": (2, 2),
    "same_shape": (1, 4),
    "same_colour": (1, 4),
}
LOCAL_HEADS: dict[str, tuple[int, int]] = {"letter": (1, 37), "slot": (1, 6)}  # read half-way up: what the patch itself shows
LOCAL_LAYER = 3
WEIGHTS = {"shape": 2.0, "letters": 3.0, "digits": 1.5, "letter": 1.5, "background": 0.5, "present": 0.5}


def labels(items: Sequence[Item], background: str) -> dict[str, np.ndarray]:
    """Return the labels of every patch of a scene: head -> int64 [576, labels], IGNORE where there is none."""
    owner = drawing.owners(items).reshape(-1)
    out = {name: np.full((PATCHES, n), IGNORE, np.int64) for name, (n, _) in (HEADS | LOCAL_HEADS).items()}
    out["kind"][:] = 0
    out["background"][:] = BACKGROUNDS.index(background)
    objects = [i for i in items if i.kind == "object"]
    out["count"][:] = len(objects)
    out["present"][:, 0] = any(i.kind == "sign" for i in items)
    out["present"][:, 1] = any(i.kind == "tag" for i in items)
    x = PATCH * (np.arange(PATCHES) % GRID) + PATCH / 2
    for index, item in enumerate(items):
        mine = owner == index
        out["position"][mine] = POSITIONS.index(item.position)
        if item.kind == "object":
            out["kind"][mine] = 1
            out["shape"][mine] = SHAPES.index(item.shape)
            out["size"][mine] = list(SIZES).index(item.size)
            out["same_shape"][mine] = sum(o.shape == item.shape for o in objects) - 1
            if item.color:  # a color without a name has no label
                out["colour"][mine] = list(COLORS).index(item.color)
                out["same_colour"][mine] = sum(o.color == item.color for o in objects) - 1
            continue
        sign = item.kind == "sign"
        out["kind"][mine] = 2 if sign else 3
        text = item.text if sign else "$" + item.text
        slot = np.floor((x - item.box[0] - (scenes.SIGN_MARGIN if sign else scenes.TAG_MARGIN)) / PITCH).astype(int)
        inside = mine & (slot >= 0) & (slot < len(text))
        codes = np.array([36 if c == "$" else int(c) + 26 if c.isdigit() else ord(c) - 65 for c in text])
        out["letter"][inside, 0] = codes[slot[inside]]
        out["slot"][inside, 0] = slot[inside]
        if sign:
            for k in range(MAX_LETTERS):
                out["letters"][mine, k] = ord(item.text[k]) - 64 if k < len(item.text) else 0
        else:
            for k in range(MAX_DIGITS):
                out["digits"][mine, k] = int(item.text[k]) + 1 if k < len(item.text) else 0
    return out


def choose_patches(rng: np.random.Generator, kind: np.ndarray, given: int) -> np.ndarray:
    """Choose the patches of a scene to give: int64 [given], ascending. Usually all that show an item, and random others."""
    chance = rng.random(PATCHES)
    if rng.random() < 0.3:  # a random part of the items' patches is missing too
        wanted = np.where((kind > 0) & (rng.random(PATCHES) < rng.uniform(0.4, 1)), chance + 1, chance)
    else:
        wanted = np.where(kind > 0, chance + 1, chance)
    return np.sort(np.argsort(-wanted)[:given])


class Painter:
    """Draws training scenes. Backdrops are expensive to draw, so each is reused a few times with different items."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.pool: list[tuple[str, Any]] = []

    def __call__(self, unnamed: float = 0.0) -> scenes.Scene:
        """Draw and return a training scene without questions; `unnamed` as in `scenes.lay_out`."""
        rng = self.rng
        if len(self.pool) < POOL or rng.random() < FRESH:
            background = str(rng.choice(BACKGROUNDS))
            drawn = (background, drawing.backdrop(background, rng))
            if len(self.pool) < POOL:
                self.pool.append(drawn)
            else:
                self.pool[int(rng.integers(POOL))] = drawn
        background, under = self.pool[int(rng.integers(len(self.pool)))]
        items = scenes.lay_out(rng, "train", text=(0.65, 0.5), invented=0.6, unnamed=unnamed)
        return scenes.Scene(drawing.render(items, background, rng, under), background, tuple(items), split="train")


@dataclass
class Given:
    """The patches given of a scene.

    Attributes:
        patches: uint8 [given, 14 * 14 * 3].
        places: int64 [given], their places on the grid.
        marks: head -> int64 [given, labels].
    """

    patches: np.ndarray
    places: np.ndarray
    marks: dict[str, np.ndarray]


def give(rng: np.random.Generator, scene: scenes.Scene, marks: dict[str, np.ndarray], given: int) -> Given:
    """Choose patches of a scene and cut them out."""
    places = choose_patches(rng, marks["kind"][:, 0], given)
    image = np.asarray(scene.image).reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return Given(image.reshape(PATCHES, -1)[places], places, {name: values[places] for name, values in marks.items()})


class Patches(torch.utils.data.IterableDataset):
    """Endless batches for stage 1, each as (uint8 [batch, given, 588], int64 [batch, given], head -> int64 [batch, given, labels])."""

    def __init__(self, batch: int, given: int, start: int = 0, seed: int = 1) -> None:
        super().__init__()
        self.batch, self.given, self.start, self.seed = batch, given, start, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
        torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, self.given, self.start])
        paint = Painter(rng)
        before: list[tuple[scenes.Scene, dict[str, np.ndarray]]] = []
        while True:
            rows = []
            for _ in range(self.batch):
                if len(before) > 256 and rng.random() < AGAIN:
                    scene, marks = before.pop(int(rng.integers(len(before))))
                else:
                    scene = paint(unnamed=0.75 if rng.random() < 0.85 else 0.0)
                    marks = labels(scene.items, scene.background)
                    before.append((scene, marks))
                    if len(before) > 512:
                        before.pop(0)
                rows.append(give(rng, scene, marks, self.given))
            yield stack(rows)


def stack(rows: list[Given]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Stack the given patches of several scenes to a batch: patches, places and labels."""
    merged = {name: torch.from_numpy(np.stack([r.marks[name] for r in rows])) for name in rows[0].marks}
    return torch.from_numpy(np.stack([r.patches for r in rows])), torch.from_numpy(np.stack([r.places for r in rows])), merged


class Heads(torch.nn.Module):
    """Temporary linear heads: one on the last layer's output, one on the half-way layer's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last = torch.nn.Linear(width, sum(n * c for n, c in HEADS.values()))
        self.local = torch.nn.Linear(width, sum(n * c for n, c in LOCAL_HEADS.values()))

    def forward(self, last: torch.Tensor, local: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return head -> logits [batch, patches, labels, classes] for outputs [batch, patches, width] of both layers."""
        out = {}
        for heads, logits in ((HEADS, self.last(last)), (LOCAL_HEADS, self.local(local))):
            parts = logits.split([n * c for n, c in heads.values()], -1)
            for (name, (n, c)), part in zip(heads.items(), parts, strict=True):
                out[name] = part.unflatten(-1, (n, c))
        return out


def run_tower(vision: Any, patches: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the tower on some patches of each picture.

    Computes the same as the tower's own forward, but only for the given patches, each with the position embedding of its place.

    Args:
        vision: the vision transformer.
        patches: uint8 [batch, given, 588], pixels as rows, columns, colors.
        places: int64 [batch, given], their places on the grid, 0 to 575.

    Returns:
        The outputs of the last layer and of the half-way layer, [batch, given, width] each.
    """
    embeddings = vision.embeddings
    kernel = embeddings.patch_embedding.weight
    shift, scale = (torch.tensor(values, device=patches.device).repeat(PATCH * PATCH) for values in (MEAN, STD))
    inputs = ((patches.float() / 255 - shift) / scale).to(kernel.dtype)
    embedded = inputs @ kernel.permute(2, 3, 1, 0).reshape(-1, kernel.shape[0])
    first = embeddings.class_embedding.expand(len(patches), 1, -1)
    table = embeddings.position_embedding.weight
    hidden = torch.cat([first + table[0], embedded + table[1:][places]], 1)
    hidden = vision.pre_layrnorm(hidden)
    local = hidden
    for index, layer in enumerate(vision.encoder.layers):
        hidden = encoder_layer(layer, hidden)
        if index + 1 == LOCAL_LAYER:
            local = hidden
    return hidden[:, 1:], local[:, 1:]


def encoder_layer(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Run one CLIP layer; in bfloat16 with plain matrix products, which train three times as fast on a CPU as the fused attention."""
    heads = layer.self_attn
    normed = layer.layer_norm1(hidden)
    shape = (*normed.shape[:2], -1, heads.head_dim)
    q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (heads.q_proj, heads.k_proj, heads.v_proj))
    if q.dtype == torch.bfloat16:
        out = ((q * heads.scale) @ k.transpose(-1, -2)).softmax(-1, dtype=q.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    hidden = hidden + heads.out_proj(out.transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def loss_of(logits: dict[str, torch.Tensor], marks: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the weighted loss over all heads, and the fraction of labels that each head gets right."""
    total, right = torch.zeros(()), {}
    for name, values in logits.items():
        target = marks[name].reshape(-1)
        known = target != IGNORE
        if not known.any():
            continue
        flat, target = values.flatten(0, -2)[known].float(), target[known]
        total = total + WEIGHTS.get(name, 1.0) * F.cross_entropy(flat, target)
        right[name] = (flat.argmax(-1) == target).float().mean().item()
    return total, right
