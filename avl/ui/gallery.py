"""Example pictures and questions, from ``assets/gallery/examples.json``; ``assets/gallery/draw.py`` makes both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from avl import trace
from avl._paths import ASSETS
from avl.models.images import data_uri, open_image

FOLDER = ASSETS / "gallery"
BUNDLED_NAME = "the bundled small LLaVA"
RESTORE = "restore the file from the repository, or install the package again"


@dataclass(frozen=True)
class Example:
    """A picture with questions that suit it; ``answers`` maps a question to its right answer where there is one.

    ``conversation``: two questions to ask one after the other, empty where none are proposed.
    """

    key: str
    name: str
    path: Path
    questions: tuple[str, ...]
    answers: tuple[tuple[str, str], ...] = ()
    conversation: tuple[str, ...] = ()


@lru_cache(maxsize=4)
def examples(bundled: bool) -> tuple[Example, ...]:
    """Return the gallery for the bundled model, or for real LLaVA checkpoints.

    Raises:
        OSError: the file is broken; one sentence.
    """
    file = FOLDER / "examples.json"
    if not file.exists():
        return ()
    try:
        entries = json.loads(file.read_text("utf-8"))["bundled" if bundled else "real"]
        return tuple(
            Example(
                key=entry["key"],
                name=entry["name"],
                path=FOLDER / entry["file"],
                questions=tuple(question for question, _ in entry["questions"]),
                answers=tuple((question, answer) for question, answer in entry["questions"] if answer),
                conversation=tuple(entry.get("conversation", ())),
            )
            for entry in entries
            if (FOLDER / entry["file"]).exists()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"assets/gallery/{file.name} is broken ({_why(error)}): {RESTORE}") from None


def recording(bundled: bool) -> trace.Trace | None:
    """Return the run that the page opens with: the first file in ``assets/traces``, None without one.

    It is of the bundled model; a page of another model hears that from ``other_model`` in its meta.

    Raises:
        OSError: the file is no trace that this version can read; one sentence.
    """
    for path in sorted((ASSETS / "traces").glob("*.json"))[:1]:
        try:
            found = trace.Trace.from_json(path.read_text("utf-8"))
            found.start.to_dict()
            names = {example.path.name: example for example in examples(bundled=True)}
            if example := names.get(str(next(iter(found.meta.get("pictures", [])), ""))):
                found.meta |= {"pictures": [example.name], **({"link": f"ex={example.key}"} if bundled else {})}
            if not bundled:
                found.meta["other_model"] = BUNDLED_NAME
            return found
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OSError(f"assets/traces/{path.name} is not a trace that can be shown ({_why(error)}): {RESTORE}") from None
    return None


def _why(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def thumbnail(path: Path) -> str:
    """Return a small picture as a data URI for the strip.

    Raises:
        OSError: the file is no picture; one sentence.
    """
    try:
        return data_uri(open_image(path), side=132, quality=80)
    except ValueError:
        raise OSError(f"assets/gallery/{path.name} is not a picture that can be read: {RESTORE}") from None
