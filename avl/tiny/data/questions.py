"""Questions about a scene and their right answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from avl.tiny.data.scenes import COLORS, PLURALS, POSITIONS, SETTINGS, SHAPES, Item, Question, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
PHRASES = {  # position -> phrase in a sentence
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}
PLACES = {  # background -> phrase at the end of a caption
    "sky": "in the sky",
    "meadow": "in a meadow",
    "beach": "on a beach",
    "desert": "in a desert",
    "night": "in the night",
    "room": "in a room",
    "snow": "in the snow",
    "sea": "in the sea",
    "stripes": "on stripes",
    "dots": "on dots",
}

ASK: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is the {0}?", "What color is the {0}?", "Which colour does the {0} have?", "What is the color of the {0}?"),
    "shape": ("What is the {0} thing?", "Which object is {0}?", "What is {0} in this picture?", "What kind of thing is the {0} one?"),
    "where": ("Where is the {0}?", "Where can I find the {0}?", "In which part of the picture is the {0}?", "Where do you see the {0}?"),
    "at": ("What is {0}?", "What can you see {0}?", "What do you see {0}?", "Which thing is {0}?"),
    "size": ("How big is the {0}?", "What size is the {0}?", "How large is the {0}?"),
    "count": ("How many {0} are there?", "How many {0} do you see?", "How many {0} are in the picture?", "Count the {0}."),
    "exist": ("Is there {0}?", "Can you see {0}?", "Is there {0} in the picture?", "Do you see {0}?"),
    "bigger": ("Which is bigger, the {0} or the {1}?", "What is larger, the {0} or the {1}?"),
    "smaller": ("Which is smaller, the {0} or the {1}?",),
    "beside": ("Is the {0} {2} the {1}?", "Is the {0} further {3} than the {1}?"),
    "background": ("What is the background?", "What is in the background?", "Which background does the picture have?", "Where is this?"),
    "sign": (
        "What does the sign say?",
        "Read the sign.",
        "What is written on the sign?",
        "Which word is on the sign?",
        "What is on the sign?",
    ),
    "price": ("How much does it cost?", "What is the price?", "What does the price tag say?", "Read the price tag.", "How much is it?"),
    "describe": (
        "Describe the picture.",
        "Describe this image in detail.",
        "What do you see?",
        "Tell me about this picture.",
        "Describe everything in the picture.",
        "What is in this picture?",
        "Describe the image.",
    ),
    "caption": ("Write a short caption.", "Caption this picture.", "Describe the picture in one sentence.", "Give a short description."),
}
NO_SIGN, NO_PRICE = "there is no sign", "there is no price"


def article(thing: str) -> str:
    """Return a thing with its article: "a red star", "an orange star"."""
    return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"


def listed(parts: list[str]) -> str:
    """Join parts to a list: "x", "x and y", "x, y and z"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def describe(scene: Scene) -> str:
    """Return the long description: background, number of objects, each object with size, color and position, sign and price."""
    objects = scene.objects
    several = len(objects) != 1
    text = f"The background is {SETTINGS[scene.background]}."
    text += f" There {'are' if several else 'is'} {NUMBERS[len(objects)]} object{'s' if several else ''}"
    if objects:
        text += ": " + listed([f"{article(f'{o.size} {o.pair}')} {PHRASES[o.position]}" for o in objects])
    text += "."
    if scene.sign:
        text += f" A sign {PHRASES[scene.sign.position]} says {scene.sign.text}."
    if scene.tag:
        text += f" A price tag {PHRASES[scene.tag.position]} says ${scene.tag.text}."
    return text


