"""`avl figures` of a model: the bundled one, a language model; what it refuses; and the times of Figure 8 at small sizes."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_families import MODELS
from tiny_families.base import text_options, tokenizer

from avl import cli
from avl.evaluation import evaluate
from avl.evaluation.figures import language, reading, settings
from avl.evaluation.rows import Row
from avl.kernels.bench import attention as checked
from avl.kernels.bench.baselines import SkippedError
from avl.kernels.bench.cases import Shape
from avl.policies import Full
from avl.ui.gallery import examples

SMALL = Shape("small", 4, 2, 32, 64, 8, 19)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "squares.png"
    array = np.zeros((60, 80, 3), np.uint8)
    array[10:30, 10:30] = 255
    Image.fromarray(array).save(path)
    return path


def run(capsys, *arguments):
    assert cli.main(["figures", "--device", "cpu", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_recorded_figures_of_the_bundled_model(picture, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "index.json"
    index = run(capsys, "--figures", "5,1,3,4", "--images", picture, "--max-new-tokens", 24, "--out", out, "--json", file)
    assert index == json.loads(file.read_text("utf-8")) == json.loads((out / "figures.json").read_text("utf-8"))
    assert [one["figure"] for one in index["figures"]] == ["1", "3", "4", "5"]
    assert not index["skipped"]
    assert index["settings"]["images"] == ["squares.png"]
    assert str(tmp_path) not in (out / "figures.json").read_text("utf-8")
    for one in index["figures"]:
        svg, data = (out / name for name in one["files"])
        assert ET.fromstring(svg.read_bytes()).find("{http://www.w3.org/2000/svg}title").text == one["title"]
        kept = json.loads(data.read_text("utf-8"))
        assert {"model", "machine", "date", "version", "settings", "statements", "data"} <= set(kept)
        assert {said["agrees"] for said in one["statements"]} == {"cannot say"}, "one answer decides nothing"
    few = json.loads((out / "figure-3.json").read_text("utf-8"))
    assert np.array(few["data"]["maps"]["scores"]).shape == (8, 24, 24)
    assert 0 < few["statements"][0]["measured"] < 80


def test_it_is_what_the_recorded_run_shows(picture, tmp_path, capsys):
    """The same answer as a trace, by the other form of the command."""
    question, out, trace = "What is in this picture?", tmp_path / "out", tmp_path / "run.json"
    run(capsys, "--figures", "1,4", "--images", picture, "--question", question, "--max-new-tokens", 5, "--out", out)
    recorded = ["compare", str(picture), question, "--device", "cpu", "--max-new-tokens", "5", "--scores", "--out", str(trace)]
    assert cli.main(recorded) == 0
    assert cli.main(["figures", str(trace)]) == 0
    table = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    shares = json.loads((out / "figure-1.json").read_text("utf-8"))["data"]["shares"]
    for part, curve in shares.items():
        assert curve["median"] == pytest.approx(table["modality_shares"][part][1:], abs=2e-4)
    layers = json.loads((out / "figure-4.json").read_text("utf-8"))["data"]["ppci"]["50"]["median"]
    assert layers == pytest.approx(table["layer_concordance"], abs=1e-3)


def scored(model, processor, samples, policy, batch):
    return Row(policy.label, policy.to_dict(), {"read": (0.5,) * len(samples)}, 1.0, 1.0, 0.0, "2026-11-26")


def test_scores_are_kept_and_not_measured_again(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: asked.append(given[3]) or scored(*given))
    first = run(capsys, "--figures", "10", "--samples", 5, "--out", tmp_path)
    assert [one["figure"] for one in first["figures"]] == ["10"]
    alone = [settings.pruned(share) for share in settings.PRUNED] + [settings.windowed(share) for share in settings.WINDOWS]
    assert asked == [Full(), *alone]
    asked.clear()
    assert run(capsys, "--figures", "10", "--samples", 5, "--out", tmp_path)["figures"] == first["figures"]
    assert not asked
    assert cli.main(["figures", "--figures", "10", "--samples", "6", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "holds rows made with samples 5, not 6" in capsys.readouterr().err


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random language model, saved with its tokenizer."""
    folder = tmp_path_factory.mktemp("language") / "random-llama"
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text_options()))
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_a_language_model_has_its_own_figure_1(llama, tmp_path, capsys):
    index = run(capsys, "--model", llama, "--figures", "1,3,9", "--max-new-tokens", 22, "--out", tmp_path / "out")
    assert [one["figure"] for one in index["figures"]] == ["1"]
    assert {one["figure"]: one["reason"] for one in index["skipped"]} == {
        "3": "it is about image tokens, and random-llama takes no pictures",
        "9": "it needs a task with right answers, and those at hand are the bundled model's, not random-llama's",
    }
    data = json.loads((tmp_path / "out" / "figure-1.json").read_text("utf-8"))["data"]
    assert len(data["answers"]) == len(language.QUESTIONS)
    assert list(data["shares"]) == ["system", "instruction", "generated"]
    assert len(data["steps"]) == 21
    assert index["figures"][0]["statements"][0]["count"] == len(language.QUESTIONS)


