"""``avl chat``: every turn's answers, what was fed for them, and whether re-reading says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from avl import cli
from avl.cli import tables
from avl.trace import Trace

GALLERY = Path(__file__).resolve().parents[2] / "assets" / "gallery"
SCENE, OTHER = GALLERY / "scene-9.png", GALLERY / "scene-4.png"


def test_the_second_question_misses_what_the_first_one_evicted(tmp_path, capsys):
    out = tmp_path / "talk.json"
    asked = ["chat", str(SCENE), "What is on the sign?", "What is the price?", "-T", "60", "--max-new-tokens", "4", "--out", str(out)]
    assert cli.main(asked) == 0
    shown = capsys.readouterr().out
    first, second = (Trace.from_json((tmp_path / f"talk-{number}.json").read_text("utf-8")) for number in (1, 2))
    assert tables.turn(first) in shown
    assert tables.turn(second) in shown
    rows = [line.split() for line in tables.turn(second).splitlines() if "$" in line]
    # full attention, A-VL on what it kept, both with the picture read again: the gallery proposes these two questions for it
    assert [[word for word in row if word.startswith("$")] for row in rows] == [["$24"], ["$4"], ["$24"], ["$24"]]
    assert [row[-1] for row in rows] == ["yes", "no", "–", "–"]
    assert second.start.questions == ("What is on the sign?",)


def test_a_later_question_brings_a_picture(tmp_path, capsys):
    """The second question is about another scene, whose price is another one; its trace has both pictures and grids for both."""
    out = tmp_path / "talk.json"
    asked = ["What is on the sign?", f"/image {OTHER}", "What is the price?"]
    assert cli.main(["chat", str(SCENE), *asked, "-T", "60", "--max-new-tokens", "4", "--out", str(out)]) == 0
    assert "written to" in capsys.readouterr().out
    first, second = (Trace.from_json((tmp_path / f"talk-{number}.json").read_text("utf-8")) for number in (1, 2))
    assert (len(first.images), len(second.images)) == (1, 2)
    assert (second.start.n_image, [grid.image for grid in second.start.grids]) == (2 * first.start.n_image, [0, 1])
    assert second.start.arms[0].new_tokens > first.start.n_image > second.start.arms[0].new_tokens - 40


@pytest.mark.parametrize(
    ("questions", "sentence"),
    [
        (["/image x.png", "What?"], "comes before the first question: pass more pictures of a first question as --more-pictures"),
        (["What?", "/image x.png"], "'/image x.png' has no question behind it"),
        (["What?", "/image ", "And?"], "names no file"),
        (["What?", "/image none.png", "And?"], "none.png"),
    ],
)
def test_pictures_without_a_place(questions, sentence, capsys):
    assert cli.main(["chat", str(SCENE), *questions]) == 1
    assert sentence in capsys.readouterr().err


def test_what_it_refuses(tmp_path, capsys):
    assert cli.main(["chat", str(SCENE), "What?", "--out", str(tmp_path / "x.txt")]) == 1
    assert "no known ending" in capsys.readouterr().err
    assert cli.main(["chat", str(SCENE)]) == 2
    assert cli.main(["chat", str(tmp_path / "none.png"), "What?"]) == 1
    assert cli.main(["chat", str(SCENE), "What?", "<image>", "--no-reread", "--max-new-tokens", "1"]) == 1
