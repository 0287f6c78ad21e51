"""``avl chat``: every turn's answers, what was fed for them, and whether re-reading says the same."""

from __future__ import annotations

from pathlib import Path

from avl import cli
from avl.cli import tables
from avl.trace import Trace

SCENE = Path(__file__).resolve().parents[2] / "assets" / "gallery" / "scene-9.png"


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


def test_what_it_refuses(tmp_path, capsys):
    assert cli.main(["chat", str(SCENE), "What?", "--out", str(tmp_path / "x.txt")]) == 1
    assert "no known ending" in capsys.readouterr().err
    assert cli.main(["chat", str(SCENE)]) == 2
    assert cli.main(["chat", str(tmp_path / "none.png"), "What?"]) == 1
    assert cli.main(["chat", str(SCENE), "What?", "<image>", "--no-reread", "--max-new-tokens", "1"]) == 1
