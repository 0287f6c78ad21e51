"""The commands of ``avl`` as a user meets them."""

from __future__ import annotations

import base64
import csv
import gzip
import io
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
from avl.cli import options, tables, terminal
from avl.engine.request import MODES
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
    monkeypatch.setattr(tables, "comparison", lambda trace: "")
    assert cli.main(["compare", str(picture), "What?", "--against", name]) == 0
    assert options.cli_name(type(asked[0].policies[0])) == name


def test_a_device_map_is_never_ignored(capsys):
    assert cli.main(["bench", "--random-weights", "llava-1.5-7b", "--device-map", "auto"]) == 1
    assert "--device-map spreads a checkpoint" in capsys.readouterr().err


def test_compare_answers_twice_and_keeps_the_trace(tmp_path, picture, capsys):
    out = tmp_path / "trace.json"
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "4", "--out", str(out)]) == 0
    trace = Trace.from_json(out.read_text(encoding="utf-8"))
    assert {end.arm for end in trace.of(End)} == {0, 1}
    assert trace.images[0].startswith("data:image/webp;base64,")
    shown = capsys.readouterr().out
    assert "Full attention" in shown
    assert "KV stored" in shown
    assert tables.comparison(trace) in shown


def test_compare_adds_lines_to_a_table(tmp_path, picture, capsys):
    file = tmp_path / "runs.csv"
    for question in ("What is this?", "=1+1"):
        assert cli.main(["compare", str(picture), question, "--max-new-tokens", "3", "--csv", str(file)]) == 0
        assert f"2 lines added to {file}" in capsys.readouterr().out
    lines = list(csv.DictReader(io.StringIO(file.read_text("utf-8"))))
    assert [(line["question"], line["policy"]) for line in lines] == [
        ("What is this?", "Full"), ("What is this?", "AVL"), ("'=1+1", "Full"), ("'=1+1", "AVL"),
    ]  # fmt: skip
    file.write_text("something else\n")
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "3", "--csv", str(file)]) == 1
    assert "has other columns" in capsys.readouterr().err


def test_compare_writes_a_report_that_plays_offline(tmp_path, picture, capsys):
    out = tmp_path / "run.html"
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "3", "--repeats", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 runs" in shown
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page


