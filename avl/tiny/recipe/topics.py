"""Auxiliary labels of stage 2: what the words of a question refer to, and temporary linear heads that predict it.

Finding an item by its name, comparing two items and surveying the whole scene are hard to learn from answers alone for a model this small:
an hour of answers did not teach it, minutes with these labels did. The heads are discarded after training. Every label has one right value
in the scene; none depends on the policies that later evict tokens.

==========  =====  ============================================  ==============================================================
head        layer  predicted at                                  labels
==========  =====  ============================================  ==============================================================
mention     5      the last word that names objects or a place   how many there are; if one: color, shape, size, position
relation    6      the second name of a comparison               its size, column and row against the first one's
subject     7      every token that predicts the answer          what both names refer to, and their relation
overview    5      the end of a request for a description        the background; at each position what, color, shape, size
review      8      the same                                      the same
writing     5      the same                                      the letters of the sign, the digits of the price
==========  =====  ============================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from avl.tiny.data.questions import PHRASES
from avl.tiny.data.scenes import BACKGROUNDS, COLORS, MAX_DIGITS, MAX_LETTERS, PLURALS, POSITIONS, SHAPES, SIZES, Item

IGNORE = -100
KINDS = ("nothing", "object", "sign", "tag")
FACTS = (len(COLORS), len(SHAPES), len(SIZES), len(POSITIONS))
MENTION = (5, *FACTS)  # number of matches; facts of the match if there is only one
RELATION = (3, 3, 3)  # size, column, row: less, equal, more
OVERVIEW = (len(BACKGROUNDS), *((len(KINDS), *FACTS[:3]) * len(POSITIONS)))
WRITING = (27,) * MAX_LETTERS + (11,) * MAX_DIGITS  # class 0: the word or the price has ended

# head -> (decoder layers before it, number of classes of each label)
HEADS: dict[str, tuple[int, tuple[int, ...]]] = {
    "mention": (5, MENTION),
    "relation": (6, RELATION),
    "subject": (7, (*MENTION, *MENTION, *RELATION)),
    "overview": (5, OVERVIEW),
    "review": (8, OVERVIEW),
    "writing": (5, WRITING),
}
LAYERS = sorted({layer for layer, _ in HEADS.values()})


def facts(item: Item) -> tuple[int, ...]:
    """Return the classes of color, shape, size and position; IGNORE for those that a sign or tag lacks, and for a color without a name."""
    place = POSITIONS.index(item.position)
    if item.kind != "object":
        return IGNORE, IGNORE, IGNORE, place
    color = list(COLORS).index(item.color) if item.color else IGNORE
    return color, SHAPES.index(item.shape), list(SIZES).index(item.size), place


def named(words: Sequence[str], items: Sequence[Item]) -> dict[int, list[Item]]:
    """Find the items that the names in a question match: index of the name's last word -> items.

    Names are "star" and "stars", "red star", "red" before any other word, "objects" and "things", and a place as in "at the top".
    """
    shapes = {s: s for s in SHAPES} | {plural: s for s, plural in PLURALS.items()}
    objects = [item for item in items if item.kind == "object"]
    spots = {phrase: position for position, phrase in PHRASES.items()}
    found: dict[int, list[Item]] = {}
    for at, word in enumerate(words):
        after = words[at + 1] if at + 1 < len(words) else ""
        spot = next((spots[p] for n in (3, 4) if (p := " ".join(words[max(0, at - n + 1) : at + 1])) in spots), None)
        color = word if word in COLORS else ""
        shape = shapes.get(word, "")
        if color and after in shapes:
            continue  # the name continues
        before = words[at - 1] if at else ""
        if shape and before in COLORS:
            color = before
        if spot is not None:
            found[at] = [item for item in items if item.position == spot]
        elif word in ("objects", "things") and before not in COLORS:
            found[at] = objects
        elif color or shape:
            found[at] = [o for o in objects if shape in ("", o.shape) and color in ("", o.color)]
    return found


def mention(matches: Sequence[Item]) -> tuple[int, ...]:
    """Return the labels of one name, in the order of MENTION."""
    return len(matches), *(facts(matches[0]) if len(matches) == 1 else (IGNORE,) * len(FACTS))


def relation(first: Item, second: Item) -> tuple[int, ...]:
    """Compare the second object's size, column and row with the first one's: 0 less, 1 equal, 2 more."""
    sizes = list(SIZES)
    (ra, ca), (rb, cb) = (divmod(POSITIONS.index(item.position), 3) for item in (first, second))
    pairs = ((sizes.index(first.size), sizes.index(second.size)), (ca, cb), (ra, rb))
    return tuple(int(np.sign(b - a)) + 1 for a, b in pairs)


def overview(background: str, items: Sequence[Item]) -> tuple[int, ...]:
    """Return the labels of a whole scene, in the order of OVERVIEW."""
    out = [BACKGROUNDS.index(background)]
    for position in POSITIONS:
        here = next((item for item in items if item.position == position), None)
        if here is None:
            out += [KINDS.index("nothing"), IGNORE, IGNORE, IGNORE]
        else:
            out += [KINDS.index(here.kind), *facts(here)[:3]]
    return tuple(out)


def writing(items: Sequence[Item]) -> tuple[int, ...]:
    """Return the labels of the text in a scene, in the order of WRITING; IGNORE without a sign or a price tag."""
    sign = next((item.text for item in items if item.kind == "sign"), None)
    price = next((item.text for item in items if item.kind == "tag"), None)
    letters = [IGNORE if sign is None else ord(sign[k]) - 64 if k < len(sign) else 0 for k in range(MAX_LETTERS)]
    digits = [IGNORE if price is None else int(price[k]) + 1 if k < len(price) else 0 for k in range(MAX_DIGITS)]
    return (*letters, *digits)


def blank(words: int) -> dict[str, np.ndarray]:
    """Return labels for `words` tokens that are all IGNORE: head -> int64 [words, labels]."""
    return {name: np.full((words, len(classes)), IGNORE, np.int64) for name, (_, classes) in HEADS.items()}


def topics(words: Sequence[str], asked: int, background: str, items: Sequence[Item], whole: bool) -> dict[str, np.ndarray]:
    """Return the labels of one question and its answer: head -> int64 [words, labels], IGNORE where there is none.

    Args:
        words: the tokens of question and answer, in lower case, without the tokenizer's markers.
        asked: how many of them are the question; the last of these predicts the first word of the answer.
        background: of the scene.
        items: of the scene.
        whole: whether the question asks for a description of the whole scene.
    """
    out = blank(len(words))
    found = named(words[:asked], items)
    for at, matches in found.items():
        out["mention"][at] = mention(matches)
    first, second = (*list(found.items())[:2], (0, []), (0, []))[:2]
    said = slice(asked - 1, len(words) - 1)
    if found:
        out["subject"][said, : len(MENTION)] = mention(first[1])
    if len(found) > 1:
        out["subject"][said, len(MENTION) : 2 * len(MENTION)] = mention(second[1])
        both = [*first[1], *second[1]]
        if len(first[1]) == len(second[1]) == 1 and all(item.kind == "object" for item in both):
            out["relation"][second[0]] = relation(*both)
            out["subject"][said, 2 * len(MENTION) :] = relation(*both)
    if whole:
        out["overview"][asked - 1] = out["review"][asked - 1] = overview(background, items)
        out["writing"][asked - 1] = writing(items)
    return out


class Heads(torch.nn.ModuleDict):
    """Temporary linear heads on the language model's hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__({name: torch.nn.Linear(width, sum(classes)) for name, (_, classes) in HEADS.items()})

    def loss(self, hidden: dict[int, torch.Tensor], labels: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the sum of the heads' mean losses, and the fraction of labels that each head gets right.

        Args:
            hidden: layer -> hidden states of the text, [batch, text, width].
            labels: head -> int64 [batch, text, labels].
        """
        total, right = next(iter(hidden.values())).new_zeros(()).float(), {}
        for name, (layer, classes) in HEADS.items():
            asked = (labels[name] >= 0).any(-1)
            if not asked.any():
                continue
            hits = known = 0
            guesses = self[name](hidden[layer][asked]).float().split(classes, -1)
            for logits, label in zip(guesses, labels[name][asked].T, strict=True):
                here = label >= 0
                if here.any():
                    total = total + F.cross_entropy(logits[here], label[here]) / len(classes)
                    hits += int((logits[here].argmax(-1) == label[here]).sum())
                    known += int(here.sum())
            right[name] = hits / known
        return total, right
