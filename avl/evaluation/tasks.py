"""Held-out questions for the bundled model, and how an answer is scored."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from avl.tiny.data import scenes
from avl.tiny.data.questions import NUMBERS, PHRASES
from avl.tiny.data.scenes import COLORS, SETTINGS, SHAPES, SIZES, Question

TASKS = ("qa", "read", "describe")
SHARES = {"qa": 0.4, "read": 0.3, "describe": 0.3}
FIRST_SEED = 1_000_000  # scenes of the held-out set; the page draws from lower seeds
FIRST_DIALOG = 500_000  # scenes of conversations begin so much later
MOST_TURNS = 10  # questions of different kinds that every scene has


@dataclass(frozen=True)
class Sample:
    """One picture and one question about it."""

    image: Image.Image
    question: Question


@dataclass(frozen=True)
class Dialog:
    """One picture and several questions about it, in the order in which they are asked."""

    image: Image.Image
    questions: tuple[Question, ...]


def held_out(n: int = 500, seed: int = 0) -> list[Sample]:
    """Return the held-out set: one question for each test scene.

    Args:
        n: samples; 40 % questions with a short answer, 30 % reading, 30 % descriptions (four fifths of them long), interleaved.
        seed: another seed gives other scenes.

    Returns:
        The samples, the same on every machine.

    Raises:
        ValueError: if `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    rng = np.random.default_rng([seed, 7])
    samples: list[Sample] = []
    scene_seed = FIRST_SEED * (1 + seed)
    for index in range(n):
        place = (index * 7 % 10) / 10  # interleaves the tasks evenly: 0, 0.7, 0.4, 0.1, …
        task = "qa" if place < SHARES["qa"] else "read" if place < SHARES["qa"] + SHARES["read"] else "describe"
        long = rng.random() < 0.8
        while True:
            scene = scenes.draw(scene_seed, "test")
            scene_seed += 1
            fitting = [q for q in scene.questions if q.task == task]
            if task == "describe":
                fitting = [q for q in fitting if (q.kind == "describe") == long]
            kinds = sorted({q.kind for q in fitting})
            if not kinds:
                continue
            # Every kind of question is equally likely, however often it can be asked.
            kind = kinds[int(rng.integers(len(kinds)))]
            fitting = [q for q in fitting if q.kind == kind]
            samples.append(Sample(scene.image, fitting[int(rng.integers(len(fitting)))]))
            break
    return samples


def dialogs(n: int = 200, turns: int = 3, seed: int = 0) -> list[Dialog]:
    """Return conversations about test scenes, none of which :func:`held_out` asks about (up to half a million samples).

    Questions of one conversation are of different kinds. Every kind that a scene offers is equally likely in every turn, so that turns
    differ in nothing but what came before.

    Args:
        n: conversations, a scene each.
        turns: questions of each, 1 to 10.
        seed: another seed gives other scenes.

    Returns:
        The conversations, the same on every machine.

    Raises:
        ValueError: if `n` or `turns` is out of range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if not 1 <= turns <= MOST_TURNS:
        raise ValueError(f"turns must be 1 to {MOST_TURNS}, not {turns}: more kinds of questions no scene has for certain")
    rng = np.random.default_rng([seed, 11])
    found = []
    for index in range(n):
        scene = scenes.draw(FIRST_SEED * (1 + seed) + FIRST_DIALOG + index, "test")
        kinds = rng.permutation(sorted({q.kind for q in scene.questions}))[:turns]
        fitting = [[q for q in scene.questions if q.kind == kind] for kind in kinds]
        found.append(Dialog(scene.image, tuple(some[int(rng.integers(len(some)))] for some in fitting)))
    return found


def score(question: Question, model_answer: str) -> float:
    """How right an answer is, 0 to 1.

    qa: 1 if it is the right answer but for case, articles and full stops. read: ANLS, one minus the edit distance over the longer length, 0
    below one half. describe: the share of the right facts that it states, in any order; stating more facts than there are costs as
    much as missing them.

    Raises:
        ValueError: for a task that is not one of TASKS.
    """
    if question.task == "qa":
        return float(normalized(model_answer) == normalized(question.answer))
    if question.task == "read":
        return anls(model_answer.strip(), question.answer)
    if question.task == "describe":
        right, stated = set(question.facts), facts_of(model_answer)
        if question.kind == "caption":  # neither sizes nor places are asked for, and giving them is no mistake
            stated = {f for f in stated if " is " not in f and " at " not in f and not f.endswith("objects")}
        return len(right & stated) / max(len(right), len(stated), 1)
    raise ValueError(f"task must be one of {TASKS}, not {question.task!r}")


def normalized(text: str) -> str:
    """Lower case, without articles, punctuation and double spaces; numbers up to six as words."""
    words = re.sub(r"[^\w\s$]", " ", text.lower()).split()
    words = [NUMBERS[int(w)] if w.isdecimal() and len(w) < 3 and int(w) < len(NUMBERS) else w for w in words]
    return " ".join(w for w in words if w not in ("a", "an", "the"))


def anls(answer: str, right: str) -> float:
    """Return the normalized Levenshtein similarity of one answer, case ignored, 0 below one half."""
    a, b = answer.lower(), right.lower()
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    similarity = 1 - row[-1] / max(len(a), len(b), 1)
    return similarity if similarity >= 0.5 else 0.0


_THING = re.compile(rf"\b(?:({'|'.join(SIZES)}) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")
_PLACES = sorted(PHRASES.items(), key=lambda p: -len(p[1]))


def facts_of(text: str) -> set[str]:
    """Return the facts that a description states, in the words of `Scene.facts`."""
    facts: set[str] = set()
    for name, setting in SETTINGS.items():
        if re.search(rf"(background is|in|on) {setting}\b", text):
            facts.add(name)
    counted = re.search(rf"\b({'|'.join(NUMBERS)}|\d+) objects?\b", text)
    if counted:
        word = counted.group(1)
        facts.add(f"{word if word.isdigit() else NUMBERS.index(word)} objects")
    things = list(_THING.finditer(text))
    for index, thing in enumerate(things):
        size, color, shape = thing.groups()
        pair = f"{color} {shape}"
        facts.add(pair)
        if size:
            facts.add(f"{pair} is {size}")
        end = things[index + 1].start() if index + 1 < len(things) else len(text)
        place = _place(text[thing.end() : end].split(".")[0])
        if place:
            facts.add(f"{pair} at {place}")
    for name, pattern in (("sign", r"\bsign ([a-z ]*?) ?says (\w+)"), ("price", r"\bprice tag ([a-z ]*?) ?says \$(\w+)")):
        for found in re.finditer(pattern, text):
            facts.add(f"{name} {found.group(2)}")
            place = _place(found.group(1))
            if place:
                facts.add(f"{name} at {place}")
    return facts


def _place(words: str) -> str | None:
    return next((position for position, phrase in _PLACES if phrase in words), None)
