"""Equal memory on the page: what its two buttons set, by the cost model, and what they say where that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from fake import about

import avl
from avl.policies import POLICIES
from avl.ui import equal_memory, functions
from avl.ui import settings as controls
from avl.ui.prompts import PromptSize

H2O = {"policy": "H2O", "keep": 48, "recent": 75}
ADAPTIVE = {"policy": "AVL", "S": 45, "C": 30, "K": 3, "P": 90, "T": 60}


def settings(*arms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**controls.settings(about()), "arms": list(arms), **changes}


def fit(arm: Any, other: Any, **more: Any) -> dict[str, Any]:
    return equal_memory.equal(settings(other, arm), 1, about(**more))


def stored(arms: list[dict[str, Any]], facts: controls.About, prompt: PromptSize | None = None) -> list[float]:
    """What the page predicts of arms."""
    return [arm["stored"] for arm in controls.predict(settings(*arms), facts, prompt)["arms"]]


def test_an_arm_gets_the_other_ones_memory() -> None:
    assert fit({**H2O, "keep": 90}, H2O) == {"keep": 48, "recent": 75}, "a policy at its own memory is as it was"
    fitted = fit({**ADAPTIVE, "update": "after"}, {"policy": "SnapKV", "keep": 30})
    assert fitted["C"] <= fitted["S"] < 45
    assert fitted["update"] == "after"


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "Full"])
def test_it_is_the_nearest_that_sliders_can_set(name: str) -> None:
    """Also at LLaVA-1.6's size, where caches that grow with the answer differ from those that do not."""
    for facts, prompt in ((about(), None), (about(layers=40, max_tokens=256), PromptSize(2928, 60))):
        fitted = equal_memory.equal(settings(ADAPTIVE, {"policy": name}), 1, facts, prompt)
        assert all(value is None or value == int(value) for value in fitted.values() if not isinstance(value, str))
        shares = stored([ADAPTIVE, {"policy": name, **fitted}], facts, prompt)
        assert shares[1] == pytest.approx(shares[0], abs=0.0051), "half a percent of the prompt"


def test_any_arm_can_be_set_to_any_other_of_eight() -> None:
    arms = [{"policy": name} for name in POLICIES] + [{"policy": "H2O", "keep": 20}]
    for index, to in ((2, 7), (7, 2), (3, 1), (1, 3)):
        fitted = equal_memory.equal(settings(*arms), index, about(), to=to)
        changed = [*arms]
        changed[index] = {**arms[index], **fitted}
        shares = stored(changed, about())
        assert shares[index] == pytest.approx(shares[to], abs=0.0051)
    for index, to in ((2, None), (2, 2), (2, 8), (2, -1), (True, 0), (0, True), ("1", 0), (8, 0), ([0], 1), (None, 1)):
        assert equal_memory.equal(settings(*arms), index, about(), to=to) == {"error": "There is no other arm to compare with."}


def test_what_is_wrong_is_one_sentence() -> None:
    for hostile in (None, "x", {}, {"policy": "AVL", "S": -1}):
        assert list(fit(hostile, H2O)) == ["error"]
        assert list(equal_memory.equal(hostile, 1, about())) == ["error"]
        assert list(equal_memory.equal_all(hostile, about())) == ["error"]
    assert "stores everything" in fit({"policy": "Full"}, H2O)["error"]
    assert "no other arm" in equal_memory.equal(settings(H2O), 0, about())["error"]
    assert fit({"policy": "FastV", "layer": 7}, {"policy": "H2O", "keep": 10})["error"].startswith("FastV cannot store")
    assert "1 to 7" in fit({"policy": "FastV", "layer": 20}, H2O)["error"]


def test_equal_memory_needs_the_size_of_the_prompt() -> None:
    fits = [equal_memory.equal(settings(H2O, ADAPTIVE), 1, about(), size) for size in (PromptSize(300, 100), PromptSize(2928, 43))]
    assert fits[0]["S"] != fits[1]["S"]


def test_all_policies_get_the_memory_of_the_first_a_vl() -> None:
    found = equal_memory.equal_all(settings({"policy": "H2O", "keep": 90, "recent": 20}, ADAPTIVE), about())
    assert [arm["policy"] for arm in found["arms"]] == list(POLICIES)
    assert found["left_out"] == []
    assert found["arms"][0] == {"policy": "Full"}
    assert {**found["arms"][1], **ADAPTIVE} == found["arms"][1], "it stays as it is"
    assert found["arms"][2]["recent"] == 20, "an arm that is there keeps its other parameters"
    shares = stored(found["arms"], about())
    assert shares[0] == 1
    assert shares[1] == pytest.approx(found["share"])
    assert shares[1:] == pytest.approx([found["share"]] * (len(shares) - 1), abs=0.0051)
    again = controls.check(settings(*found["arms"]), about())["policies"]
    assert [policy.name for policy in again] == list(POLICIES), "all of it can be run"


def test_all_policies_at_a_share_or_at_any_arms() -> None:
    found = equal_memory.equal_all(settings({"policy": "Full"}), about(), share=0.6)
    assert found["share"] == 0.6
    assert stored(found["arms"], about())[1:] == pytest.approx([0.6] * 6, abs=0.0051)
    found = equal_memory.equal_all(settings(ADAPTIVE, H2O), about(), index=1)
    assert found["arms"][2] == H2O
    few = equal_memory.equal_all(settings({"policy": "Full"}), about(), share=0.04)
    assert [arm["policy"] for arm in few["arms"]] == ["Full", "H2O", "StreamingLLM"]
    assert [sentence.partition(" cannot store 4.0%")[0] for sentence in few["left_out"]] == ["A-VL", "SnapKV", "PyramidKV", "FastV"]
    for share in (0, -1, 1.1, "0.5", True, [], float("nan")):
        assert "share" in equal_memory.equal_all(settings(H2O), about(), share=share)["error"].lower()
    for index in (2, -1, True, "0", [0]):
        assert equal_memory.equal_all(settings(H2O, ADAPTIVE), about(), index=index) == {"error": "There is no such arm."}
    assert "stores everything" in equal_memory.equal_all(settings({"policy": "Full"}), about())["error"]


def test_the_page_calls_them_with_what_its_scripts_send() -> None:
    predict, equal, equal_all = functions.settings_functions(about())
    assert [one.__name__ for one in (predict, equal, equal_all)] == ["predict", "equal", "equal_all"]
    prompt = {"n_image": 2928, "n_text": 40}
    chosen = settings(ADAPTIVE, H2O, {"policy": "SnapKV"})
    size = PromptSize(2928, 40)
    assert equal({"settings": chosen, "prompt": prompt, "arm": 2, "to": 0}) == equal_memory.equal(chosen, 2, about(), size, 0)
    assert equal_all({"settings": chosen, "prompt": prompt, "share": 0.5}) == equal_memory.equal_all(chosen, about(), size, share=0.5)
    assert equal_all({"settings": chosen, "arm": 1}) == equal_memory.equal_all(chosen, about(), index=1)
    for hostile in (None, [], "x", 5, {}, {"settings": chosen, "arm": {}, "to": []}):
        assert "error" in equal(hostile)
        assert isinstance(equal_all(hostile), dict)
    assert avl.AVL(**equal({"settings": chosen, "arm": 0, "to": 1})).S != 45
