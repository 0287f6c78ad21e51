"""Bounds of the share kept: a setting that keeps enough is hardly ever dropped, however often one looks; one that does not soon is."""

from __future__ import annotations

import numpy as np
import pytest

from avl.evaluation.kept import evidence, kept_interval, upper_bound

LOOKS = range(50, 1001, 50)


def drawn(rng: np.random.Generator, kept: float) -> tuple[np.ndarray, np.ndarray]:
    """Return 1000 samples' scores, right or wrong, of a setting that keeps ``kept`` of full attention's 90 % in the mean, and full's."""
    full = rng.random(1000) < 0.9
    ours = np.where(full, rng.random(1000) < kept - 0.05, rng.random(1000) < 0.45)  # it is right now and then where full is not
    return ours.astype(float), full.astype(float)


def dropped_at(points: np.ndarray, full: np.ndarray, keep: float) -> int | None:
    return next((n for n in LOOKS if evidence(points[:n], full[:n], keep) >= 20), None)


def test_a_setting_that_just_keeps_enough_is_dropped_in_less_than_one_of_twenty_searches_of_twenty_looks():
    rng = np.random.default_rng(7)
    runs = [dropped_at(*drawn(rng, 0.9), 0.9) for _ in range(400)]
    assert sum(at is not None for at in runs) <= 0.05 * len(runs)


def test_a_test_at_every_look_as_if_it_were_the_only_one_would_drop_it_too_often():
    """What the repeated looks cost: the case that the bound is there for."""
    rng = np.random.default_rng(7)

    def naive(points: np.ndarray, full: np.ndarray) -> bool:
        short = points - 0.9 * full
        return any(short[:n].mean() + 1.645 * short[:n].std() / n**0.5 < 0 for n in LOOKS)

    assert sum(naive(*drawn(rng, 0.9)) for _ in range(400)) > 0.1 * 400


@pytest.mark.parametrize(("kept", "soon"), [(0.6, 50), (0.75, 150), (0.82, 400)])
def test_a_setting_that_keeps_too_little_is_dropped(kept: float, soon: int):
    rng = np.random.default_rng(3)
    runs = [dropped_at(*drawn(rng, kept), 0.95) for _ in range(60)]
    assert all(at is not None for at in runs)
    assert np.median(runs) <= soon  # type: ignore[arg-type]


def test_the_upper_bound_is_where_the_evidence_reaches_twenty():
    points, full = drawn(np.random.default_rng(1), 0.8)
    bound = upper_bound(points[:200], full[:200])
    assert 0.8 < bound < 0.95
    assert evidence(points[:200], full[:200], bound + 1e-3) >= 20 > evidence(points[:200], full[:200], bound - 1e-3)
    assert upper_bound(points[:20], full[:20]) > bound  # fewer samples say less


def test_scores_above_one_are_scaled_by_the_largest():
    points, full = drawn(np.random.default_rng(1), 0.8)
    assert upper_bound(4 * points, 4 * full) == pytest.approx(upper_bound(points, full), abs=0.2)
    assert np.isfinite(evidence(4 * points, 4 * full, 0.9))


def test_the_interval_is_paired():
    """Both halves share their luck: what is kept is known far better than either score."""
    rng = np.random.default_rng(5)
    full = rng.random(200)
    low, high = kept_interval(0.9 * full, full)
    assert low == pytest.approx(0.9)
    assert high == pytest.approx(0.9)
    low, high = kept_interval(0.9 * full[rng.permutation(200)], full)
    assert high - low > 0.1
    assert kept_interval([1, 0], [0, 0]) == (0, 0)