@torch.inference_mode()
def test_a_language_models_parts_are_eager_attentions(llama):
    """System is what precedes the question: the token that begins a prompt, in a tokenizer without chat template."""
    model, words = transformers.LlamaForCausalLM.from_pretrained(llama), transformers.AutoTokenizer.from_pretrained(llama)
    (answer,) = language.record_language(model, words, ["what is here ?"], 3)
    eager = transformers.LlamaForCausalLM.from_pretrained(llama, attn_implementation="eager")
    prompt = words("what is here ?", return_tensors="pt")["input_ids"]
    out = eager.generate(prompt, max_new_tokens=3, do_sample=False)
    weights = eager(out[:, :-1], output_attentions=True).attentions
    length = prompt.shape[1]
    for t in range(3):
        row = torch.stack([layer[0, :, length - 1 + t, : length + t].mean(0) for layer in weights]).mean(0)
        parts = [float(row[:1].sum()), float(row[1:length].sum()), float(row[length:].sum())]
        assert [answer.shares[part][t] for part in ("system", "instruction", "generated")] == pytest.approx(parts, abs=1e-5)


def test_a_chat_template_is_system_up_to_the_question():
    words = tokenizer()
    words.chat_template = "{% for message in messages %}what is {{ message['content'] }} {% endfor %}ASSISTANT:"
    inputs, system = language._encode(words, "red sign ?")
    assert words.convert_ids_to_tokens(inputs["input_ids"][0, 1:].tolist()) == ["what", "is", "red", "sign", "?", "ASSISTANT:"]
    assert system == 3, "the token that begins a prompt, what, is"
    words.chat_template = "what is here ?"
    with pytest.raises(ValueError, match="changes the question or leaves it out"):
        language._encode(words, "red sign ?")


