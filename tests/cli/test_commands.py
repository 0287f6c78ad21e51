"""The commands of ``avl`` as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from PIL import Image

import avl
from avl import cli
from avl.cli import options, terminal
from avl.engine.request import MODES
from avl.models.checkpoints import CHECKPOINTS
from avl.trace import End, Repeat, Scores, Step, Trace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (80, 60), "grey").save(path)
    return path


def test_no_arguments_and_help_name_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: avl {name} [OPTIONS]" in capsys.readouterr().out


def test_help_is_quick_because_nothing_heavy_is_imported():
    """Under a second, and for every command neither torch nor transformers nor the page's and charts' libraries."""
    heavy = ("torch", "transformers", "numpy", "PIL", "gradio", "plotly", "matplotlib", "triton")
    source = f"""
import contextlib, io, sys
from avl import cli
for name in cli.COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert cli.main([name, "--help"]) == 0
    assert "Options:" in shown.getvalue()
print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "avl", "compare", "--help"], cwd=ROOT, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    assert min(times) < 1, times


def test_a_wrong_command_or_option_has_status_2(capsys):
    assert cli.main(["speed"]) == 2
    assert "No such command 'speed'" in capsys.readouterr().err
    assert cli.main(["doctor", "--fast"]) == 2
    assert "No such option: --fast" in capsys.readouterr().err
    assert cli.main(["compare", "a.png", "What?", "--against", "best"]) == 2
    assert "there is no policy 'best': use full, avl" in capsys.readouterr().err
    assert cli.main(["eval", "--policies", "best"]) == 2
    assert cli.main(["bench", "--batch"]) == 2
    assert cli.main(["bench", "--picture", "64"]) == 2
    assert cli.main(["compare", "a.png", "What?", "-K", "often"]) == 2


def test_app_py_has_the_options_of_avl_page(capsys):
    assert cli.main(["--help"], only="page", program="app.py") == 0
    shown = capsys.readouterr().out
    assert "Usage: app.py [OPTIONS]" in shown
    for flag in ("--model", "--revision", "--device", "--dtype", "--host", "--port", "--share"):
        assert flag in shown
    assert cli.main(["--model", "no/such/place"], only="page", program="app.py") == 1
    assert capsys.readouterr().err.startswith("app.py: there is no model")


def test_modes_of_the_command_line_are_those_of_a_request():
    kind, _ = get_args(get_type_hints(options.Asked, include_extras=True)["mode"])
    assert get_args(kind) == MODES


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--batch", "1", "8", "--quick"], ["--batch", "1", "--batch", "8", "--quick"]),
        (["--batch", "1", "--batch", "8"], ["--batch", "1", "--batch", "8"]),
        (["--quick", "--batch", "1"], ["--quick", "--batch", "1"]),
        (["--batch=1", "--batch", "2", "3"], ["--batch=1", "--batch", "2", "--batch", "3"]),
        (["--batch"], ["--batch"]),
        (["--batch", "--quick"], ["--batch", "--quick"]),
        (["--batch", "-1"], ["--batch", "-1"]),
        (["--others", "--quick"], ["--others", "none", "--quick"]),
        (["--others"], ["--others", "none"]),
        (["--others", "h2o", "fastv"], ["--others", "h2o", "--others", "fastv"]),
        (["--", "--batch", "1", "2"], ["--", "--batch", "1", "2"]),
        ([], []),
    ],
)
def test_several_values_may_follow_one_flag(given, read):
    assert options.spread(given, {"--batch": False, "--others": True}) == read


