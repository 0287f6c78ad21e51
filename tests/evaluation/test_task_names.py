"""A task by its name, with the model that it is for, and samples that did not choose a setting."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from known_task import Known

from avl.evaluation import task_names
from avl.evaluation.task_names import check_tasks, with_fresh

LOADED: tuple[Any, Any] = (None, None)  # the bundled tasks hold them, and ask nothing here


def test_the_bundled_models_tasks_are_confirmed_on_scenes_of_another_seed():
    (first, numbers), (again, others) = with_fresh("qa", LOADED, "tiny", 3, 2, seed=4, batch=8)
    assert (first.name, first.size, first.made["seed"], first.made["batch"], numbers) == ("qa", 3, 4, 8, range(3))
    assert (again.name, again.made["seed"], others) == ("qa", 5, range(2))


@pytest.fixture
def lmms(monkeypatch) -> list[dict[str, Any]]:
    """Stands in for lmms-eval's tasks: a data set of 50 documents."""
    given: list[dict[str, Any]] = []

    def lmms_task(name: str, model: Any, processor: Any, **options: Any) -> Known:
        given.append({"name": name, **options})
        return Known(lambda policy: 1, lambda policy: (1, 1), size=min(50, options["limit"]), name=name)

    monkeypatch.setattr(task_names, "lmms_task", lmms_task)
    monkeypatch.setattr(task_names, "require_evaluator", lambda: None)
    return given


def test_a_data_set_is_confirmed_on_later_documents(lmms):
    (first, numbers), (again, others) = with_fresh("docvqa", LOADED, "llava-1.5-7b", 30, 20, batch=4)
    assert first is again
    assert (numbers, others) == (range(30), range(30, 50))
    assert lmms == [{"name": "docvqa", "limit": 50, "batch": 4}]
    with pytest.raises(ValueError, match="docvqa has 50 samples, fewer than 40 to choose by and 20 to confirm on"):
        with_fresh("docvqa", LOADED, "llava-1.5-7b", 40, 20)


def test_what_a_data_set_needs_is_said():
    if importlib.util.find_spec("lmms_eval") is not None:
        pytest.skip("lmms-eval is installed")
    with pytest.raises(OSError, match="need lmms-eval, which is not installed: run"):
        check_tasks(["docvqa_val"], "llava-1.5-7b")


@pytest.mark.parametrize(
    ("names", "model", "said"),
    [
        ([], "tiny", "no task is named"),
        (["qa"], "llava-1.5-7b", "qa asks about the scenes of the bundled model"),
        (["qa", "docvqa"], "tiny", "the bundled model has no task 'docvqa'"),
        (["docvqa", "docvqa"], "llava-1.5-7b", "the task docvqa is named twice"),
    ],
)
def test_tasks_and_model_have_to_go_together(names: list[str], model: str, said: str):
    with pytest.raises(ValueError, match=said):
        check_tasks(names, model)
