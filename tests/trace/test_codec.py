"""Packed scores: what comes back, how far off, how large, and that whatever is damaged is refused."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl import trace
from avl.trace import Scores, codec, listed_tokens, pack_exact, pack_scores, scores_bytes, unpack_scores

SIZES = (1, 2, 127, 128, 576, 2928, 20_000)


def attention(n: int, seed: int = 0, sharp: float = 8) -> np.ndarray:
    scores = np.random.default_rng(seed).random(n) ** sharp
    return scores / scores.sum()


def packed(*parts: int) -> str:
    return "t:" + base64.b64encode(bytes(parts)).decode()


@pytest.mark.parametrize("n", SIZES)
def test_codes_are_three_percent_off_at_most(n):
    scores = np.concatenate([attention(n), 2.0 ** -np.linspace(0, 21, 200), [0.0, 1e-9, 1.0, 1.0000001]])
    found = unpack_scores(pack_scores(scores), scores.size)
    assert (np.abs(found - scores) <= 0.0295 * scores + 4.2e-7).all()
    assert found[-4] == found[-3] == 0
    assert found[-2] == found[-1] == 1


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("listed", [0, 1, 2, 32, 92, 1000])
def test_the_highest_tokens_are_listed_and_the_others_are_no_number(n, listed):
    scores = attention(n, listed)
    text = pack_scores(scores, listed)
    found = unpack_scores(text, n)
    if listed >= n:
        assert text.startswith("d:")
        assert not np.isnan(found).any()
        return
    known = ~np.isnan(found)
    assert text.startswith("t:")
    assert known.sum() <= listed
    np.testing.assert_allclose(found[known], scores[known], rtol=0.0295)
    rest = scores[~known]
    assert known.sum() == listed or rest.max() < 4.2e-7
    assert not listed or scores[known].min() >= rest.max()
    assert len(base64.b64decode(text[2:])) <= codec._top_bytes(n, listed)


def test_the_bytes_are_those_that_are_described():
    """Written out by hand, as a reader in another language would."""
    scores = np.zeros(400)
    scores[[0, 5, 399]] = 1.0, 0.5, 2.0 ** (-1 / 12)
    assert pack_scores(scores, 3) == packed(3, 1, 5, 0b10000000 | (394 & 127), 394 >> 7, 255, 243, 254)
    assert pack_scores(np.array([0.5, 0.0, 1.0])) == "d:" + base64.b64encode(bytes([243, 0, 255])).decode()
    assert pack_scores(scores, 0) == packed(0)
    assert np.isnan(unpack_scores(packed(0), 7)).all()


def test_exact_scores_are_float16():
    scores = attention(576)
    np.testing.assert_allclose(unpack_scores(pack_exact(scores), 576), scores, rtol=6e-4, atol=1e-7)


DAMAGED = {
    "nothing": ("t:", "no number"),
    "endless number": (packed(255, 255, 255, 255, 255, 255), "no number"),
    "more than there are": (packed(8, *[1] * 8, *[9] * 8), "list 8 of 7"),
    "a score short": (packed(2, 1, 1, 9), "list 2 image tokens, and hold 1 scores"),
    "a score long": (packed(1, 1, 9, 9), "list 1 image tokens, and hold 2 scores"),
    "gaps cut off": (packed(3, 1), "hold 0 scores"),
    "a token twice": (packed(2, 1, 0, 9, 9), "twice"),
    "before the first": (packed(1, 0, 9), "twice"),
    "beyond the last": (packed(1, 8, 9), "beyond"),
    "far beyond": (packed(1, 255, 255, 255, 127, 9), "beyond"),
    "farther beyond": (packed(1, 255, 255, 255, 255, 255, 127, 9), "beyond"),
    "listed without a score": (packed(1, 1, 0), "without a score"),
    "dense, short": ("d:" + base64.b64encode(bytes(6)).decode(), "of 6 image tokens, not of 7"),
    "dense, long": ("d:" + base64.b64encode(bytes(8)).decode(), "of 8 image tokens, not of 7"),
    "no base64": ("d:?", "not base64"),
    "no base64 in a list": ("t:AA=A", "not base64"),
    "another prefix": ("x:AAAA", "not base64"),
    "half a float": ("AAAA", "2 bytes each"),
    "float16 of another size": (pack_exact(np.zeros(6)), "of 6 image tokens, not of 7"),
    "float16 that is no number": (pack_exact(np.array([0, 0, 0, np.nan, 0, 0, 0])), "negative or no number"),
    "float16 below zero": (pack_exact(np.array([0, 0, 0, -1, 0, 0, 0])), "negative or no number"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_refused(case):
    text, words = DAMAGED[case]
    with pytest.raises(ValueError, match=words) as raised:
        unpack_scores(text, 7)
    assert "\n" not in str(raised.value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=24), st.integers(1, 400), st.sampled_from(["t:", "d:", ""]))
def test_any_bytes_give_scores_or_one_sentence(raw, n, prefix):
    said = ""
    try:
        found = unpack_scores(prefix + base64.b64encode(raw).decode(), n)
    except ValueError as error:
        said = str(error)
    if said:
        assert 10 < len(said) < 200
        return
    assert found.shape == (n,)
    assert (np.isnan(found) | ((found >= 0) & (found <= 65504))).all()


@pytest.mark.parametrize("bad", [-1e-9, np.nan])
def test_a_score_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="negative or no number"):
        pack_scores(np.array([0.5, bad]))


@pytest.mark.parametrize("listed", [None, 40])
def test_rest_is_what_is_not_listed_and_mean_is_of_all(listed):
    image = np.stack([attention(576, seed, 3 + seed) for seed in range(8)]) * 0.7
    event = Scores.pack(1, 3, image, [(0.1, 0.7, 0.2, 0.0, 0.0)] * 8, listed=listed)
    np.testing.assert_allclose(unpack_scores(event.mean, 576), image.mean(axis=0), rtol=0.0295, atol=4.2e-7)
    found = np.stack([unpack_scores(text, 576) for text in event.image])
    if listed is None:
        assert event.rest is None
    else:
        np.testing.assert_allclose(np.where(np.isnan(found), image, 0).sum(axis=1), event.rest, rtol=1e-3)
        assert all(len(json.dumps(value)) <= 9 for value in event.rest)


@pytest.mark.parametrize(
    ("shape", "listed"),
    [
        ((576, 8, 67, 2), None),  # the bundled model
        ((576, 32, 64, 2), None),  # LLaVA-1.5-7B, a short answer
        ((576, 40, 256, 2), 134),
        ((2928, 40, 256, 1), 265),
        ((2928, 40, 256, 2), 92),  # LLaVA-1.6-13B
        ((2928, 40, 256, 8), codec.FEWEST),
        ((2928, 40, 1, 2), None),
        ((50, 40, 10_000, 2), None),  # lists would be larger
    ],
    ids=str,
)
def test_how_many_tokens_a_layer_lists(shape, listed):
    assert listed_tokens(*shape) == listed
    assert listed_tokens(*shape, budget=None) is None
    if listed is not None and listed > codec.FEWEST:
        assert scores_bytes(*shape, listed) <= codec.SCORES_BYTES < scores_bytes(*shape, listed + 2)


@pytest.mark.parametrize(("n", "listed"), [(2928, 92), (2928, 32), (576, None), (576, 134)])
def test_no_event_is_larger_than_predicted(n, listed):
    """The prediction is what the page refuses runs by, so it may not be too low; sharp and flat attention, 40 layers."""
    for sharp in (0.1, 2, 30):
        image = np.stack([attention(n, seed, sharp) for seed in range(40)])
        size = 0
        for t in (0, 255):
            event = Scores.pack(1, t, image, [(0.12345, 0.23456, 0.34567, 0.29631, 1e-05)] * 40, listed=listed if t else None)
            size += len(json.dumps(event.to_dict(), separators=(",", ":"))) + 1
        assert size <= scores_bytes(n, 40, 2, 1, listed)
        assert size >= 0.8 * scores_bytes(n, 40, 2, 1, listed) or sharp == 30


def test_the_public_names_are_there():
    assert {"Scores", "pack_scores", "unpack_scores", "listed_tokens", "scores_bytes", "SCORES_BYTES"} <= set(trace.__all__)