def test_a_language_model_without_tokenizer_is_refused(llama, tmp_path, capsys):
    folder = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    assert cli.main(["figures", "--model", str(folder), "--figures", "1", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "has a tokenizer that cannot be read" in said
    assert said.count("\n") == 1


def test_another_model_is_asked_the_gallerys_questions(tmp_path, capsys):
    """Photographs with their own questions; a family whose tokens have no rectangles gets strips; scores need a task of its own."""
    folder = tmp_path / "random-blip"
    tiny = MODELS["blip-2"]
    tiny.model().save_pretrained(folder)
    tiny.processor().save_pretrained(folder)
    index = run(capsys, "--model", folder, "--figures", "3,4,10", "--max-new-tokens", 1, "--question", "what", "--out", tmp_path / "out")
    assert [one["figure"] for one in index["figures"]] == ["3", "4"]
    assert index["skipped"][0]["reason"].startswith("it needs a task with right answers")
    data = json.loads((tmp_path / "out" / "figure-3.json").read_text("utf-8"))["data"]
    assert data["answers"] == len(examples(False))
    assert {len(one) for one in data["maps"]["scores"]} == {1}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--figures", "7", "--out", "{out}"], 2, "'7' is no figure that can be measured: choose from 1,3,4,5,8,9,10"),
        (["--figures", "", "--out", "{out}"], 2, "is no figure"),
        ([], 1, "pass --out DIR, or a recorded TRACE.json"),
        (["--out", "{file}"], 1, "no figure can be written into"),
        (["--out", "{file}/in"], 1, "no figure can be written into"),
        (["--out", "{out}", "--images", "{out}/none.png"], 1, "none.png"),
        (["--out", "{out}", "--question", " "], 1, "the question is empty"),
        (["--out", "{out}", "-p", "30"], 1, "-p belongs to a recorded run"),
        (["--out", "{out}", "--model", "no/such/place"], 1, "there is no model"),
        (["{file}", "--out", "{out}"], 1, "--out belongs to the figures of a model"),
        (["{file}", "--images", "a.png"], 1, "--images belongs to the figures of a model"),
    ],
)
def test_bad_input_is_one_sentence(arguments, status, words, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert cli.main(["figures", *(one.format(out=tmp_path / "out", file=file) for one in arguments)]) == status
    assert words in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_a_language_model_is_asked_about_no_picture(llama, picture, tmp_path, capsys):
    assert cli.main(["figures", "--model", str(llama), "--images", str(picture), "--out", str(tmp_path / "out")]) == 1
    assert "takes no pictures: leave out --images" in capsys.readouterr().err


def test_a_trace_without_scores(picture, tmp_path, capsys):
    trace = tmp_path / "run.json"
    assert cli.main(["compare", str(picture), "What?", "--device", "cpu", "--max-new-tokens", "2", "--out", str(trace)]) == 0
    assert cli.main(["figures", str(trace)]) == 1
    assert "holds no scores of arm 0" in capsys.readouterr().err


def test_without_matplotlib_nothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["figures", "--model", "no/such/place", "--out", str(tmp_path)]) == 1
    assert "pip install 'matplotlib" in capsys.readouterr().err


class TestReading:
    """Figure 8 at small sizes: the times say nothing, that they are of right results does."""

    cpu = torch.device("cpu")

    def measured(self, **options):
        said = []
        given = {"batches": (1, 2), "rounds": 3, "shapes": [SMALL], "cold_bytes": 1 << 14, "say": said.append}
        return reading.measure(self.cpu, torch.float32, **given | options), said

    def test_every_arm_in_turns(self, monkeypatch):
        compared = []
        monkeypatch.setattr(reading, "check", lambda *given: compared.append(given) or checked.check(*given))
        timed, said = self.measured()
        assert [(one.shape, one.batch) for one in timed] == [(SMALL, 1), (SMALL, 2)]
        assert len(compared) == 2 * 5
        for one in timed:
            assert list(one.us) == [way for ways in reading.ARMS.values() for way in ways]
            assert all(len(us) == 3 and min(us) > 0 for us in one.us.values())
        assert [line.partition(":")[0] for line in said] == ["small, batch 1", "small, batch 2"]
        figure = reading.figure_8(timed, self.cpu, torch.float32)
        assert figure.data["shapes"][0]["core"] == 19
        assert {one.reason for one in figure.statements} == {"fewer than 5 rounds decide nothing, 3 here"}

    def test_a_wrong_result_has_no_time(self, monkeypatch):
        monkeypatch.setattr(reading, "_by_kernel", lambda query, key, value: torch.zeros_like(query))
        with pytest.raises(SkippedError, match="wrong result"):
            self.measured()

    def test_a_batch_that_does_not_fit_is_left_out(self, monkeypatch):
        monkeypatch.setattr(reading, "free_bytes", lambda device: 140_000)
        timed, said = self.measured()
        assert [one.batch for one in timed] == [1]
        assert said[-1].startswith("small, batch 2 is left out")

    def test_without_a_kernel_there_is_no_figure(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(reading, "resolve_impl", lambda *given, **more: "reference")
        index = run(capsys, "--figures", "8", "--out", tmp_path)
        assert not index["figures"]
        assert "no kernel reads the cache in place on this cpu in float32" in index["skipped"][0]["reason"]


def test_sizes_are_those_of_the_paper():
    for shape in reading.SHAPES:
        assert (shape.heads, shape.kv_heads, shape.size) == (32, 32, 128)
        assert shape.core / shape.slots == pytest.approx(0.3, abs=1e-3)
    assert reading.PAPERS == "llava-1.6-7b"
