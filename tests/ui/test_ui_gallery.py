"""The gallery's files: all there, licensed, small; and real photographs for real models."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from avl.ui import gallery

LICENSES = gallery.FOLDER / "LICENSES.md"
FREE = ("CC0 1.0", "public domain", "Apache-2.0, this project's")


def licensed() -> dict[str, str]:
    """File -> its license, of all rows of LICENSES.md."""
    found = {}
    for line in LICENSES.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and "`" in cells[0]:
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[2])
    return found


def pictures() -> set[str]:
    return {path.name for path in gallery.FOLDER.iterdir() if path.suffix in (".png", ".jpg")}


def test_every_picture_has_a_line_with_a_free_license() -> None:
    lines = licensed()
    assert set(lines) == pictures()
    assert set(lines.values()) <= set(FREE)


@pytest.mark.parametrize("bundled", [True, False])
def test_every_example_has_its_picture(bundled: bool) -> None:
    entries = gallery.examples(bundled)
    assert {entry.path.name for entry in entries} <= pictures()
    assert len({entry.key for entry in entries}) == len(entries) >= 6
    for entry in entries:
        asked = dict(entry.answers)
        assert set(asked) <= set(entry.questions)
        assert len(set(entry.questions)) == len(entry.questions) >= 3


def test_a_real_model_opens_with_photographs_and_the_bundled_one_without() -> None:
    photographs = {"coffee", "astronaut", "rocket", "cat", "book"}
    assert {entry.key for entry in gallery.examples(False)[:5]} == photographs
    assert not photographs & {entry.key for entry in gallery.examples(True)}
    assert all("Describe this picture in detail." in entry.questions for entry in gallery.examples(False)[:5])


def test_photographs_are_small() -> None:
    files = [gallery.FOLDER / name for name in pictures() if name.endswith(".jpg")]
    assert len(files) == 5
    for file in files:
        assert max(Image.open(file).size) <= 672, file.name
    assert sum(file.stat().st_size for file in files) < 400_000


def test_a_real_model_opens_with_the_bundled_recording_and_says_so() -> None:
    own, others = gallery.recording(True), gallery.recording(False)
    assert own is not None
    assert others is not None
    assert others.events == own.events
    assert others.meta["other_model"] == "the bundled small LLaVA"
    assert "other_model" not in own.meta
    # its picture has no place in the strip of a real model
    assert own.meta["link"].removeprefix("ex=") in {example.key for example in gallery.examples(True)}
    assert "link" not in others.meta