def test_options_of_a_vl_are_its_parameters(capsys, monkeypatch, picture):
    """Flags, help and start values come from the policy's own fields."""
    cli.main(["compare", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for one in avl.AVL.params():
        flag = f"-{one.name}" if len(one.name) == 1 else f"--{one.name}"
        assert f" {flag} " in shown
        assert one.help in shown
    asked = []

    def run(load, request):
        asked.append(request)
        raise ValueError("enough")

    monkeypatch.setattr(terminal, "run", run)
    assert cli.main(["compare", str(picture), str(picture), "What?"]) == 1
    assert cli.main(["compare", str(picture), "What?", "-S", "30", "-C", "off", "-K", "2", "-T60", "--update", "after"]) == 1
    assert cli.main(["compare", str(picture), "What?", "--against", "h2o:keep=40", "--max-new-tokens", "7"]) == 1
    usual, changed, against = asked
    assert len(usual.images) == 2
    assert usual.policies == (avl.Full(), avl.AVL(S=45, C=30, K=3, P=90))
    assert changed.policies[1] == avl.AVL(S=30, C=None, K=2, P=90, T=60, update="after")
    assert against.policies[0] == avl.H2O(keep=40)
    assert against.max_new_tokens == 7


@pytest.mark.parametrize("name", [options.cli_name(policy) for policy in avl.POLICIES.values()])
def test_any_registered_policy_can_be_compared_with(name, picture, monkeypatch):
    asked = []
    monkeypatch.setattr(terminal, "run", lambda load, request: asked.append(request) or Trace())
    monkeypatch.setattr(terminal, "table", lambda trace: "")
    assert cli.main(["compare", str(picture), "What?", "--against", name]) == 0
    assert options.cli_name(type(asked[0].policies[0])) == name


def test_doctor_finds_this_installation_complete(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "missing: " not in shown
    for word in ("torch", "triton", "model tiny", "disk", "attention", "gpu"):
        assert word in shown


def test_doctor_lists_every_short_name(capsys, monkeypatch, tmp_path):
    """Those in the cache one a line, the others together."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    there = tmp_path / "models--Qwen--Qwen3-VL-4B-Instruct" / "snapshots" / "a"
    there.mkdir(parents=True)
    (there / "model.safetensors").touch()
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"ok +model qwen3-vl-4b +downloaded \(Qwen/Qwen3-VL-4B-Instruct\)", line) for line in lines)
    (others,) = [line.partition("not downloaded: ")[2].split(", ") for line in lines if "other models" in line]
    assert others == [name for name in CHECKPOINTS if name != "qwen3-vl-4b"]


def test_doctor_fails_where_something_needed_is_missing(capsys, monkeypatch):
    from avl.cli import diagnosis

    real = diagnosis.package_version
    monkeypatch.setattr(diagnosis, "package_version", lambda name: None if name in ("numpy", "gradio") else real(name))
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("missing: numpy"), "the page's libraries are an extra"
    assert "the extra [page] of this package brings it" in shown


def test_compare_answers_twice_and_keeps_the_trace(tmp_path, picture, capsys):
    out = tmp_path / "trace.json"
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "4", "--out", str(out)]) == 0
    trace = Trace.from_json(out.read_text(encoding="utf-8"))
    assert {end.arm for end in trace.of(End)} == {0, 1}
    assert trace.images[0].startswith("data:image/webp;base64,")
    shown = capsys.readouterr().out
    assert "Full attention" in shown
    assert "KV stored" in shown
    assert terminal.table(trace) in shown


def test_compare_writes_a_report_that_plays_offline(tmp_path, picture, capsys):
    out = tmp_path / "run.html"
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "3", "--repeats", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 runs" in shown
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page


def test_record_keeps_attention_spread_and_the_right_answer(tmp_path, picture, capsys):
    out = tmp_path / "run.json"
    more = ["--max-new-tokens", "3", "--repeats", "2", "--answer", "grey", "--out", str(out)]
    assert cli.main(["record", str(picture), "What is this?", *more]) == 0
    trace = Trace.from_json(out.read_text(encoding="utf-8"))
    assert trace.meta["expected"] == "grey"
    assert len(trace.of(Repeat)) == 2
    ends = trace.of(End)
    assert len(trace.of(Scores)) == sum(len(trace.of(Step, arm)) + 1 for arm in (0, 1))
    assert [event.tokens for event in trace.of(Repeat)] == [end.tokens for end in sorted(ends, key=lambda end: -end.arm)], "turned order"
    assert "trace written" in capsys.readouterr().out


def test_figures_of_the_recorded_run(tmp_path, capsys):
    file, recording = tmp_path / "kept" / "figures.json", next((ROOT / "assets" / "traces").glob("*.json"))
    assert cli.main(["figures", str(recording), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    result = json.loads(shown.splitlines()[-1])
    assert result == json.loads(file.read_text(encoding="utf-8"))
    trace = Trace.from_json(recording.read_text(encoding="utf-8"))
    layers, passes = trace.start.layers, len(trace.of(Scores, 0))
    assert result["passes"] == passes
    assert result["image_tokens"] == trace.start.n_image
    shares = result["modality_shares"]
    assert list(shares) == ["system", "image", "instruction", "generated", "between"]
    for number in range(passes):
        assert sum(column[number] for column in shares.values()) == pytest.approx(1, abs=2e-3)
    assert shares["generated"][0] == 0
    for name in ("layer_concordance", "step_concordance", "sparsity"):
        assert len(result[name]) == layers
        assert all(0 < value <= 1 for value in result[name])
    assert result["layer_concordance"][0] == 1
    assert result["divergence"]["common"] <= max(len(end.tokens) for end in trace.of(End))
    for heading in ("Figure 1", "Figure 3", "Figure 4", "Figure 5"):
        assert heading in shown

    assert cli.main(["figures", str(recording), "-p", "10"]) == 0
    fewer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert fewer["layer_concordance"] != result["layer_concordance"]


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--mass", "0"], "mass=0.0 is out of range"), (["-p", "0"], "p must be above 0"), (["--arm", "7"], "no scores of arm 7")],
)
def test_figures_of_bad_input_are_one_sentence(more, words, capsys):
    recording = next((ROOT / "assets" / "traces").glob("*.json"))
    assert cli.main(["figures", str(recording), *more]) == 1
    assert words in capsys.readouterr().err
    assert cli.main(["figures", "nowhere.json"]) == 1
    assert "there is no file nowhere.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png", "What?"], "no picture file"),
        (["{picture}", " "], "question is empty"),
        (["{picture}", "What?", "-S", "20", "-C", "30"], "C=30"),
        (["{picture}", "What?", "-S", "off"], "S=None"),
        (["{picture}", "What?", "--against", "h2o:keep=400"], "keep=400"),
        (["{picture}", "What?", "--model", "no/such/place"], "no model"),
        (["{picture}", "What?", "--repeats", "0"], "repeats=0"),
        (["{picture}", "What?", "--out", "run.pdf"], "no known ending"),
    ],
)
def test_bad_input_is_one_sentence_and_no_traceback(picture, capsys, arguments, words):
    assert cli.main(["compare", *(argument.format(picture=picture) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_a_defect_keeps_its_traceback(monkeypatch, picture):
    def run(load, request):
        raise UnicodeError("a kind of ValueError that nobody raised for a person")

    monkeypatch.setattr(terminal, "run", run)
    with pytest.raises(UnicodeError):
        cli.main(["compare", str(picture), "What?"])


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b"null", b"5", b'"x"', b"\xff\xfe", b'{"rows": []}', b"[" * 100_000], ids=lambda text: repr(text[:12])
)
@pytest.mark.parametrize("command", ["figures", "bench"])
def test_a_file_that_is_none_of_ours_is_one_sentence(command, text, tmp_path, capsys):
    file, readme = tmp_path / "other.json", tmp_path / "README.md"
    file.write_bytes(text)
    readme.write_text("text", encoding="utf-8")
    before = readme.read_bytes()
    arguments = ["figures", str(file)] if command == "figures" else ["bench", "--render", str(readme), str(file)]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "trace" in said if command == "figures" else "is not a result that avl bench --json wrote" in said
    assert readme.read_bytes() == before


@pytest.mark.parametrize("where", ["missing.json", "."])
@pytest.mark.parametrize("command", [["figures"], ["bench", "--render", "README.md"]], ids=lambda command: command[0])
def test_a_file_that_cannot_be_read_is_one_sentence(command, where, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("text", encoding="utf-8")
    assert cli.main([*command, where]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert where in said
