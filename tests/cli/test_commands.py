"""The commands of ``python -m avl`` as a user meets them."""

from __future__ import annotations

import importlib

import pytest
from PIL import Image

from avl.cli import compare, doctor
from avl.cli import main as cli
from avl.trace import End, Repeat, Scores, Step, Trace


def test_usage_names_every_command(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_and_has_help(name, capsys):
    assert callable(importlib.import_module(cli.COMMANDS[name][0]).main)
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_an_unknown_command_is_one_sentence(capsys):
    assert cli.main(["speed"]) == 2
    assert "no command 'speed'" in capsys.readouterr().err


def test_doctor_finds_this_installation_complete(capsys):
    assert doctor.main([]) == 0
    shown = capsys.readouterr().out
    assert "missing: " not in shown
    for word in ("torch", "triton", "model tiny", "disk", "attention", "gpu"):
        assert word in shown


def test_compare_answers_twice_and_keeps_the_trace(tmp_path, capsys):
    picture = tmp_path / "grey.png"
    Image.new("RGB", (80, 60), "grey").save(picture)
    out = tmp_path / "trace.json"
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "4", "--out", str(out)]) == 0
    trace = Trace.from_json(out.read_text(encoding="utf-8"))
    assert {end.arm for end in trace.of(End)} == {0, 1}
    assert trace.images[0].startswith("data:image/webp;base64,")
    shown = capsys.readouterr().out
    assert "Full attention" in shown
    assert "KV stored" in shown
    assert compare.table(trace) in shown


def test_compare_writes_a_report_that_plays_offline(tmp_path, capsys):
    picture, out = tmp_path / "grey.png", tmp_path / "run.html"
    Image.new("RGB", (80, 60), "grey").save(picture)
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "3", "--repeats", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 runs" in shown
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page


def test_record_keeps_attention_spread_and_the_right_answer(tmp_path, capsys):
    picture, out = tmp_path / "grey.png", tmp_path / "run.json"
    Image.new("RGB", (80, 60), "grey").save(picture)
    more = ["--max-new-tokens", "3", "--repeats", "2", "--answer", "grey", "--out", str(out)]
    assert cli.main(["record", str(picture), "What is this?", *more]) == 0
    trace = Trace.from_json(out.read_text(encoding="utf-8"))
    assert trace.meta["expected"] == "grey"
    assert len(trace.of(Repeat)) == 2
    ends = trace.of(End)
    assert len(trace.of(Scores)) == sum(len(trace.of(Step, arm)) + 1 for arm in (0, 1))
    assert [event.tokens for event in trace.of(Repeat)] == [end.tokens for end in sorted(ends, key=lambda end: -end.arm)], "turned order"
    assert "trace written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png", "What?"], "no picture file"),
        (["{picture}", " "], "question is empty"),
        (["{picture}", "What?", "-S", "20", "-C", "30"], "C=30.0"),
        (["{picture}", "What?", "--model", "no/such/place"], "no model"),
        (["{picture}", "What?", "--repeats", "0"], "repeats=0"),
        (["{picture}", "What?", "--out", "run.pdf"], "no known ending"),
    ],
)
def test_bad_input_is_one_sentence_and_no_traceback(tmp_path, capsys, arguments, words):
    picture = tmp_path / "grey.png"
    Image.new("RGB", (80, 60), "grey").save(picture)
    assert cli.main(["compare", *(argument.format(picture=picture) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
