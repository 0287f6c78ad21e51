"""Half a checkpoint never answers: whatever its files lack is one sentence that names the file and says what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_faults import FAULTS, SHARD, change, extra, only, shard
from fake_hub import hub
from random_models import RAGGED, build_model, build_processor, encode, picture
from safetensors.torch import load_file

import avl
from avl.models import random_weights, source
from avl.models.checkpoints import CHECKPOINTS
from avl.models.loading import DTYPES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two folders of one model: its weights in several files, and in one."""
    folder = tmp_path_factory.mktemp("models")
    for name, size in (("shards", "200KB"), ("one", "1GB")):
        build_model("llava-llama").save_pretrained(folder / name, max_shard_size=size)
        build_processor("llava-llama").save_pretrained(folder / name)
    return folder


@pytest.fixture
def copy(stored, tmp_path):
    """Copy one of them for a fault."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(stored / name, tmp_path / "model"))

    return make


def refused(folder: Path | str, **options: Any) -> str:
    """The sentence that refuses a checkpoint: one line, no path but the one that was given."""
    with pytest.raises((OSError, TypeError, ValueError)) as raised:
        avl.load(folder, **{"device": "cpu", **options})
    assert type(raised.value) in (OSError, TypeError, ValueError)  # the command line prints these, and no subclass
    message = str(raised.value)
    assert "\n" not in message
    assert 20 < len(message) < 600, message
    assert not re.search(r"(?<![\w:])/\w+/", message.replace(str(folder), "").replace("../one/", "")), f"a path in {message!r}"
    assert "hf download /" not in message
    return message


# ------------------------------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_sentence(name, copy):
    kind, fault, words = FAULTS[name]
    folder = copy(kind)
    fault(folder)
    message = refused(folder)
    for word in words:
        assert re.search(word, message), f"{word!r} is not in {message!r}"


@pytest.mark.parametrize("kind", ["one", "shards"])
def test_a_whole_checkpoint_loads(kind, stored):
    """In one file or several, by text or path; with what old checkpoints hold beside it."""
    model, processor = avl.load(stored / kind, device="cpu")
    inputs = encode(build_processor("llava-llama"), RAGGED)
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, build_model("llava-llama")(**inputs).logits)
    assert processor.tokenizer.padding_side == "left"


@pytest.mark.parametrize(
    "name", ["language_model.model.layers.0.self_attn.rotary_emb.inv_freq", "vision_tower.vision_model.embeddings.position_ids"]
)
def test_buffers_of_old_checkpoints_are_no_weights(name, copy):
    folder = copy("one")
    extra(name)(folder)
    avl.load(folder, device="cpu")


def test_tied_weights_are_stored_once(tmp_path):
    model = build_model("llava-llama")
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    build_processor("llava-llama").save_pretrained(tmp_path)
    assert not any("lm_head" in name for name in load_file(tmp_path / "model.safetensors"))
    loaded, _ = avl.load(tmp_path, device="cpu")
    assert loaded.lm_head.weight.data_ptr() == loaded.model.language_model.embed_tokens.weight.data_ptr()


def test_what_is_no_fault(copy):
    """A generation config is not necessary, and other files are the owner's."""
    folder = copy("one")
    (folder / "generation_config.json").unlink()
    (folder / "results.json").write_text("[1, 2]")
    (folder / "notes.json").write_text("not even JSON")
    (folder / "training_args.bin").write_bytes(b"x")
    avl.load(folder, device="cpu")


def test_what_float16_cannot_hold_is_refused(copy):
    folder = copy("one")
    only("layers.2.mlp.up_proj", lambda tensor: tensor * 1e7)(folder)
    assert re.search("not finite in float16.*bfloat16 holds", refused(folder, dtype="fp16"))
    avl.load(folder, device="cpu", dtype="bf16")


