"""Stage 1: the vision tower learns to say, at every patch, all about the thing that the patch belongs to.

Temporary linear heads read each patch's output. Each patch of an object must know the whole object (shape, colour, size, position), each
patch of a sign every letter, and every patch the picture's background and how many objects there are. Features so become redundant over
patches, as in a large CLIP: any one surviving patch is enough. Most of the stage sees windows of 224 x 168 pixels, at their own place
of the position grid, where more of each picture is worth learning; the end of it sees whole scenes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from . import scenes
from .scenes import BACKGROUNDS, CANVAS, COLOURS, GRID, MAX_DIGITS, MAX_LETTERS, PATCH, PITCH, POSITIONS, SHAPES, SIZES, Item

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
WINDOW = (224, 168)
IGNORE = -100

# head -> (labels per patch, classes)
HEADS: dict[str, tuple[int, int]] = {
    "kind": (1, 4),
    "shape": (1, len(SHAPES)),
    "colour": (1, len(COLOURS)),
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
LOCAL_HEADS: dict[str, tuple[int, int]] = {"letter": (1, 37), "slot": (1, 6)}  # read half-way up: what this very patch shows
LOCAL_LAYER = 3
WEIGHTS = {"shape": 2.0, "letters": 3.0, "digits": 1.5, "letter": 1.5, "background": 0.5, "present": 0.5}


def labels(items: list[Item], background: str, window: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """What each patch of a window should say: head -> int array [patches, labels], IGNORE where there is nothing to say."""
    owner = scenes.owners(items, window).reshape(-1)
    patches = len(owner)
    out = {name: np.full((patches, n), IGNORE, np.int64) for name, (n, _) in (HEADS | LOCAL_HEADS).items()}
    out["kind"][:] = 0
    out["background"][:] = BACKGROUNDS.index(background)
    objects = [i for i in items if i.kind == "object"]
    out["count"][:] = len(objects)
    out["present"][:, 0] = any(i.kind == "sign" for i in items)
    out["present"][:, 1] = any(i.kind == "tag" for i in items)
    columns = (window[2] - window[0]) // PATCH
    x = window[0] + PATCH * (np.arange(patches) % columns) + PATCH / 2
    for index, item in enumerate(items):
        mine = owner == index
        out["position"][mine] = POSITIONS.index(item.position)
        if item.kind == "object":
            out["kind"][mine] = 1
            out["shape"][mine] = SHAPES.index(item.shape)
            out["colour"][mine] = list(COLOURS).index(item.colour)
            out["size"][mine] = list(SIZES).index(item.size)
            out["same_shape"][mine] = sum(o.shape == item.shape for o in objects) - 1
            out["same_colour"][mine] = sum(o.colour == item.colour for o in objects) - 1
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


def pixels(image: Any) -> np.ndarray:
    """A picture as the processor gives it to the tower: float32 [3, height, width]."""
    return ((np.asarray(image, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def sample(rng: np.random.Generator, whole: bool) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """One training picture: pixels [3, h, w], the grid positions of its patches [patches], and their labels."""
    if whole:
        window = (0, 0, CANVAS, CANVAS)
        items = scenes.lay_out(rng, "train", text=(0.75, 0.6), invented=0.7)
    else:
        left = int(rng.integers(0, (CANVAS - WINDOW[0]) // PATCH + 1)) * PATCH
        top = int(rng.integers(0, (CANVAS - WINDOW[1]) // PATCH + 1)) * PATCH
        window = (left, top, left + WINDOW[0], top + WINDOW[1])
        items = scenes.lay_out(rng, "train", window, count=int(rng.choice([1, 2, 3])), text=(0.85, 0.5), invented=0.85)
    background = str(rng.choice(BACKGROUNDS))
    image = scenes.render(items, background, rng, window)
    rows, columns = (window[3] - window[1]) // PATCH, (window[2] - window[0]) // PATCH
    place = (window[1] // PATCH + np.arange(rows))[:, None] * GRID + window[0] // PATCH + np.arange(columns)
    return pixels(image), place.reshape(-1), labels(items, background, window)


class Windows(torch.utils.data.IterableDataset):
    """Endless batches of training pictures. Batch number n is the same whatever came before, so that training can resume."""

    def __init__(self, batch: int, whole: bool, start: int = 0, seed: int = 1) -> None:
        super().__init__()
        self.batch, self.whole, self.start, self.seed = batch, whole, start, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
        info = torch.utils.data.get_worker_info()
        step, stride = (self.start, 1) if info is None else (self.start + info.id, info.num_workers)
        torch.set_num_threads(1)
        while True:
            rng = np.random.default_rng([self.seed, int(self.whole), step])
            images, places, marks = zip(*[sample(rng, self.whole) for _ in range(self.batch)], strict=True)
            merged = {name: torch.from_numpy(np.stack([m[name] for m in marks])) for name in marks[0]}
            yield torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(places)), merged
            step += stride


class Heads(torch.nn.Module):
    """The temporary linear heads: one for the last layer's output, one for the half-way layer's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.last = torch.nn.Linear(width, sum(n * c for n, c in HEADS.values()))
        self.local = torch.nn.Linear(width, sum(n * c for n, c in LOCAL_HEADS.values()))

    def forward(self, last: torch.Tensor, local: torch.Tensor) -> dict[str, torch.Tensor]:
        """[batch, patches, width] twice -> head -> logits [batch, patches, labels, classes]."""
        out = {}
        for heads, logits in ((HEADS, self.last(last)), (LOCAL_HEADS, self.local(local))):
            parts = logits.split([n * c for n, c in heads.values()], -1)
            for (name, (n, c)), part in zip(heads.items(), parts, strict=True):
                out[name] = part.unflatten(-1, (n, c))
        return out


def run_tower(vision: Any, images: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the tower on windows: its outputs per patch at the last layer and half-way, [batch, patches, width] each.

    The same arithmetic as the tower's own forward, but each patch takes the position embedding of its place on the whole grid.
    """
    embeddings = vision.embeddings
    patches = embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
    first = embeddings.class_embedding.expand(len(images), 1, -1)
    table = embeddings.position_embedding.weight
    hidden = torch.cat([first + table[0], patches + table[1:][places]], 1)
    hidden = vision.pre_layrnorm(hidden)
    local = hidden
    for index, layer in enumerate(vision.encoder.layers):
        hidden = encoder_layer(layer, hidden)
        if index + 1 == LOCAL_LAYER:
            local = hidden
    return hidden[:, 1:], local[:, 1:]


def encoder_layer(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """One CLIP layer with plain matrix products: on a CPU in bfloat16 they train three times faster than the fused attention."""
    heads = layer.self_attn
    normed = layer.layer_norm1(hidden)
    shape = (*normed.shape[:2], -1, heads.head_dim)
    q, k, v = (p(normed).view(shape).transpose(1, 2) for p in (heads.q_proj, heads.k_proj, heads.v_proj))
    weights = ((q * heads.scale) @ k.transpose(-1, -2)).softmax(-1, dtype=q.dtype)
    hidden = hidden + heads.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return hidden + layer.mlp(layer.layer_norm2(hidden))


def loss_of(logits: dict[str, torch.Tensor], marks: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted loss over all heads, and the share of labels each head gets right."""
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
