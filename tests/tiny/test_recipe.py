"""The bundled model's recipe: tokenizer, packed batches, and our tower on some patches computes what transformers computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avl.tiny.data import drawing, scenes
from avl.tiny.recipe import model as sizes
from avl.tiny.recipe import packing, tokenizer, topics, train, vision


@pytest.fixture(scope="module")
def words():
    return tokenizer.build_tokenizer()


@pytest.fixture(scope="module")
def untrained(words):
    llava = sizes.build(len(words), words.convert_tokens_to_ids("<image>"), words.bos_token_id, words.eos_token_id, words.pad_token_id)
    return llava.eval()


def cut(images):
    """Every patch of uint8 pictures [batch, 336, 336, 3] as the recipe gives them: uint8 [batch, 576, 588], and their places."""
    patches = images.reshape(-1, 24, 14, 24, 14, 3).transpose(2, 3).reshape(len(images), 576, -1)
    return patches, torch.arange(576).expand(len(images), -1)


def pixels(image):
    """A picture as the processor gives it to the tower: float32 [3, height, width]."""
    return ((np.asarray(image, np.float32) / 255 - vision.MEAN) / vision.STD).transpose(2, 0, 1)


def seen(images):
    """The same pictures as the processor gives them to the model."""
    return torch.stack([torch.from_numpy(pixels(image.numpy())) for image in images])


def packed_row(packer, images, pairs, limit):
    """One row of (question, answer) pairs about a picture that shows nothing."""
    row, about = packer.row([scenes.Question(*pair, "qa") for pair in pairs], "sky", [], limit)
    labels = {name: torch.from_numpy(values)[None] for name, values in about.items()}
    patches, places = cut(images)
    owner = torch.full_like(places, -1)
    return packing.Packed(patches, places, owner, {}, *(torch.from_numpy(values)[None] for values in row), labels)


def noise(count):
    """Pictures of nothing: uint8 [count, 336, 336, 3]."""
    return torch.randint(0, 256, (count, 336, 336, 3), dtype=torch.uint8)


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
    assert np.allclose(inputs["pixel_values"][0].numpy(), pixels(image), atol=1e-6)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}], add_generation_prompt=True
    )
    assert text == tokenizer.prompt("What is this?")


def test_whole_scene_through_our_tower_is_clips_own(untrained):
    images = noise(2)
    with torch.no_grad():
        ours, _ = vision.run_tower(sizes.tower(untrained), *cut(images))
        theirs = untrained.get_image_features(pixel_values=seen(images), output_hidden_states=True)
        theirs = getattr(theirs, "pooler_output", theirs)
        theirs = theirs if isinstance(theirs, torch.Tensor) else torch.stack(list(theirs))
        assert torch.allclose(untrained.model.multi_modal_projector(ours), theirs, atol=1e-5)


def test_labels_name_the_item_that_a_patch_shows():
    scene = next(s for s in map(scenes.draw, range(50)) if s.sign and s.objects)
    marks = vision.labels(scene.items, scene.background)
    owner = drawing.owners(scene.items).reshape(-1)
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
    images = noise(1)
    packed = packed_row(packer, images, pairs, 64)
    with torch.no_grad():
        features, _ = vision.run_tower(sizes.tower(untrained), packed.patches, packed.places)
        loss, _, _ = packing.language_loss(untrained, packer, features, packed.places, packed)
        image = words.convert_tokens_to_ids("<image>")
        losses = []
        for tokens, asked in blocks:
            ids = torch.tensor([[*packer.prefix, *[image] * 576, *tokens]])
            logits = untrained(input_ids=ids, pixel_values=seen(images)).logits[0]
            start = len(packer.prefix) + 576 + asked
            losses.append(F.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="none"))
    assert torch.allclose(loss, torch.cat(losses).mean(), atol=1e-5)


def test_a_question_counts_by_the_root_of_its_answers_length(untrained, words):
    packer = packing.Packer(words)
    pairs = [("What is red?", "a small red star in the top left"), ("where is the cup", "left")]
    images = noise(1)

    def loss_of(chosen, **options):
        packed = packed_row(packer, images, chosen, 64)
        with torch.no_grad():
            features, _ = vision.run_tower(sizes.tower(untrained), packed.patches, packed.places)
            loss, right, told = packing.language_loss(untrained, packer, features, packed.places, packed, **options)
        assert {layer: states.shape for layer, states in told.items()} == dict.fromkeys(topics.LAYERS, (1, 64, sizes.TEXT_WIDTH))
        return loss, len(right)

    (one, n), (two, m) = (loss_of([pair]) for pair in pairs)
    expected = (one * n**0.5 + two * m**0.5) / (n**0.5 + m**0.5)
    assert torch.allclose(loss_of(pairs, by_question=True)[0], expected, atol=1e-5)


def test_answers_may_be_blind_where_questions_see(untrained, words):
    """Hidden from the answers alone, image tokens still tell the first word; hidden from all, none of them tells anything."""
    packer = packing.Packer(words)
    pair = ("What is red?", "a small red star")
    one, two = (packed_row(packer, images, [pair], 24) for images in (noise(1), noise(2)[1:]))
    hide = torch.ones(sizes.TEXT_LAYERS, *one.places.shape, dtype=torch.bool)

    def states(packed, **options):
        with torch.no_grad():
            features, _ = vision.run_tower(sizes.tower(untrained), packed.patches, packed.places)
            _, _, told = packing.language_loss(untrained, packer, features, packed.places, packed, hide, **options)
        return told[max(topics.LAYERS)][0, (packed.block[0] >= 0)]

    blind = [states(packed) for packed in (one, two)]
    assert torch.equal(*blind), "no token of the text sees anything of the picture"
    seen = [states(packed, answers=1.0) for packed in (one, two)]
    assert not torch.isclose(*seen).all(-1).any(), "what the question saw reaches every token"


def test_dropped_image_tokens_equal_masked_ones(untrained, words):
    packer = packing.Packer(words)
    images = noise(1)
    packed = packed_row(packer, images, [("What is red?", "a star")], 24)
    (kept,) = packing.choose(torch.Generator().manual_seed(0), 1, 576, 100)
    assert len(kept.unique()) == 100
    assert (kept.diff() > 0).all()
    with torch.no_grad():
        features, _ = vision.run_tower(sizes.tower(untrained), packed.patches, packed.places)
        loss, _, _ = packing.language_loss(untrained, packer, features[:, kept], kept[None], packed)
        # The same by an attention mask over the full sequence.
        ids = torch.tensor([[*packer.prefix, *[words.convert_tokens_to_ids("<image>")] * 576, *packed.ids[0][packed.block[0] >= 0]]])
        mask = torch.ones_like(ids)
        mask[0, len(packer.prefix) : len(packer.prefix) + 576] = 0
        mask[0, len(packer.prefix) + kept] = 1
        places = torch.arange(ids.shape[1])[None]
        logits = untrained(input_ids=ids, pixel_values=seen(images), attention_mask=mask, position_ids=places).logits[0]
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


def test_the_same_start_gives_the_same_batches(words):
    """A run is repeatable, and what follows a resume is other than what came before it."""
    one, same, other = (next(iter(packing.Lessons(packing.Packer(words), 2, torch.zeros(()), start))) for start in (0, 0, 1))
    assert torch.equal(one.ids, same.ids)
    assert torch.equal(one.patches, same.patches)
    assert not torch.equal(one.patches, other.patches)


def owners_of(rows):
    """Three things of 40 tokens each in every row, the rest background."""
    owner = torch.full((rows, 576), -1)
    for thing in range(3):
        owner[:, 100 * thing : 100 * thing + 40] = thing
    return owner


def test_what_is_hidden_in_a_run_is_the_same_in_its_layers_and_nothing_elsewhere():
    places, owner = torch.arange(576).expand(2, -1), owners_of(2)
    whole = 0
    for seed in range(200):
        run = range(seed % 5, seed % 5 + 1 + seed % 3)
        hidden = packing.hidden_in_run(torch.Generator().manual_seed(seed), 8, run, places, owner)
        assert len(hidden[run.start : run.stop].flatten(1).unique(dim=0)) == 1
        assert not hidden[: run.start].any()
        assert not hidden[run.stop :].any()
        whole += bool(hidden[run.start].all())
    assert 50 < whole < 110


def test_every_way_of_hiding_is_taken_and_none_at_first():
    places, owner, text = torch.arange(576).expand(2, -1), owners_of(2), torch.Size((2, 30))
    ways, starts = {"nothing": 0, "everywhere": 0, "run": 0, "answers": 0, "words": 0}, set()
    for seed in range(200):
        chance = torch.Generator().manual_seed(seed)
        assert train.hidden(chance, 0.05, places, owner, text) == (None, None, 0.0)
        hide, forget, answers = train.hidden(torch.Generator().manual_seed(seed), 0.5, places, owner, text)
        run = hide is not None and len(hide.flatten(1).unique(dim=0)) <= 2
        ways["nothing" if hide is None else "answers" if answers == 1 else "words" if answers else "run" if run else "everywhere"] += 1
        assert forget is None or not answers
        if answers == 1:
            touched = hide.flatten(1).any(-1)
            starts |= {int(touched.int().argmax())} if touched.any() else set()
            assert not touched.any() or touched[-1], "from some layer on"
        if run and not answers:
            assert (~hide.flatten(1).any(-1)).sum() >= 3, "some layers see all, or no question could be answered"
    assert min(ways.values()) > 10
    assert starts == set(range(6))


def test_misread_words_are_colours_of_answers(words):
    packer = packing.Packer(words)
    asked = [scenes.Question("Where is the red star?", "a red star and a green fish", "qa")]
    (ids, _, _, target), _ = packer.row(asked, "sea", [], limit=40)
    rng = np.random.default_rng(0)
    assert (packing.misread(rng, ids, target, packer.colors, 0.0) == ids).all()
    changed = np.stack([packing.misread(rng, ids, target, packer.colors, 1.0) for _ in range(40)]) != ids
    assert changed.any(0).sum() == 2
    assert set(words.decode(ids[changed.any(0)]).split()) == {"red", "green"}
    assert (target[np.flatnonzero(changed.any(0)) - 1] == ids[changed.any(0)]).all(), "what is to be said stays"


def test_colours_without_a_name_are_said_at_random_and_never_learned(words, monkeypatch):
    paint, rng = vision.Painter(np.random.default_rng(8)), np.random.default_rng(9)
    for _ in range(40):
        scene = paint(unnamed=0.6)
        asked = packing.colorless(scene, rng)
        assert {"describe", "caption", "where"} <= {q.kind for q in asked}
        assert all(not set(q.text.lower().split()) & set(scenes.COLORS) for q in asked), "no color decides an answer"
        assert all(f"{item.size} " in asked[0].answer and item.shape in asked[0].answer for item in scene.objects)
    monkeypatch.setattr(packing, "UNNAMED", 1.0)
    packer = packing.Packer(words)
    batch = packing.Lessons(packer, 4, torch.zeros(())).make(rng, paint, 4, vision.GIVEN)
    colors = torch.from_numpy(packer.colors)
    assert torch.isin(batch.ids, colors).any(), "they are read back"
    assert not torch.isin(batch.target, colors).any()


def test_given_patches_are_the_scenes_own():
    rng = np.random.default_rng(3)
    scene = vision.Painter(rng)()
    marks = vision.labels(scene.items, scene.background)
    given = vision.give(rng, scene, marks, vision.GIVEN)
    assert len(np.unique(given.places)) == vision.GIVEN
    image = np.asarray(scene.image)
    for patch, place in zip(given.patches[::37], given.places[::37], strict=True):
        row, column = divmod(int(place), 24)
        assert (image[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] == patch.reshape(14, 14, 3)).all()
    assert (given.marks["kind"] == marks["kind"][given.places]).all()


def test_no_training_scene_shows_a_held_out_pair_word_or_price():
    paint = vision.Painter(np.random.default_rng(5))
    named = unnamed = 0
    for _ in range(120):
        for item in paint(unnamed=0.5).items:
            if item.kind == "sign":
                assert not scenes.is_test_word(item.text)
            elif item.kind == "tag":
                assert int(item.text) in scenes.TRAIN_NUMBERS
            elif item.color:
                named += 1
                assert not scenes.is_test_pair(item.color, item.shape)
            else:
                unnamed += 1
                distances = [np.linalg.norm(np.subtract(item.tint, named)) for named in scenes.COLORS.values()]
                assert min(distances) > scenes.FAR_COLOR
    assert named > 50
    assert unnamed > 50


def test_hidden_places_differ_by_layer_and_never_hide_all():
    places, owner = torch.arange(576).expand(3, -1), owners_of(3)
    hidden = torch.cat([packing.hidden_places(torch.Generator().manual_seed(seed), 8, places, owner) for seed in range(20)])
    assert not hidden.all(-1).any()
    assert 0.1 < hidden.float().mean() < 0.3
    assert len(hidden.flatten(1).unique(dim=0)) > 100
    shares = torch.stack([hidden[..., owner[0] == thing].float().mean(-1) for thing in (-1, 0, 1, 2)], -1).flatten(0, 1)
    gone = shares[(shares[:, 0] == 0) & (shares[:, 1:] > 0).any(-1)]
    assert len(gone) > 100, "things hidden and the background seen"
    assert ((gone == 0) | (gone == 1)).all(-1).float().mean() > 0.6, "whole things"


def test_objects_are_found_where_they_are(words):
    """The owner of a patch in a batch is the thing that its labels speak of."""
    batch = packing.Lessons(packing.Packer(words), 4, torch.zeros(()), 3).make(
        np.random.default_rng(4), vision.Painter(np.random.default_rng(5)), 4, vision.GIVEN
    )
    assert batch.owner.shape == batch.places.shape
    assert torch.equal(batch.owner >= 0, batch.marks["kind"][..., 0] > 0)