@pytest.mark.parametrize(("ending", "prefix"), [("json", None), ("html", "d:")])
def test_a_trace_keeps_exact_scores_and_a_page_codes(tmp_path, picture, ending, prefix):
    """Figures of a file are exact, and a page of a large model still opens."""
    out = tmp_path / f"run.{ending}"
    assert cli.main(["compare", str(picture), "What is this?", "--max-new-tokens", "2", "--scores", "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    if ending == "html":
        packed = re.search(r'id="packed-trace">([^<]+)<', text)
        text = gzip.decompress(base64.b64decode(packed[1])).decode()
    trace = Trace.from_json(text)
    found = [layer for event in trace.of(Scores) for layer in event.image]
    assert len(found) == 2 * 2 * trace.start.layers
    assert all(layer.startswith(prefix) if prefix else ":" not in layer for layer in found)


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
        (["{picture}", "What?", "--all", "--against", "h2o"], "leave out --against"),
        (["{picture}", "What?", "--equal-memory", "--against", "snapkv", "h2o:recent=20,keep=40"], "--equal-memory sets keep of H2O"),
        (["{picture}", "What?", "--against", "h2o", "fastv:layer=70"], "layer=70"),
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


def test_sweep_prints_a_line_for_each_point_and_a_verdict(tmp_path, picture, capsys):
    files = ["--json", str(tmp_path / "new" / "sweep.json"), "--csv", str(tmp_path / "sweep.csv")]
    command = ["sweep", str(picture), "What is this?", "--over", "S=0:40:20", "K=1,3", "--policy", "avl:S=45,C=30", "--max-new-tokens", "4"]
    assert cli.main([*command, *files]) == 0
    shown = capsys.readouterr().out
    assert "A-VL with C=30, over S and K; each point ran once" in shown
    told = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert [row["values"] for row in told["rows"]] == [{}, {"S": 20, "K": 1}, {"S": 20, "K": 3}, {"S": 40, "K": 1}, {"S": 40, "K": 3}]
    for row in told["rows"]:
        assert row["text"] in shown
        assert f"{row['stored_bytes'] / 2**20:.2f} MiB" in shown
    assert "skipped S=0, K=1: S=0 is out of range" in shown
    assert "(C is lowered from 30 to 20 to fit.)" in shown
    assert shown.rstrip().endswith(told["end"]["text"])
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 1 + 5 + 2


def test_sweep_shows_medians_of_repeats_and_any_policy(picture, capsys):
    command = [
        "sweep",
        str(picture),
        "What is this?",
        "--over",
        "keep=50,100",
        "--policy",
        "h2o",
        "--max-new-tokens",
        "3",
        "--repeats",
        "2",
    ]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "times are medians of 2 runs" in shown
    assert re.search(r"^ 100   yes ", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--over", "S"], "is no range"),
        (["--over", "Q=1,2"], "no parameter"),
        (["--over", "S=0"], "no point of this sweep is valid"),
        (["--over", "S=1:100:1"], "64 is the most"),
        (["--policy", "avl:S=400"], "S=400"),
        (["--batch", "0"], "batch=0"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
    ],
)
def test_sweep_refuses_what_cannot_be_before_a_model_is_loaded(options, said, picture, capsys):
    assert cli.main(["sweep", str(picture), "What?", "--model", "no/such/place", *options]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.startswith("sweep: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "former", [[], ["--samples", "3"], ["--shares", "100", "20"], ["--device", "cpu", "--out=here"], ["--spreads", "none"]]
)
def test_sweep_points_those_who_want_the_former_command_to_its_new_name(former, capsys):
    assert cli.main(["sweep", *former]) == 2
    told = capsys.readouterr().err
    assert "avl eval-sweep" in told
    assert told.count("\n") == 1


def test_what_if_prints_and_keeps_a_prediction(tmp_path, capsys):
    file = tmp_path / "new" / "what.json"
    command = ["what-if", "--model", "llava-1.6-34b", "--gpu", "h200", "--batch", "1,64", "--image-tokens", "576", "--json", str(file)]
    assert cli.main([*command, "--policy", "h2o:keep=50"]) == 0
    shown, told = capsys.readouterr().out, json.loads(file.read_text())
    assert [row["batch"] for row in told["rows"]] == [1, 64]
    assert "576 image + 65 text + 128 new tokens" in shown
    assert "H2O keep=50" in shown
    for row in told["rows"]:
        assert f"{row['full']['ms']:.2f} ms" in shown
        assert f"{row['speedup']:.2f}x" in shown
    assert f"Largest batch: {told['largest']['full']['batch']} (" in shown
    assert all(sentence in shown for sentence in told["left_out"])


def test_what_if_can_measure_this_machine(capsys, monkeypatch):
    from avl.bench import here

    measure = here.measure_bandwidth
    monkeypatch.setattr(here, "measure_bandwidth", lambda device, *_: measure(device, 1, 0.001, 1 << 20))
    assert cli.main(["what-if", "--gpu", "here", "--model", "tiny", "--batch", "1"]) == 0
    shown = capsys.readouterr().out
    assert "measured now" in shown
    assert "data sheet" not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "gpt"], "the sizes of model 'gpt' are not known: use llava-1.5-7b"),
        (["--gpu", "gtx"], "there is no GPU 'gtx': use t4"),
        (["--batch", "1,x"], "no list of whole numbers"),
        (["--batch", "0"], "batch=0"),
        (["--image-tokens", "-1"], "image_tokens=-1"),
        (["--new-tokens", "1"], "new_tokens=1"),
        (["--policy", "avl:S=0"], "S=0"),
    ],
)
def test_what_if_refuses_in_one_sentence(options, said, capsys):
    assert cli.main(["what-if", *options]) == 1
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
