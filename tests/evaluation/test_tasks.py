"""The scores and the held-out set."""

import pytest

from avl.evaluation import tasks
from avl.tiny.data.scenes import Question


def test_qa_ignores_case_articles_and_stops():
    question = Question("What is red?", "a star", "qa")
    assert tasks.score(question, " The STAR. ") == 1.0
    assert tasks.score(question, "a heart") == 0.0
    assert tasks.score(Question("How many?", "two", "qa"), "2") == 1.0


@pytest.mark.parametrize("answer", ["²", "x² and ①", "9" * 5000, "٣", "\x00", ""], ids=ascii)
def test_any_answer_has_a_score(answer):
    for task in tasks.TASKS:
        assert tasks.score(Question("How many?", "two", task), answer) == 0.0


def test_anls_is_one_minus_distance_over_length():
    question = Question("Read the sign.", "BREAD", "read")
    assert tasks.score(question, "BREAD") == 1.0
    assert tasks.score(question, "bread") == 1.0
    assert tasks.score(question, "BREAK") == pytest.approx(0.8)
    assert tasks.score(question, "BR") == 0.0
    assert tasks.anls("", "") == 1.0


def test_description_counts_facts_in_any_order():
    facts = ("beach", "2 objects", "red star", "red star is large", "red star at top", "blue cup", "blue cup is small", "blue cup at left")
    question = Question("Describe.", "", "describe", facts, "describe")
    right = "There are two objects: a small blue cup on the left and a large red star at the top. The background is a beach."
    assert tasks.score(question, right) == 1.0
    assert tasks.score(question, right.replace("large", "small")) == pytest.approx(7 / 8)
    assert tasks.score(question, right.replace("red", "green")) == pytest.approx(5 / 8)
    assert tasks.score(question, right + " A sign at the bottom says HI.") == pytest.approx(8 / 10)
    assert tasks.score(question, "") == 0.0


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task"):
        tasks.score(Question("?", "", "sing"), "")


def test_held_out_is_fixed_and_mixed():
    one, two = tasks.held_out(30), tasks.held_out(30)
    assert [s.question for s in one] == [s.question for s in two]
    counted = {t: sum(s.question.task == t for s in one) for t in tasks.TASKS}
    assert counted == {"qa": 12, "read": 9, "describe": 9}
    assert [s.question for s in tasks.held_out(5, seed=1)] != [s.question for s in one[:5]]
    with pytest.raises(ValueError, match="n must"):
        tasks.held_out(0)
