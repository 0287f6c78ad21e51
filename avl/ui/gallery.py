"""Example pictures and questions, from ``assets/gallery/examples.json``; ``assets/gallery/draw.py`` makes both."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from avl import trace
from avl._paths import ASSETS
from avl.models.images import data_uri

log = logging.getLogger(__name__)

FOLDER = ASSETS / "gallery"


@dataclass(frozen=True)
class Example:
    """A picture with questions that suit it; ``answers`` maps a question to its right answer where there is one."""

    key: str
    name: str
    path: Path
    questions: tuple[str, ...]
    answers: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=4)
def examples(bundled: bool) -> tuple[Example, ...]:
    """Return the gallery for the bundled model, or for real LLaVA checkpoints."""
    file = FOLDER / "examples.json"
    if not file.exists():
        return ()
    entries = json.loads(file.read_text("utf-8"))["bundled" if bundled else "real"]
    return tuple(
        Example(
            key=entry["key"],
            name=entry["name"],
            path=FOLDER / entry["file"],
            questions=tuple(question for question, _ in entry["questions"]),
            answers=tuple((question, answer) for question, answer in entry["questions"] if answer),
        )
        for entry in entries
        if (FOLDER / entry["file"]).exists()
    )


def recording(bundled: bool) -> trace.Trace | None:
    """Return the run that the page opens with: the bundled model's first file in ``assets/traces`` that this version can read."""
    if not bundled:
        return None
    for path in sorted((ASSETS / "traces").glob("*.json")):
        try:
            found = trace.Trace.from_json(path.read_text("utf-8"))
            names = {example.path.name: example for example in examples(bundled)}
            if example := names.get(str(next(iter(found.meta.get("pictures", [])), ""))):
                found.meta |= {"pictures": [example.name], "link": f"ex={example.key}"}
            return found
        except ValueError as error:
            log.warning("%s is not shown: %s", path.name, error)
    return None


def thumbnail(path: Path) -> str:
    """Return a small picture as a data URI for the strip."""
    with Image.open(path) as image:
        return data_uri(image, side=132, quality=80)
