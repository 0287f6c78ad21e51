"""Sizes of a prompt before it runs are those that the engine then finds."""

from __future__ import annotations

import pytest
import random_models
from PIL import Image

import avl
from avl.engine import scheduler
from avl.engine.request import GenerationRequest
from avl.models.loading import load
from avl.trace import Grid
from avl.ui.prompts import measure_with, seen_share

SIZES = [
    ((40, 30),),
    ((64, 64),),
    ((30, 200),),
    ((300, 20), (20, 300), (33, 47)),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", random_models.ARCHITECTURES)
def test_it_counts_what_the_engine_counts(name: str, sizes: tuple[tuple[int, int], ...]) -> None:
    model, processor = random_models.shared_model(name), random_models.shared_processor(name)
    request = GenerationRequest(tuple(Image.new("RGB", size) for size in sizes), "one two three", (avl.Full(),), max_new_tokens=1)
    start = next(iter(scheduler.run(model, processor, request)))
    found = measure_with(model, processor)(sizes, "one two three")
    assert (found.n_image, found.n_text) == (start.n_image, start.n_text)


def test_the_bundled_model_sees_the_middle_square() -> None:
    model, processor = load("tiny", device="cpu")
    measure = measure_with(model, processor)
    square, panorama = (measure((size,), "Describe it.") for size in ((400, 400), (4000, 500)))
    assert (square.n_image, panorama.n_image) == (576, 576)
    assert square.seen == pytest.approx(1)
    assert panorama.seen == pytest.approx(1 / 8)
    assert measure(((400, 400), (4000, 500)), "Describe it.").n_image == 2 * 576


def test_tokens_without_a_place_have_no_seen_share() -> None:
    assert seen_share((), [(40, 40)]) is None
    whole, middle = Grid(0, 0, 2, 2, False, (0, 0, 40, 40)), Grid(1, 4, 2, 2, False, (10, -10, 30, 50))
    assert seen_share((whole,), [(40, 40)]) == 1
    assert seen_share((whole, middle), [(40, 40), (40, 40)]) == 0.5
