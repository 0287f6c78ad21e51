"""Drawn scenes: the same for the same seed, held-out things held out, every answer right by construction."""

import numpy as np
import pytest

from avl.evaluation import tasks
from avl.tiny.data import drawing, scenes
from avl.tiny.data.words import TEST_NUMBERS, TEST_WORDS, TRAIN_NUMBERS, TRAIN_WORDS


def test_same_seed_same_scene():
    one, two = scenes.draw(11), scenes.draw(11)
    assert np.array_equal(np.asarray(one.image), np.asarray(two.image))
    assert one.items == two.items
    assert one.questions == two.questions
    assert scenes.draw(12).items != one.items
    assert one.image.size == (336, 336)


def test_other_split_is_refused():
    with pytest.raises(ValueError, match="split"):
        scenes.draw(0, "dev")


def test_splits_share_no_word_number_or_first_pair():
    assert not set(TRAIN_WORDS) & set(TEST_WORDS)
    assert not set(TRAIN_NUMBERS) & set(TEST_NUMBERS)
    for seed in range(60):
        train, test = scenes.draw(seed, "train"), scenes.draw(seed, "test")
        assert not any(scenes.is_test_pair(o.color, o.shape) for o in train.objects)
        assert any(scenes.is_test_pair(o.color, o.shape) for o in test.objects)
        for scene, words, numbers in ((train, TRAIN_WORDS, TRAIN_NUMBERS), (test, TEST_WORDS, TEST_NUMBERS)):
            assert scene.sign is None or scene.sign.text in words
            assert scene.tag is None or int(scene.tag.text) in numbers


def test_items_stay_inside_and_apart():
    for seed in range(60):
        items = scenes.draw(seed, "train").items
        assert len({i.position for i in items}) == len(items)
        for index, a in enumerate(items):
            assert min(a.box) >= 0
            assert max(a.box) <= scenes.CANVAS
            for b in items[index + 1 :]:
                assert a.box[2] < b.box[0] or b.box[2] < a.box[0] or a.box[3] < b.box[1] or b.box[3] < a.box[1]


def test_most_patches_are_background():
    shares = [(drawing.owners(scenes.draw(seed).items) < 0).mean() for seed in range(40)]
    assert np.mean(shares) > 0.7


def test_owner_of_an_items_centre_is_the_item():
    scene = scenes.draw(5)
    owner = drawing.owners(scene.items)
    for index, item in enumerate(scene.items):
        if item.shape == "ring":
            continue
        x, y = item.center
        if item.kind == "sign":
            y -= 9
        assert owner[int(y // scenes.PATCH), int(x // scenes.PATCH)] == index


def test_right_answers_score_one_and_wrong_ones_less():
    for seed in range(80):
        for question in scenes.draw(seed).questions:
            assert tasks.score(question, question.answer) == 1.0, question
            assert tasks.score(question, "I do not know") == 0.0
