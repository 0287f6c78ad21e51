"""Answers to lmms-eval's chat messages: the same in a batch as alone, with counts of their own; and what cannot be asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

import avl
from avl.evaluation.paper.answering import Settings, encoded, prompt_of, replies, shape_of
from avl.evaluation.tasks import held_out
from avl.policies import AVL
from avl.policies.cost import step_cost

POLICY = AVL(S=45, C=30, K=3, P=90, T=60)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    model, processor = avl.load("tiny", device="cpu")
    return avl.attach(model), processor


def chat(*content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": one} if isinstance(one, str) else {"type": "image", "url": one} for one in content]
    return [{"role": "user", "content": parts}]


def test_an_answer_and_its_counts_do_not_depend_on_the_batch(tiny: tuple[Any, Any]):
    """Answers of other length share a batch: what a row stores after its own end is not its own. Counts are those of the cost model."""
    asked = [chat(one.image, one.question.text) for one in held_out(3)]
    settings = Settings(8)
    batch = replies(*tiny, asked, POLICY, settings)
    assert sorted(one.tokens for one in batch) == [2, 6, 8]
    assert batch[0].text == "yes"
    alone = replies(*tiny, asked[:1], POLICY, settings)
    assert replace(alone[0], seconds=0) == replace(batch[0], seconds=0)
    for one, messages in zip(batch, asked, strict=True):
        shape = shape_of(*tiny, messages, 8)
        assert shape.length == one.asked
        steps = [step_cost(POLICY, shape, t) for t in range(1, one.tokens)]
        assert (one.stored, one.read) == (sum(step.stored for step in steps), sum(step.read for step in steps))
        assert one.full == sum(shape.n_layers * (shape.length + t) for t in range(1, one.tokens))


def test_an_answer_ends_before_a_stop_text(tiny: tuple[Any, Any]):
    asked = [chat(one.image, one.question.text) for one in held_out(2)[1:]]
    (whole,) = replies(*tiny, asked, POLICY, Settings(12))
    assert whole.text.startswith("The background is dots.")
    (cut,) = replies(*tiny, asked, POLICY, Settings(12, ("never", "ground")))
    assert cut.text == "The back"
    assert cut.tokens < whole.tokens, "generation goes on after the stop text"


def test_several_pictures_in_one_document(tiny: tuple[Any, Any]):
    images = [one.image for one in held_out(2)]
    one, two = chat(images[0], "What is it?"), chat(*images, "What is it?")
    given = encoded(*tiny, [one, two])
    assert given["pixel_values"].shape[0] == 3
    assert shape_of(*tiny, two, 8).n_image == 2 * shape_of(*tiny, one, 8).n_image
    assert prompt_of(*tiny, [{"role": "system", "content": "Be brief."}, *one]).startswith("Be brief. USER: <image>")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (chat("What is it?"), "it has no picture"),
        (chat(Image.new("RGB", (8, 8))), "it has no text"),
        (chat(Image.new("RGB", (8, 8)), "What is <image>?"), "which this model reads as a control token"),
        ([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "it holds video"),
        (chat(b"no picture", "What is it?"), "picture"),
    ],
    ids=["no-picture", "no-text", "control-token", "video", "damaged"],
)
def test_what_cannot_be_asked_is_refused(tiny: tuple[Any, Any], messages: list[dict[str, Any]], said: str):
    with pytest.raises(ValueError, match=said):
        replies(*tiny, [messages], POLICY, Settings(4))


def test_settings_of_a_task():
    greedy = {"temperature": 0.0, "top_p": 1.0, "num_beams": 1, "do_sample": False}
    assert Settings.of({"max_new_tokens": 32, "until": ["\n\n"], **greedy}, 64) == Settings(32, ("\n\n",))
    assert Settings.of({"until": "ASSISTANT:"}, 64) == Settings(64, ("ASSISTANT:",))
    assert Settings.of({"until": None}) == Settings(64)
    for bad in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 5}, {"guidance": 2}):
        with pytest.raises(ValueError, match=f"the task sets {next(iter(bad))}="):
            Settings.of(bad)


@pytest.mark.parametrize("architecture", ["next-llama"])
def test_pictures_of_other_tiles_share_a_batch(architecture: str, model: Any, processor: Any):
    """LLaVA-1.6 makes more tokens of a large picture: rows of other lengths, padded on the left."""
    asked = [chat(Image.effect_noise(size, 80), "what is it") for size in ((28, 28), (60, 30), (28, 60))]
    batch = replies(model, processor, asked, POLICY, Settings(6))
    assert len({one.asked for one in batch}) == 3
    for one, messages in zip(batch, asked, strict=True):
        (alone,) = replies(model, processor, [messages], POLICY, Settings(6))
        assert replace(one, seconds=0) == replace(alone, seconds=0)
