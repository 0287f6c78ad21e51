"""Bad input gives one sentence; good input becomes a request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import policy_cases
import pytest
from fake import about
from PIL import Image

import avl
from avl import trace
from avl.engine.request import GenerationRequest
from avl.models import images as pictures
from avl.policies import POLICIES
from avl.policies.cost import mean_cost, step_cost
from avl.ui import settings as controls
from avl.ui.prompts import PromptSize


def settings(**changes: Any) -> dict[str, Any]:
    return {**controls.settings(about()), **changes}


def avl_arm(**changes: Any) -> dict[str, Any]:
    return {"policy": "AVL", "S": 45, "C": 30, "K": 3, "P": 90, "T": 60, **changes}


def test_good_input_becomes_a_request(picture: Path) -> None:
    request = controls.prepare([str(picture)], "  What is it? ", settings(), about())
    assert request.question == "What is it?"
    assert request.policies == (avl.Full(), avl.AVL(S=45, C=30, K=3, P=90, T=60))
    assert request.images[0].size == (96, 64)
    assert request.images[0].mode == "RGB"


def test_eight_arms_become_eight_policies_that_count_in_every_limit(picture: Path) -> None:
    arms = [{"policy": name} for name in POLICIES] + [avl_arm()]
    request = controls.prepare([str(picture)], "q", settings(arms=arms, agreement=True), about())
    assert [policy.name for policy in request.policies] == [*POLICIES, "AVL"]
    assert request.agreement
    assert len(controls.predict(settings(arms=arms), about())["arms"]) == about().facts()["max_arms"] == 8
    one, eight = ({"arms": arms[-count:], "scores": True, "max_new_tokens": 1000} for count in (1, 8))
    wide = about(layers=80, max_tokens=1024)
    assert controls.prepare([str(picture)], "q", settings(**one), wide).scores
    with pytest.raises(ValueError, match=r"\d+ new tokens at most"):
        controls.prepare([str(picture)], "q", settings(**eight), wide)


def test_equal_memory_sets_every_budget_to_that_of_the_first_a_vl(picture: Path) -> None:
    """To thousandths of a percent, with the tokens of the chosen picture; by the cost model all store the same."""
    arms = [{"policy": "Full"}, {"policy": "H2O", "recent": 20}, avl_arm(), {"policy": "SnapKV"}, avl_arm(S=80), {"policy": "FastV"}]
    facts = about()
    plain, request = (controls.prepare([str(picture)], "q", settings(arms=arms, equal_memory=equal), facts) for equal in (False, True))
    assert plain.policies[1] == avl.H2O(recent=20)
    assert request.policies[0] == avl.Full()
    assert request.policies[2] == plain.policies[2]
    assert request.policies[1].recent == 20
    shape = avl.PromptShape(facts.n_image, facts.n_text, facts.default_tokens, facts.layers)
    stored = [mean_cost(policy, shape).stored / mean_cost(avl.Full(), shape).stored for policy in request.policies]
    assert stored[1:] == pytest.approx([stored[2]] * 5, abs=0.003)
    unlike = [{"policy": "SnapKV", "keep": 30}, {"policy": "H2O"}]
    request = controls.prepare([str(picture)], "q", settings(arms=unlike, equal_memory=True), facts)
    assert request.policies[0] == avl.SnapKV(keep=30), "without an A-VL, the first arm with a budget"


def test_several_pictures_keep_their_order(picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 50)).save(other)
    request = controls.prepare([str(picture), str(other)], "q", settings(), about())
    assert [image.size for image in request.images] == [(96, 64), (30, 50)]
    with pytest.raises(ValueError, match="too many pictures: 8 at most"):
        controls.prepare([str(other)] * 9, "q", settings(), about())
    with pytest.raises(ValueError, match="no picture yet"):
        controls.prepare([], "q", settings(), about())


@pytest.mark.parametrize(
    ("arm", "policy"),
    [
        (avl_arm(C=None, P=None, T=None), avl.AVL(S=45, K=3)),
        ({"policy": "H2O"}, avl.H2O()),
        ({"policy": "FastV", "layer": 3, "keep": 40}, avl.FastV(layer=3, keep=40)),
        ({"policy": "StreamingLLM", "sinks": 0}, avl.StreamingLLM(sinks=0)),
        ({"policy": "Full", "S": "ignored"}, avl.Full()),
        (avl_arm(update="after"), avl.AVL(S=45, C=30, K=3, P=90, T=60, update="after")),
        ({"policy": "SnapKV", "pool": 9}, avl.SnapKV(pool=9)),
        ({"policy": "PyramidKV", "beta": 5}, avl.PyramidKV(beta=5)),
    ],
)
def test_an_arms_settings_become_its_policy(arm: dict[str, Any], policy: Any) -> None:
    assert controls.policy(arm) == policy


@pytest.mark.parametrize(
    ("question", "change", "word"),
    [
        ("", {}, "question is empty"),
        ("   ", {}, "question is empty"),
        (None, {}, "question is empty"),
        ("x" * 3000, {}, "too long"),
        ("q", {"arms": []}, "1 to 8 arms"),
        ("q", {"arms": [avl_arm()] * 9}, "1 to 8 arms"),
        ("q", {"arms": "AVL"}, "1 to 8 arms"),
        ("q", {"arms": [{"policy": "Rm -rf"}]}, "needs a policy"),
        ("q", {"arms": ["AVL"]}, "needs a policy"),
        ("q", {"arms": [avl_arm(S=0)]}, "S must be from 1 to 100"),
        ("q", {"arms": [avl_arm(S=101)]}, "S must be"),
        ("q", {"arms": [avl_arm(S=None)]}, "S must be"),
        ("q", {"arms": [avl_arm(S="45")]}, "S must be"),
        ("q", {"arms": [avl_arm(S=True)]}, "S must be"),
        ("q", {"arms": [avl_arm(S=float("nan"))]}, "S must be"),
        ("q", {"arms": [avl_arm(C=60)]}, "C"),
        ("q", {"arms": [avl_arm(K=0)]}, "K must be"),
        ("q", {"arms": [avl_arm(K=2.5)]}, "whole number"),
        ("q", {"arms": [avl_arm(update="never")]}, "update must be “every” or “after”"),
        ("q", {"arms": [avl_arm(update=["every"])]}, "update must be"),
        ("q", {"arms": [{"policy": ["AVL"]}]}, "one of Full, AVL, H2O, SnapKV, PyramidKV, FastV, StreamingLLM."),
        ("q", {"arms": [{"policy": "SnapKV", "pool": 4}]}, "an odd number"),
        ("q", {"max_new_tokens": 0}, "max_new_tokens must be"),
        ("q", {"max_new_tokens": 10**9}, "max_new_tokens must be"),
        ("q", {"batch": 10**6}, "batch must be"),
        ("q", {"temperature": -1}, "temperature must be"),
        ("q", {"temperature": float("inf")}, "temperature must be"),
        ("q", {"top_p": 0}, "top_p must be"),
        ("q", {"seed": -1}, "seed must be"),
        ("q", {"mode": "fast"}, "mode"),
        ("q", {"repeats": 0}, "repeats must be"),
        ("q", {"repeats": 21}, "repeats must be"),
        ("q", {"scores": "yes"}, "scores must be true or false"),
        ("q", {"agreement": 1}, "agreement must be true or false"),
        ("q", {"equal_memory": None}, "equal_memory must be true or false"),
        ("q", {"arms": [{"policy": "Full"}], "equal_memory": True}, "stores everything"),
        ("q", {"arms": [avl_arm(S=5, C=5, T=5, P=10), {"policy": "FastV"}], "equal_memory": True}, "FastV cannot store"),
    ],
)
def test_bad_settings_are_one_sentence(picture: Path, question: Any, change: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the words are checked below)
        controls.prepare([str(picture)], question, settings(**change), about())
    said = str(caught.value)
    assert word in said
    assert "\n" not in said
    assert len(said) < 250


def test_recording_is_refused_where_it_would_fill_the_page(picture: Path) -> None:
    """An answer of 256 tokens at LLaVA-1.6's size is recorded whole; eight such pictures are too many."""
    real, large = about(n_image=2928, layers=40, max_tokens=256), about(n_image=8 * 2928, layers=40, max_tokens=256)
    assert controls.prepare([str(picture)], "q", settings(scores=True, max_new_tokens=256), real).scores_bytes == trace.SCORES_BYTES
    with pytest.raises(ValueError, match="142 new tokens at most"):
        controls.prepare([str(picture)], "q", settings(scores=True, max_new_tokens=143), large)
    assert controls.prepare([str(picture)], "q", settings(scores=True, max_new_tokens=142), large).scores
    assert not controls.prepare([str(picture)], "q", settings(max_new_tokens=200), large).scores
    with pytest.raises(ValueError, match="switch it off"):
        controls.prepare([str(picture)], "q", settings(scores=True, max_new_tokens=1), about(n_image=10**6, layers=40))


