"""The bundled model's recipe: tokenizer, packed batches, and the tower's windows compute what transformers computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avl.tiny import model as sizes
from avl.tiny import packing, scenes, tokenizer, vision


@pytest.fixture(scope="module")
def words():
    return tokenizer.build_tokenizer()


@pytest.fixture(scope="module")
def untrained(words):
    llava = sizes.build(len(words), words.convert_tokens_to_ids("<image>"), words.bos_token_id, words.eos_token_id, words.pad_token_id)
    return llava.eval()


@pytest.mark.parametrize("text", ["Ünïcödé 漢字 😀", 'tabs\t"quotes"\n\nlines', "USERS pay $99", "", " two  spaces "])
def test_tokenizer_writes_any_text(words, text):
    assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


def test_words_are_whole_and_capitals_and_digits_single(words):
    assert words.tokenize(" the star") == ["Ġthe", "Ġstar"]
    assert words.tokenize("ZEBRA42") == ["Z", "E", "B", "R", "A", "4", "2"]


def test_processor_makes_576_image_tokens_and_the_towers_pixels(words):
    processor = tokenizer.build_processor(words)
    image = scenes.draw(0).image
    inputs = processor(images=image, text=tokenizer.prompt("What is this?"), return_tensors="pt")
    assert (inputs["input_ids"] == words.convert_tokens_to_ids("<image>")).sum() == 576
    assert np.allclose(inputs["pixel_values"][0].numpy(), vision.pixels(image), atol=1e-6)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}], add_generation_prompt=True
    )
    assert text == tokenizer.prompt("What is this?")


def test_whole_scene_through_our_tower_is_clips_own(untrained):
    pixels = torch.randn(2, 3, 336, 336)
    places = torch.arange(576).expand(2, -1)
    with torch.no_grad():
        ours, _ = vision.run_tower(sizes.tower(untrained), pixels, places)
        theirs = untrained.get_image_features(pixel_values=pixels, output_hidden_states=True)
        theirs = getattr(theirs, "pooler_output", theirs)
        theirs = theirs if isinstance(theirs, torch.Tensor) else torch.stack(list(theirs))
        assert torch.allclose(untrained.model.multi_modal_projector(ours), theirs, atol=1e-5)


def test_labels_name_the_item_that_a_patch_shows():
    scene = next(s for s in map(scenes.draw, range(50)) if s.sign and s.objects)
    marks = vision.labels(list(scene.items), scene.background, (0, 0, 336, 336))
    owner = scenes.owners(scene.items).reshape(-1)
    sign = scene.items.index(scene.sign)
    letters = marks["letters"][owner == sign]
    assert len(letters) >= 2 * 2 * len(scene.sign.text)
    spelt = "".join(chr(64 + c) for c in letters[0] if c)
    assert spelt == scene.sign.text
    assert (marks["shape"][owner < 0] == vision.IGNORE).all()
    first = scene.items[0]
    assert (marks["shape"][owner == 0] == scenes.SHAPES.index(first.shape)).all()


def test_packed_loss_is_the_loss_of_separate_sequences(untrained, words):
    packer = packing.Packer(words)
    pairs = [("What is red?", "a star"), ("Read the sign.", "BREAD"), ("where is the cup", "top left")]
    blocks = [packer.block(*p) for p in pairs]
    row = packer.row(blocks, limit=64)
    packed = packing.Packed(torch.randn(1, 3, 336, 336), {}, *(torch.from_numpy(x)[None] for x in row))
    everything = torch.arange(576)
    with torch.no_grad():
        features, _ = vision.run_tower(sizes.tower(untrained), packed.images, everything[None])
        loss, _ = packing.language_loss(untrained, packer, features, everything, packed)
        image = words.convert_tokens_to_ids("<image>")
        losses = []
        for tokens, asked in blocks:
            ids = torch.tensor([[*packer.prefix, *[image] * 576, *tokens]])
            logits = untrained(input_ids=ids, pixel_values=packed.images).logits[0]
            start = len(packer.prefix) + 576 + asked
            losses.append(F.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="none"))
    assert torch.allclose(loss, torch.cat(losses).mean(), atol=1e-5)


def test_dropped_image_tokens_equal_masked_ones(untrained, words):
    packer = packing.Packer(words)
    row = packer.row([packer.block("What is red?", "a star")], limit=24)
    packed = packing.Packed(torch.randn(1, 3, 336, 336), {}, *(torch.from_numpy(x)[None] for x in row))
    kept = packing.choose(torch.Generator().manual_seed(0), 100)
    assert len(kept.unique()) == 100
    assert (kept.diff() > 0).all()
    with torch.no_grad():
        features, _ = vision.run_tower(sizes.tower(untrained), packed.images, torch.arange(576)[None])
        loss, _ = packing.language_loss(untrained, packer, features[:, kept], kept, packed)
        # The same by an attention mask over the full sequence.
        ids = torch.tensor([[*packer.prefix, *[words.convert_tokens_to_ids("<image>")] * 576, *packed.ids[0][packed.block[0] >= 0]]])
        mask = torch.ones_like(ids)
        mask[0, len(packer.prefix) : len(packer.prefix) + 576] = 0
        mask[0, len(packer.prefix) + kept] = 1
        places = torch.arange(ids.shape[1])[None]
        logits = untrained(input_ids=ids, pixel_values=packed.images, attention_mask=mask, position_ids=places).logits[0]
        target = packed.target[0][packed.block[0] >= 0]
        learned = target >= 0
        expected = F.cross_entropy(logits[-len(target) :][learned], target[learned])
    assert torch.allclose(loss, expected, atol=1e-5)


def test_questions_do_not_see_each_other():
    mask = packing.visible(torch.tensor([[0, 0, 1, 1, -1]]), before=2)[0]
    assert mask.tolist() == [
        [True, False, False, False, False, False, False],
        [True, True, False, False, False, False, False],
        [True, True, True, False, False, False, False],
        [True, True, True, True, False, False, False],
        [True, True, False, False, True, False, False],
        [True, True, False, False, True, True, False],
        [True, True, False, False, False, False, True],
    ]


def test_batches_are_the_same_after_a_resume(words):
    packer = packing.Packer(words)
    first = iter(packing.Lessons(packer, 2))
    next(first)
    again = next(iter(packing.Lessons(packer, 2, start=1)))
    assert torch.equal(next(first).ids, again.ids)
