"""``/what_if`` and the panel's functions: choices, defaults, and refusals of hostile values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fake import Fake, about

from avl.bench.what_if import MODELS, known
from avl.ui import page, what_if
from avl.ui.settings import policy

ABOUT = replace(about(), sizes=known("tiny"), machine="NVIDIA H200, torch 2.11")


def test_choices_start_with_the_loaded_model_on_this_machine() -> None:
    _, choices = what_if.what_if_functions(ABOUT)
    found = choices(None)
    assert (found["model"], found["machine"]) == ("loaded", "h200")
    assert found["models"][0] == {"name": "loaded", "label": "fake model (loaded)", "n_image": 576}
    assert [one["name"] for one in found["models"][1:]] == [name for name in MODELS if name != "tiny"]
    assert {"t4", "h100", "bench-tiny-cpu"} <= {one["name"] for one in found["machines"]}
    assert all(one["source"] for one in found["machines"])
    bare = what_if.choices(about(machine="Intel(R) Xeon(R) Processor, torch 2.13"))
    assert (bare["model"], bare["machine"]) == ("llava-1.5-7b", "bench-tiny-cpu")
    assert what_if.choices(about(machine=""))["machine"] == "h100"


def test_the_panel_gets_a_prediction() -> None:
    predict, _ = what_if.what_if_functions(ABOUT)
    wanted = {
        "model": "llava-1.6-7b",
        "gpu": "a100-80",
        "batch": [4],
        "image_tokens": 576,
        "policy": {"policy": "H2O", "keep": 40},
        "junk": 1,
    }
    found = json.loads(json.dumps(predict(wanted), allow_nan=False))
    assert found["rows"][0]["batch"] == 4
    assert found["request"]["n_image"] == 576
    assert found["request"]["policy"]["name"] == "H2O"
    assert predict({"batch": 4})["rows"][0]["batch"] == 4
    assert predict({})["model"]["name"] == "tiny", "the loaded model where none is named"


@pytest.mark.parametrize(
    "wanted",
    [
        {"model": "x"}, {"model": 7}, {"model": ["tiny"]}, {"gpu": None}, {"gpu": {}}, {"batch": "many"}, {"batch": []}, {"batch": [[1]]},
        {"batch": [10**400]}, {"batch": [float("nan")]}, {"image_tokens": "a"}, {"image_tokens": 10**9}, {"text_tokens": None},
        {"new_tokens": 10**6}, {"policy": "AVL"}, {"policy": {"policy": "AVL", "S": 400}}, {"policy": {"policy": "FastV", "layer": 60}},
    ],
    ids=lambda wanted: str(wanted)[:40],
)  # fmt: skip
def test_wrong_values_are_one_sentence(wanted: Any) -> None:
    predict, _ = what_if.what_if_functions(ABOUT)
    found = predict(wanted)
    assert set(found) == {"error"}
    assert found["error"].endswith(".")
    assert "\n" not in found["error"]


def test_the_loaded_model_is_unknown_where_its_sizes_are() -> None:
    predict, _ = what_if.what_if_functions(about())
    assert "not known" in predict({})["error"]
    assert "not known" in predict(None)["error"]


def test_sizes_are_nothing_for_the_pages_scripts() -> None:
    assert "sizes" not in ABOUT.facts()
    json.dumps(ABOUT.facts())


def test_the_endpoint_says_what_it_takes_and_predicts() -> None:
    built = page.build(Fake(), ABOUT)
    try:
        endpoint = built.blocks.get_api_info()["named_endpoints"]["/what_if"]
        names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        assert names == ["model", "gpu", "batch", "image_tokens", "text_tokens", "new_tokens", "policy"]
        assert all(parameter["parameter_has_default"] for parameter in endpoint["parameters"])
        told = next(fn.fn for fn in built.blocks.fns.values() if fn.api_name == "what_if")
        assert "llava-1.6-34b" in told.__doc__
        assert "h200" in told.__doc__
        found = told("loaded", "t4", [2], None, 65, 128, {"policy": "AVL", "S": 45})
        assert found["model"]["name"] == "tiny"
        assert found["request"]["policy"]["S"] == policy({"policy": "AVL", "S": 45}).S  # type: ignore[attr-defined]
    finally:
        built.transport.close()