@pytest.mark.parametrize("arms", [1, 2, 8])
@pytest.mark.parametrize("n_image", [576, 2928, 20_000])
def test_no_recorded_run_takes_more_than_its_limit(n_image: int, arms: int) -> None:
    def size(tokens: int) -> int:
        return trace.scores_bytes(n_image, 40, tokens, arms, trace.listed_tokens(n_image, 40, tokens, arms))

    most = trace.most_passes(n_image, 40, 100_000, arms, controls.MAX_SCORES)
    assert max(map(size, range(1, most + 1))) <= controls.MAX_SCORES < size(most + 1)


@pytest.mark.parametrize("chosen", [None, [], "x", 5])
def test_settings_of_the_wrong_kind(picture: Path, chosen: Any) -> None:
    with pytest.raises(ValueError, match="settings are missing"):
        controls.prepare([str(picture)], "q", chosen, about())


def junk(tmp_path: Path, name: str) -> str | None:
    path = tmp_path / f"{name}.png"
    if name == "none":
        return None
    if name == "text":
        path.write_text("<svg onload=alert(1)>")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "cut":
        Image.effect_noise((400, 400), 90).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif name == "huge":
        Image.new("1", (9000, 9000)).save(path)
    elif name == "bomb":
        Image.new("1", (16000, 16000)).save(path)
    elif name == "line":
        Image.new("RGB", (3000, 1)).save(path)
    elif name == "missing":
        return str(tmp_path / "nowhere.png")
    return str(path)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("none", "no picture"),
        ("text", "not a picture"),
        ("empty", "not a picture"),
        ("cut", "damaged"),
        ("huge", "too large"),
        ("bomb", "too large"),
        ("line", "no area"),
        ("missing", "no longer has this picture"),
    ],
)
def test_bad_pictures_are_one_sentence(tmp_path: Path, name: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        controls.prepare([junk(tmp_path, name)], "q", settings(), about())
    assert str(tmp_path) not in str(caught.value)


def opened(path: Path) -> Image.Image:
    return controls.prepare([str(path)], "q", settings(), about()).images[0]


def test_pictures_are_upright_and_opaque(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert opened(tmp_path / "turned.jpg").size == (20, 40)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert opened(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)


def test_presets_are_rows_of_table_3_and_agree_with_the_library() -> None:
    rows, ours = (group["rows"] for group in controls.presets())
    assert (len(rows), len(ours)) == (14, 4)
    for row in rows:
        assert avl.AVL(**row["params"]).spread is None, "the paper's settings run as in the paper, also after ours"
    for row in ours:
        assert avl.AVL(**row["params"]) == avl.SPREAD_PRESETS[row["model"]]
        assert replace(avl.SPREAD_PRESETS[row["model"]], spread=None) == avl.PRESETS[row["model"]]
    last = {row["model"]: row["params"] for row in rows}
    for name, policy in avl.PRESETS.items():
        key = next((key for key in last if name.startswith(key)), None)
        if key is not None:
            rows_of = [row["params"] for row in rows if row["model"] == key]
            assert {name: getattr(policy, name) for name in (*"SCKPT", "spread")} in rows_of


def test_the_picture_sent_to_the_player_stays_below_1500_kb(tmp_path: Path) -> None:
    uri = pictures.data_uri(Image.effect_noise((3000, 2000), 60).convert("RGB"))
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < 1_500_000


def test_the_catalog_has_every_registered_policy() -> None:
    found = controls.catalog(layers=8)
    assert list(found) == list(POLICIES)
    for name, entry in found.items():
        assert entry["title"] == POLICIES[name].title
        assert [one["key"] for one in entry["parameters"]] == [one.name for one in POLICIES[name].params()]
        values = {"policy": name, **{one["key"]: one["default"] for one in entry["parameters"]}}
        controls.policy(values)
        for one in entry["parameters"]:
            coupled = {"S": {"C": 1}, "C": {"S": 100}, "spread": {"S": 100}}.get(one["key"], {})
            for value in one["choices"] or range(one["low"], one["high"] + 1, one["step"]):
                controls.policy({**values, **coupled, one["key"]: value})
    spread = next(one for one in found["AVL"]["parameters"] if one["key"] == "spread")
    assert (spread["default"], spread["start"], spread["off"]) == (None, 33, True), "ours, not the paper's: off until it is asked for"
    sliders = {one["key"]: one for one in found["PyramidKV"]["parameters"]}
    assert sliders["pool"]["step"] == 2
    assert next(one for one in found["FastV"]["parameters"] if one["key"] == "layer")["high"] == 7
    assert next(one for one in controls.catalog()["FastV"]["parameters"] if one["key"] == "layer")["high"] == 80


@pytest.mark.parametrize(
    "policy",
    [*policy_cases.POLICIES, avl.AVL(S=45, C=30, K=3, update="after"), avl.AVL(S=45, C=30, spread=33)],
    ids=lambda policy: policy.label,
)
def test_predictions_come_from_the_cost_model(policy: avl.Policy) -> None:
    facts = about()
    shape = avl.PromptShape(facts.n_image, facts.n_text, 20, facts.layers)
    choice = {"policy" if key == "name" else key: value for key, value in policy.to_dict().items()}
    told = controls.predict(settings(arms=[{"policy": "Full"}, choice], max_new_tokens=20, batch=3), facts)
    costs, full = ([step_cost(one, shape, t) for t in range(1, 20)] for one in (policy, avl.Full()))
    token = facts.token_bytes / facts.layers
    assert told["arms"][0]["stored"] == told["arms"][0]["read"] == 1
    assert told["arms"][1]["stored"] == pytest.approx(sum(cost.stored for cost in costs) / sum(cost.stored for cost in full))
    assert told["arms"][1]["read"] == pytest.approx(sum(cost.read for cost in costs) / sum(cost.read for cost in full))
    assert told["arms"][1]["peak"] == pytest.approx((costs[-1].stored + shape.length) * token)
    assert told["full"] == pytest.approx(sum(cost.stored for cost in full) / 19 * token * 3)
    assert told["reference"] == told["arms"][0]["peak"], "what agreement needs where full attention is no arm"


def test_predictions_of_wrong_settings_are_one_sentence() -> None:
    assert controls.predict(settings(batch=999), about()) == {"error": "Batch must be from 1 to 256, not 999."}
    for hostile in (None, [], "x", {"arms": 5}):
        assert list(controls.predict(hostile, about())) == ["error"]
    arms = [{"policy": "PyramidKV", "pool": 4}, {"policy": "FastV", "layer": 70}]
    told = controls.predict(settings(arms=arms), about())
    assert ["odd" in told["arms"][0]["error"], "1 to 7" in told["arms"][1]["error"]] == [True, True]


def tiles(**changes: Any) -> Any:
    """A model of LLaVA-1.6's size: 576 tokens for a small picture, 2928 for a larger one, 40 layers."""

    def measure(sizes: tuple[tuple[int, int], ...], question: str) -> PromptSize:
        return PromptSize(sum(2928 if width > 96 else 576 for width, _ in sizes), 40 + len(question.split()))

    return about(layers=40, measure=measure, max_tokens=256, **changes)


def test_limits_count_the_chosen_pictures(picture: Path, tmp_path: Path) -> None:
    """Also several of them; and the sentence names the page's setting."""
    large = tmp_path / "large.png"
    Image.new("RGB", (672, 672)).save(large)
    facts = tiles(context=4096)

    def ask(*paths: Path, **changes: Any) -> GenerationRequest:
        return controls.prepare([str(path) for path in paths], "What is it", settings(max_new_tokens=96, **changes), facts)

    assert ask(large).images[0].size == (672, 672)
    assert len(ask(large, picture).images) == 2
    with pytest.raises(
        ValueError, match="4080 image \\+ 43 text \\+ 96 new tokens are 4219, and this model takes 4096: use fewer or smaller"
    ) as said:
        ask(large, picture, picture)
    assert "max_new_tokens" not in str(said.value)
    with pytest.raises(ValueError, match="set “new tokens” to 200 at most"):
        controls.prepare([str(large), str(picture)], "What is it", settings(max_new_tokens=250), tiles(context=3504 + 43 + 200))
    # eight large pictures; the warm-up's 576 tokens each would let all 256 tokens pass
    eight = [str(large)] * 8
    with pytest.raises(ValueError, match="142 new tokens at most with it"):
        controls.prepare(eight, "What is it", settings(max_new_tokens=256, scores=True), tiles())
    assert controls.prepare([str(picture)] * 8, "What is it", settings(max_new_tokens=256, scores=True), tiles()).scores


def test_predictions_use_the_chosen_pictures(picture: Path) -> None:
    facts = tiles(context=4096)
    small, large = (controls.predict(settings(), facts, size) for size in (None, PromptSize(2928, 43)))
    shape = avl.PromptShape(2928, 43, settings()["max_new_tokens"], 40)
    token = facts.token_bytes / 40
    assert large["full"] == pytest.approx(mean_cost(avl.Full(), shape).stored * token)
    assert large["full"] > 4 * small["full"]
    assert large["arms"][0]["peak"] > 4 * small["arms"][0]["peak"], "what the advice on the batch divides by"
    assert "this model takes 4096" in controls.predict(settings(), facts, PromptSize(4090, 43))["error"]
    assert "error" not in controls.predict(settings(scores=True), facts, PromptSize(2928, 43))
    assert "Recording the attention" in controls.predict(settings(scores=True), tiles(), PromptSize(10**6, 43))["error"]


def test_a_size_sent_by_a_script_is_checked() -> None:
    facts = about()
    assert controls.sent_prompt({"n_image": 2928, "n_text": 40}, facts) == PromptSize(2928, 40)
    for hostile in (
        None,
        [],
        "x",
        {},
        {"n_image": 5},
        {"n_image": "5", "n_text": 1},
        {"n_image": True, "n_text": 1},
        {"n_image": 10**9, "n_text": 1},
        {"n_image": 0, "n_text": 1},
        {"n_image": 1.5, "n_text": 1},
    ):
        assert controls.sent_prompt(hostile, facts) == PromptSize(facts.n_image, facts.n_text)


def test_a_sampled_run_always_has_a_seed(picture: Path) -> None:
    def seed(**changes: Any) -> Any:
        return controls.prepare([str(picture)], "q", settings(**changes), about()).seed

    drawn = {seed(temperature=1.0, seed=None) for _ in range(5)}
    assert len(drawn) == 5
    assert all(0 <= one <= controls.MAX_SEED for one in drawn)
    assert seed(temperature=1.0, seed=7) == 7
    assert seed(temperature=0.0, seed=None) is None


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("llava-1.5-13b", "llava-1.5-13b"),
        ("llava-hf/llava-1.5-13b-hf", "llava-1.5-13b"),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-1.6-7b"),
        ("/data/models/llava-v1.6-vicuna-13b-hf", "llava-1.6-13b"),
        ("/data/models/mine", "llava-1.5-7b"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", "llava-1.5-7b"),
    ],
)
def test_a_model_opens_with_its_row_of_table_3(name: str, row: str) -> None:
    """By any of its names; one that is not in the table with its family's."""
    config = SimpleNamespace(model_type="llava", text_config=SimpleNamespace(model_type="llama", sliding_window=None))
    assert controls.table_row(name, config) == row
    opened = controls.settings(about(preset=row))["arms"][1]
    assert opened["T"] == {"llava-1.5-13b": 60, "llava-1.6-7b": 70, "llava-1.6-13b": 70, "llava-1.5-7b": 50}[row]