def test_the_bundled_model_is_called_so(tmp_path, monkeypatch):
    """No path of the server, and no advice to download it."""
    folder = shutil.copytree(source.TINY, tmp_path / "tiny")
    monkeypatch.setattr(source, "TINY", folder)
    shard(lambda file: file.write_bytes(file.read_bytes()[:-9]))(folder)
    message = refused("tiny")
    assert re.match(rf"the bundled model has a {SHARD}.*cut off.*: install or clone the project again$", message)
    shutil.rmtree(folder)
    assert "assets/tiny, is missing" in refused("tiny")


def test_weights_off_the_device_are_refused(stored, tmp_path):
    """Those that accelerate puts on the disk: the engine reads weights itself."""
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "model.language_model": "disk", "lm_head": "cpu"}
    message = refused(stored / "one", device_map=places)
    assert re.search(r"does not fit: device_map leaves \d+ of its modules off the device \(model\.language_model", message)


@pytest.mark.parametrize("name", ["llava-llama", "next-llama"])
@pytest.mark.parametrize("lacking", ["patch_size", "num_additional_image_tokens", "vision_feature_select_strategy", "all"])
def test_old_processors_are_completed(name, lacking, tmp_path):
    """They answer as complete ones do: same ids, same logits."""
    build_model(name).save_pretrained(tmp_path)
    build_processor(name).save_pretrained(tmp_path)
    keys = ["patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"] if lacking == "all" else [lacking]
    change("processor_config.json", lambda config: [config.pop(key) for key in keys])(tmp_path)
    model, processor = avl.load(tmp_path, device="cpu")
    inputs, expected = encode(processor, RAGGED), encode(build_processor(name), RAGGED)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, model(**expected).logits)
    assert len(list(avl.stream(model, processor, picture(1), "what is it ?", avl.Full(), max_new_tokens=2))) > 2


def test_tiles_of_another_shape_are_refused(tmp_path):
    build_model("next-llama").save_pretrained(tmp_path)
    build_processor("next-llama").save_pretrained(tmp_path)
    change("processor_config.json", lambda config: config["image_processor"].update(image_grid_pinpoints=[[28, 56]]))(tmp_path)
    assert "image_grid_pinpoints" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "close"),
    [("qwen3vl-8b", "qwen3-vl-8b"), ("Qwen2.5-VL-7B", "qwen2.5-vl-7b"), ("internvl-8b", "internvl3-8b"), ("llava1.5", "llava-1.5-7b")],
)
def test_an_unknown_name_is_told_what_is_close(name, close):
    message = refused(name)
    assert close in message.partition("close to it: ")[2]
    assert "avl doctor lists all" in message


def test_short_names_are_of_the_hub_and_differ():
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in CHECKPOINTS)
    assert all(source.find_source(name).place == place and place.count("/") == 1 for name, place in CHECKPOINTS.items())
    assert len(set(CHECKPOINTS.values())) == len(CHECKPOINTS)


# ------------------------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": 5}, "name=5"),
        ({"name": None}, "name=None"),
        ({"name": ["tiny"]}, "names no model"),
        ({"name": ""}, "there is no model|holds no config"),
        ({"name": "llava-2.0-7b"}, "there is no model llava-2.0-7b.*tiny"),
        ({"name": "a/b/c"}, "there is no model a/b/c"),
        ({"name": "../etc"}, "there is no model"),
        ({"name": "no such/model"}, "there is no model"),
        ({"name": "https://huggingface.co/llava-hf/llava-1.5-7b-hf"}, "there is no model https"),
        ({"revision": 5}, "revision=5"),
        ({"revision": "main"}, "revision='main'.*leave it out"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"device": None}, "device=None"),
        ({"device": "meta"}, "device='meta'"),
        ({"device": 2.5}, "device=2.5"),
        ({"device": ""}, "device=''"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"dtype": torch.int8}, "dtype=torch.int8"),
        ({"dtype": torch.float8_e4m3fn}, "float8"),
        ({"dtype": None}, "dtype=None"),
        ({"dtype": 16}, "dtype=16"),
        ({"dtype": ["bf16"]}, "dtype="),
        ({"device_map": 5}, "device_map=5"),
        ({"device_map": "everywhere"}, "device_map='everywhere'"),
        ({"device_map": ["cpu"]}, "device_map="),
    ],
    ids=str,
)
def test_wrong_arguments(options, words):
    options = {"name": "tiny", **options}
    assert re.search(words, refused(options.pop("name"), **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0)])
