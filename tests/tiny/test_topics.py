"""What the words of a question are about: labels of the temporary heads, on scenes made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avl.tiny.data import scenes
from avl.tiny.data.questions import PHRASES, questions
from avl.tiny.recipe import packing, topics
from avl.tiny.recipe.tokenizer import build_tokenizer

RED = scenes.Item("object", (0, 0, 9, 9), "left", "star", "red", "small")
BLUE = scenes.Item("object", (0, 0, 9, 9), "top right", "star", "blue", "large")
SIGN = scenes.Item("sign", (0, 0, 9, 9), "bottom", text="BREAD")
NO = topics.IGNORE
STAR = scenes.SHAPES.index("star")


@pytest.fixture(scope="module")
def words():
    return build_tokenizer()


def test_named_finds_the_items_that_each_name_describes():
    text = "how many stars is the red star left of the blue thing or a cup in the top right and at the top"
    found = topics.named(text.split(), [RED, BLUE, SIGN])
    said = {text.split()[at]: matches for at, matches in list(found.items())[:4]}
    assert said == {"stars": [RED, BLUE], "star": [RED], "blue": [BLUE], "cup": []}
    assert list(found.values())[4:] == [[BLUE], []], "a place is a name too; nothing is at the top"
    assert topics.named(["how", "many", "objects"], [RED, BLUE, SIGN]) == {2: [RED, BLUE]}
    assert topics.named(["how", "many", "red", "objects"], [RED, BLUE]) == {2: [RED]}


def test_the_labels_of_a_name_are_the_facts_of_the_one_that_it_means():
    assert topics.mention([RED]) == (1, 0, STAR, 0, scenes.POSITIONS.index("left"))
    assert topics.mention([SIGN]) == (1, NO, NO, NO, scenes.POSITIONS.index("bottom"))
    assert topics.mention([RED, BLUE]) == (2, NO, NO, NO, NO)
    assert topics.mention([]) == (0, NO, NO, NO, NO)


def test_a_colour_without_a_name_is_not_asked_for():
    grey = scenes.Item("object", (0, 0, 9, 9), "top", "cup", "", "large", tint=(90, 90, 90))
    assert topics.mention([grey]) == (1, NO, scenes.SHAPES.index("cup"), 2, scenes.POSITIONS.index("top"))


def test_a_relation_is_the_seconds_against_the_firsts():
    assert topics.relation(RED, BLUE) == (2, 2, 0), "larger, further right, further up"
    assert topics.relation(BLUE, RED) == (0, 0, 2)
    assert topics.relation(RED, RED) == (1, 1, 1)


def test_an_overview_names_every_position():
    labels = topics.overview("sea", [RED, BLUE, SIGN])
    assert len(labels) == len(topics.OVERVIEW)
    assert labels[0] == scenes.BACKGROUNDS.index("sea")
    by_position = {p: labels[1 + 4 * i : 5 + 4 * i] for i, p in enumerate(scenes.POSITIONS)}
    assert by_position["left"] == (1, 0, STAR, 0)
    assert by_position["bottom"] == (2, NO, NO, NO)
    assert sum(entry == (0, NO, NO, NO) for entry in by_position.values()) == 6


def test_writing_is_the_word_and_the_price():
    tag = scenes.Item("tag", (0, 0, 9, 9), "top", text="46")
    assert topics.writing([RED, SIGN, tag]) == (2, 18, 5, 1, 4, 5, 7), "B, R, E, A, D; 4, 6"
    assert topics.writing([scenes.Item("sign", (0, 0, 9, 9), "top", text="CAT")]) == (3, 1, 20, 0, 0, NO, NO)


def test_an_answer_is_about_the_names_in_its_question(words):
    packer = packing.Packer(words)
    asked = [
        scenes.Question("Where is the red star?", "left", "qa"),
        scenes.Question("Which is bigger, the blue star or the red star?", "the blue star", "qa"),
        scenes.Question("Describe the picture.", "a red star", "describe", kind="describe"),
    ]
    (_, block, _, target), about = packer.row(asked, "sea", [RED, BLUE], limit=80)
    said = target >= 0
    red, blue, relation = topics.mention([RED]), topics.mention([BLUE]), topics.relation(BLUE, RED)
    assert (about["mention"][:, 0] >= 0).sum() == 3
    assert (about["subject"][(block == 0) & said] == [*red, *[NO] * 8]).all()
    assert (about["subject"][(block == 1) & said] == [*blue, *red, *relation]).all()
    assert (about["subject"][~said] == NO).all(), "only where a word of the answer is said"
    assert about["relation"][(about["relation"] >= 0).any(-1)].tolist() == [list(relation)]
    (at,) = np.flatnonzero(about["overview"][:, 0] >= 0)
    assert (about["review"] == about["overview"]).all()
    assert said[at], "the end of the question, from which the first word of the answer is said"
    assert not said[at - 1]
    assert block[at] == 2


def test_every_label_is_a_class_of_its_head(words):
    packer = packing.Packer(words)
    seen = dict.fromkeys(topics.HEADS, 0)
    for seed in range(20):
        scene = scenes.draw(seed, "train")
        _, about = packer.row(questions(scene, np.random.default_rng(seed)), scene.background, scene.items, limit=900)
        for name, (_, classes) in topics.HEADS.items():
            known = about[name] != NO
            assert (about[name][known] >= 0).all()
            assert (about[name].max(0) < classes).all()
            seen[name] += int(known.sum())
    assert min(seen.values()) > 100


def test_the_heads_learn_from_what_is_asked(words):
    torch.manual_seed(0)
    packer = packing.Packer(words)
    _, about = packer.row([scenes.Question("Where is the red star?", "left", "qa")], "sea", [RED], limit=16)
    heads = topics.Heads(8)
    hidden = {layer: torch.randn(1, 16, 8, requires_grad=True) for layer in topics.LAYERS}
    loss, right = heads.loss(hidden, {k: torch.from_numpy(v)[None] for k, v in about.items()})
    loss.backward()
    assert set(right) == {"mention", "subject"}, "nothing is compared or described"
    assert all(0 <= share <= 1 for share in right.values())
    touched = hidden[5].grad[0].abs().sum(-1) > 0
    assert touched.tolist() == (about["mention"] >= 0).any(-1).tolist()


def test_names_are_read_word_by_word(words):
    """`named` reads tokens as words."""
    for name in (*scenes.SHAPES, *scenes.PLURALS.values(), *scenes.COLORS, "objects", "things", *" ".join(PHRASES.values()).split()):
        assert len(words.tokenize(f" {name}")) == 1, name
