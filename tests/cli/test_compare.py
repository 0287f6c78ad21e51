"""``avl compare`` with several policies: which run, at what memory, and what its tables say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import avl
from avl import cli
from avl.cli import tables, terminal
from avl.policies import POLICIES
from avl.policies.equal_memory import answer_steps, stored_share
from avl.trace import Agreement, End, Trace

SCENE = Path(__file__).resolve().parents[2] / "assets" / "gallery" / "scene.png"
COMPARE = ["compare", "{picture}", "What is this?"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (80, 60), "grey").save(path)
    return path


@pytest.fixture
def asked(monkeypatch, picture):
    """The policies that a command line asks for."""

    def ask(*options: str) -> list[avl.Policy]:
        seen: list[avl.Policy] = []
        monkeypatch.setattr(terminal, "run", lambda load, request: seen.extend(request.policies) or Trace())
        monkeypatch.setattr(tables, "comparison", lambda trace: "")
        assert cli.main(["compare", str(picture), "What is this?", *options]) == 0
        return seen

    return ask


def test_against_takes_any_number(asked):
    adaptive = avl.AVL(S=45, C=30, K=3, P=90)
    assert asked() == [avl.Full(), adaptive]
    assert asked("--against", "full", "h2o:keep=40,recent=20", "avl:S=30") == [
        avl.Full(),
        avl.H2O(keep=40, recent=20),
        avl.AVL(S=30),
        adaptive,
    ]
    assert asked("--against", "h2o", "--against", "fastv", "-S", "50") == [avl.H2O(), avl.FastV(), replace(adaptive, S=50)]


def test_all_is_the_registry_in_its_order(asked):
    found = asked("--all", "-S", "50", "-T", "70")
    assert [policy.name for policy in found] == list(POLICIES)
    assert found[1] == avl.AVL(S=50, C=30, K=3, P=90, T=70)


def test_equal_memory_sets_the_budgets_by_the_prompt_of_this_picture(asked):
    found = asked("--all", "--equal-memory", "-T", "60", "--max-new-tokens", "40")
    assert [policy.name for policy in found] == list(POLICIES)
    model, processor = avl.load("tiny", device="cpu")
    shape = avl.prompt_shape(model, processor, Image.new("RGB", (80, 60)), "What is this?", 40)
    assert shape.n_image == 576
    shares = [stored_share(policy, answer_steps(shape)) for policy in found]
    assert shares[0] == 1
    assert shares[1:] == pytest.approx([shares[1]] * 6, abs=0.003)


def test_what_cannot_be_set_is_left_out_and_said(asked, capsys):
    found = asked("--against", "fastv", "snapkv", "--equal-memory", "-S", "5", "-C", "off", "-P", "10")
    assert [policy.name for policy in found] == ["SnapKV", "AVL"]
    said = capsys.readouterr().err
    assert re.search(r"left out: FastV cannot store [\d.]+%: with keep from 0.001 to 100 it stores [\d.]+% to 100", said)


def test_the_tables_are_of_the_run_that_is_kept(picture, tmp_path, capsys):
    out = tmp_path / "run.json"
    options = ["--agreement", "--max-new-tokens", "6"]
    assert cli.main(["compare", str(picture), "Describe the picture.", *options, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    trace = Trace.from_json(out.read_text("utf-8"))
    assert tables.comparison(trace) in shown
    assert tables.agreement(trace) in shown
    assert [event.arm for event in trace.of(Agreement)] == [0, 1]
    for words in ("same as full", "ms/token", "perplexity"):
        assert words in shown
    for end in trace.of(End):
        assert f"{end.ttft_ms:.0f} ms" in shown


def event(arm: int, top: list[int | None]) -> Agreement:
    texts = tuple(None if token is None else f" w{token}" for token in top)
    size = len(top)
    return Agreement(arm, 0, (7,) * size, (" x",) * size, tuple(top), texts, (0.5,) * size, (2.0,) * size, (1.0,) * size)


def test_the_agreement_table_by_hand():
    """Shares, means, perplexities; a dozen places, then how many more."""
    trace = Trace.from_json((SCENE.parents[1] / "traces" / "scene.json").read_text("utf-8"))
    trace.events = [one for one in trace.events if not isinstance(one, Agreement)]
    assert tables.agreement(trace) == ""
    trace.events += [event(0, [None] * 20), event(1, [None] * 5 + [3] * 15)]
    text = tables.agreement(trace)
    assert "under full attention is 2.718" in text
    rows = [line for line in text.splitlines() if line.endswith("7.389")]
    assert [re.findall(r"[\d.]+%|\d\.\d+$|\d\.\d+ ", row) for row in rows] == [
        ["100.0%", "0.5000 ", "7.389"],
        ["25.0%", "0.5000 ", "7.389"],
    ]
    assert "would have gone on otherwise at 15 of 20 tokens" in text
    assert text.count("' w3' for ' x', KL 0.5") == tables.MOST_PLACES
    assert text.endswith("  and at 3 more")


def test_the_table_tells_how_much_is_the_same_and_never_cuts_a_number(monkeypatch):
    trace = Trace.from_json((SCENE.parents[1] / "traces" / "scene.json").read_text("utf-8"))
    ends = {end.arm: end for end in trace.of(End)}
    changed = replace(ends[1], tokens=(*ends[0].tokens[:3], -1), reason="length")
    trace.events = [changed if one is ends[1] else one for one in trace.events]
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        text = tables.comparison(trace)
        assert "first 3 tokens" in text
        for end in ends.values():
            assert f"{end.stored_bytes / 2**20:.2f} MiB, {end.stored_bytes / ends[0].stored_bytes:.0%}" in text
            assert f"{end.ttft_ms:.0f} ms" in text
        assert len(re.findall(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\)$", text, re.M)) == 2
        assert "policy" in text
    trace.events = [one for one in trace.events if getattr(one, "arm", None) != 0]
    assert "first 3" not in tables.comparison(trace), "without full attention there is nothing to compare with"


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_the_live_view_has_room_for_all_answers(count):
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    board = terminal._Board([avl.H2O(keep=10 + number) for number in range(count)], 5)
    console.print(board)
    shown = console.export_text()
    assert all(f"keep={10 + number}" in shown for number in range(count))