def caption(scene: Scene) -> str:
    """Return the short description: colors and shapes, and the background."""
    things = [article(o.pair) for o in scene.objects]
    text = f"{listed(things)} {PLACES[scene.background]}."
    return text[0].upper() + text[1:]


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return all questions with one right answer in this scene, each in a random wording; descriptions first, then reading."""
    out: list[Question] = []
    objects = scene.objects

    def ask(kind: str, answer: str, *words: str, task: str = "qa", facts: tuple[str, ...] = ()) -> None:
        wordings = ASK[kind]
        text = wordings[int(rng.integers(len(wordings)))].format(*words)
        habit = rng.random()  # some people omit the capital, some also the mark at the end
        if habit < 0.3:
            text = text[0].lower() + text[1:]
        if habit < 0.2 and text[-1] in "?.":
            text = text[:-1]
        out.append(Question(text, answer, task, facts, kind))

    ask("describe", describe(scene), task="describe", facts=scene.facts)
    if objects:
        ask("caption", caption(scene), task="describe", facts=(scene.background, *(o.pair for o in objects)))
    if scene.sign:
        ask("sign", scene.sign.text, task="read")
    else:
        ask("sign", NO_SIGN)
    if scene.tag:
        ask("price", f"${scene.tag.text}", task="read")
    else:
        ask("price", NO_PRICE)
    ask("background", SETTINGS[scene.background])
    _about_objects(scene, rng, ask)
    _about_places(scene, rng, ask)
    return out


def name_of(item: Item, among: list[Item], rng: np.random.Generator) -> str:
    """Return an unambiguous name of an object: "red star", or sometimes "star" if there is only one."""
    alone = sum(o.shape == item.shape for o in among) == 1
    return item.shape if alone and rng.random() < 0.6 else item.pair


def _about_objects(scene: Scene, rng: np.random.Generator, ask: Callable[..., None]) -> None:
    objects = scene.objects
    shapes, colors = [o.shape for o in objects], [o.color for o in objects]
    for o in objects:
        if shapes.count(o.shape) == 1:
            ask("colour", o.color, o.shape)
        if colors.count(o.color) == 1:
            ask("shape", article(o.shape), o.color)
        ask("size", o.size, name_of(o, objects, rng))
    ask("count", NUMBERS[len(objects)], "objects" if rng.random() < 0.7 else "things")
    for s in dict.fromkeys(shapes):
        ask("count", NUMBERS[shapes.count(s)], PLURALS[s])
    for c in dict.fromkeys(colors):
        ask("count", NUMBERS[colors.count(c)], f"{c} objects")
    missing = [s for s in SHAPES if s not in shapes]
    ask("count", NUMBERS[0], PLURALS[str(rng.choice(missing))])
    # about as many yes as no; where the answer is no, the thing often differs from a real one in a single word
    for o in objects:
        if rng.random() < 0.5:
            ask("exist", "yes", article(o.shape if rng.random() < 0.5 else o.pair))
        else:
            other = f"{rng.choice(list(COLORS))} {o.shape}" if rng.random() < 0.5 else f"{o.color} {rng.choice(SHAPES)}"
            ask("exist", "yes" if any(p.pair == other for p in objects) else "no", article(other))
    ask("exist", "no", article(str(rng.choice(missing))))
    ask("exist", "yes" if scene.sign else "no", "a sign")
    ask("exist", "yes" if scene.tag else "no", "a price tag")
    sizes = ("small", "medium", "large")
    for i, a in enumerate(objects):
        for b in objects[i + 1 :]:
            first, second = (a, b) if rng.random() < 0.5 else (b, a)
            names = name_of(first, objects, rng), name_of(second, objects, rng)
            if a.size != b.size:
                kind = "bigger" if rng.random() < 0.6 else "smaller"
                bigger = sizes.index(first.size) > sizes.index(second.size)
                ask(kind, f"the {names[0] if bigger == (kind == 'bigger') else names[1]}", *names)


def _about_places(scene: Scene, rng: np.random.Generator, ask: Callable[..., None]) -> None:
    objects = scene.objects
    for item in scene.items:
        if item.kind == "object":
            ask("where", item.position, name_of(item, objects, rng))
            ask("at", article(item.pair), PHRASES[item.position])
        else:
            name = "sign" if item.kind == "sign" else "price tag"
            ask("where", item.position, name)
            ask("at", f"a {name}", PHRASES[item.position])
    free = [p for p in POSITIONS if all(i.position != p for i in scene.items)]
    ask("at", "nothing", PHRASES[str(rng.choice(free))])
    for i, a in enumerate(objects):
        for b in objects[i + 1 :]:
            first, second = (a, b) if rng.random() < 0.5 else (b, a)
            (ra, ca), (rb, cb) = divmod(POSITIONS.index(first.position), 3), divmod(POSITIONS.index(second.position), 3)
            names = name_of(first, objects, rng), name_of(second, objects, rng)
            ways = []
            if ca != cb:
                ways += [("left of", "left", ca < cb), ("right of", "right", ca > cb)]
            if ra != rb:
                ways += [("above", "up", ra < rb), ("below", "down", ra > rb)]
            if ways:
                way, further, true = ways[int(rng.integers(len(ways)))]
                ask("beside", "yes" if true else "no", *names, way, further)
