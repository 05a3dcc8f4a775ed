import numpy as np
import pytest

from isrdpo_jax.evaluation.agreement import TIE, agreement, cohen_kappa, labels_of

VIDEOS = {f"q{i}": f"v{i // 2}" for i in range(100)}


def labels(values):
    return {f"q{i}": value for i, value in enumerate(values)}


def test_kappa_of_a_published_table():
    """The worked example that textbooks give: 20 and 15 agreements, 5 and 10 disagreements: kappa 0.4."""
    assert cohen_kappa(20, 5, 10, 15) == pytest.approx(0.4)


def test_kappa_takes_off_chance():
    assert cohen_kappa(25, 25, 25, 25) == pytest.approx(0)
    assert cohen_kappa(10, 0, 0, 10) == pytest.approx(1)
    assert cohen_kappa(0, 10, 10, 0) == pytest.approx(-1)
    assert np.isnan(cohen_kappa(10, 0, 0, 0)) and np.isnan(cohen_kappa(0, 0, 0, 0))


def test_two_judges_are_joined_by_id():
    theirs = {"q1": 0, "q2": 1, "q3": TIE, "only theirs": 0}
    ours = {"q3": TIE, "q2": 0, "q1": 0, "q4": 1}
    found = agreement(theirs, ours, VIDEOS, samples=50)
    assert (found.equal.value, found.equal.count) == (pytest.approx(2 / 3), 3)
    assert (found.decided.value, found.decided.count) == (0.5, 2)
    assert found.table == ((1, 0, 0), (1, 0, 0), (0, 0, 1))


def test_intervals_hold_the_value_and_shrink():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 100)
    said = np.where(rng.random(100) < 0.8, truth, 1 - truth)
    wide = agreement(labels(truth[:20].tolist()), labels(said[:20].tolist()), VIDEOS, samples=500).kappa
    narrow = agreement(labels(truth.tolist()), labels(said.tolist()), VIDEOS, samples=500).kappa
    assert narrow.low < narrow.value < narrow.high and narrow.high - narrow.low < wide.high - wide.low


def test_nothing_in_common_has_no_value():
    found = agreement({"a": 0}, {"b": 1}, {"b": "v"}, samples=50)
    assert (found.equal.value, found.kappa.value, found.decided.value) == (None, None, None)


def test_what_was_not_judged_has_no_label():
    rows = [
        {"id": "a", "verdict": 0, "reason": "ok"},
        {"id": "b", "verdict": 1, "reason": "ok"},
        {"id": "c", "verdict": None, "reason": "tie"},
        {"id": "d", "verdict": None, "reason": "identical"},
    ]
    assert labels_of(rows) == {"a": 0, "b": 1, "c": TIE}