def test_no_gpu(device):
    assert "needs an NVIDIA GPU" in refused("tiny", device=device)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_every_dtype(dtype, stored):
    model, _ = avl.load(stored / "one", device="cpu", dtype=dtype)
    assert model.dtype == DTYPES.get(dtype, dtype)


# ------------------------------------------------------------------------------------------------------------------------ the Hub


@pytest.mark.slow
def test_a_repository_of_the_hub(stored, tmp_path):
    """From the cache, without a network: it loads, and broken files are named by the repository's name, never by the cache's folder."""
    snapshot = tmp_path / "hub" / "models--owner--some-llava" / "snapshots" / ("a" * 40)
    shutil.copytree(stored / "shards", snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    source = """
    import json, pathlib, shutil, sys
    import avl
    from avl._compat import commit_hash
    folder = pathlib.Path(sys.argv[1])
    said = [commit_hash(avl.load("owner/some-llava", device="cpu")[0].config)]
    shard = next(folder.glob("model-00002-of-*"))
    for file, text in ((shard, ""), *((folder / name, "{") for name in ("generation_config.json", "tokenizer.json", "config.json"))):
        kept = file.read_bytes()
        file.write_text(text)
        try:
            avl.load("owner/some-llava", device="cpu")
            said.append("loaded")
        except OSError as error:
            said.append(str(error))
        file.write_bytes(kept)
    shard.unlink()
    for name in ("owner/some-llava", "owner/other"):
        try:
            avl.load(name, device="cpu")
        except OSError as error:
            said.append(str(error))
    print(json.dumps(said))
    """
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(source), str(snapshot)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    loaded, shard, generation, tokenizer, config, missing, other = json.loads(out.splitlines()[-1])
    assert loaded == "a" * 40
    for message, word in ((shard, SHARD), (generation, "generation_config.json"), (tokenizer, "tokenizer.json"), (config, "config.json")):
        assert message.startswith("owner/some-llava has a ")
        assert word in message
        assert message.endswith("fetch it again (hf download owner/some-llava --force-download)")
    for message, name in ((missing, "owner/some-llava"), (other, "owner/other")):
        assert f"{name} cannot be loaded" in message or f"{name} lacks" in message
        assert f"hf download {name}" in message
    assert not any(str(tmp_path) in message or "snapshots" in message for message in (shard, generation, tokenizer, config, missing, other))


@pytest.mark.slow
def test_a_download_is_counted_and_one_that_would_not_fit_is_never_begun(tmp_path):
    """Against a hub of our own: bytes of weights, then weights; of the large model its config alone is fetched."""
    large = tmp_path / "large"
    random_weights.config("llava-1.5-7b").save_pretrained(large)
    shutil.copytree(source.TINY, tmp_path / "small")
    (large / "model.safetensors").write_bytes(b"never read")
    program = """
    import json, avl
    said = []
    model, _ = avl.load("owner/small", device="cpu", progress=lambda *one: said.append(one))
    try:
        avl.load("owner/large")
    except ValueError as error:
        print(json.dumps({"said": said, "refused": str(error)}))
    """
    with hub({"owner/small": tmp_path / "small", "owner/large": large}) as (address, asked):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-c", textwrap.dedent(program)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert "owner/large has 7.1 billion parameters and no GPU can be used here" in told["refused"]
    assert "model.safetensors" not in asked
    assert "model-00001-of-00002.safetensors" in asked
    counts = {unit: [(done, total) for _, done, total, one in told["said"] if one == unit] for unit in ("bytes", "weights")}
    size = sum(shard.stat().st_size for shard in source.TINY.glob("*.safetensors"))
    assert counts["bytes"][-1] == (size, size)
    assert [done for done, _ in counts["bytes"]] == sorted(done for done, _ in counts["bytes"])
    assert counts["weights"][-1] == (182, 182)
    assert told["said"][0][0] == "Downloading the weights"
