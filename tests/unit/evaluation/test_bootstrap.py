import json
import math

import numpy as np
import pytest

from isrdpo_jax.evaluation.bootstrap import NOTHING, Estimate, crossed_interval, mean_interval, paired_difference


def test_value_is_the_ratio_of_sums_not_the_mean_of_ratios():
    # 1 of 1 and 0 of 9: the mean of shares would be 0.5.
    estimate = mean_interval(np.array([1, 0]), np.array([1, 9]), ["a", "b"], samples=200, seed=0)
    assert estimate.value == pytest.approx(0.1)
    assert estimate.count == 10


def test_interval_by_hand_for_two_videos():
    # Two videos with means 0 and 1: draws give 0 (1/4), 0.5 (1/2), 1 (1/4), so the 2.5 and 97.5 % points are 0 and 1.
    estimate = mean_interval(np.array([0.0, 1.0]), np.ones(2), ["a", "b"], samples=1000, seed=1)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_videos_are_drawn_whole():
    # Answers within a video agree, so 400 answers about 4 videos carry the spread of 4 observations, not of 400.
    sums = np.repeat([0.0, 0.0, 1.0, 1.0], 100)
    clustered = mean_interval(sums, np.ones(400), np.repeat(np.arange(4), 100).tolist(), samples=1000, seed=0)
    alone = mean_interval(sums, np.ones(400), list(range(400)), samples=1000, seed=0)
    assert clustered.high - clustered.low > 0.7
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.15)


def test_equal_input_gives_an_equal_interval_in_any_row_order():
    rng = np.random.default_rng(3)
    sums, groups = rng.integers(0, 2, 60).astype(float), [f"v{i // 3}" for i in range(60)]
    order = rng.permutation(60)
    first = mean_interval(sums, np.ones(60), groups, samples=300, seed=7)
    assert first == mean_interval(sums[order], np.ones(60), [groups[i] for i in order], samples=300, seed=7)
    assert first != mean_interval(sums, np.ones(60), groups, samples=300, seed=8)


def test_the_interval_does_not_depend_on_how_ids_hash():
    sums, ones = np.random.default_rng(0).random(40), np.ones(40)
    by_number = mean_interval(sums, ones, list(range(40)), samples=100, seed=0)
    assert mean_interval(sums, ones, [f"v{i:02d}" for i in range(40)], samples=100, seed=0) == by_number


def test_nothing_counted_is_none_and_never_nan():
    empty = mean_interval(np.array([]), np.array([]), [], samples=100, seed=0)
    no_denominator = mean_interval(np.zeros(3), np.zeros(3), list("abc"), samples=100, seed=0)
    assert empty == no_denominator == NOTHING == Estimate(None, 0, None, None)
    assert json.dumps(empty.to_json(), allow_nan=False) == '{"value": null, "count": 0, "low": null, "high": null}'


def test_one_video_has_a_value_but_no_interval():
    estimate = mean_interval(np.array([1.0, 0.0, 0.0]), np.array([1, 1, 0]), ["a", "a", "b"], samples=100, seed=0)
    assert (estimate.value, estimate.count, estimate.low, estimate.high) == (0.5, 2, None, None)


def test_interval_stays_finite_when_a_draw_may_lack_a_denominator():
    # A video whose pairs have an empty rejected side: numerator without denominator.
    estimate = mean_interval(np.array([3.0, 4.0]), np.array([0.0, 2.0]), ["a", "b"], samples=500, seed=0)
    assert estimate.value == 3.5
    json.dumps(estimate.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("sums", "counts", "groups"),
    [([1.0], [1.0, 1.0], ["a", "b"]), ([math.nan], [1.0], ["a"]), ([1.0], [-1.0], ["a"]), ([1.0], [math.inf], ["a"])],
)
def test_senseless_input_is_refused(sums, counts, groups):
    with pytest.raises(ValueError):
        mean_interval(np.array(sums), np.array(counts), groups, samples=10, seed=0)


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered, trials, groups = 0, 300, np.repeat(np.arange(80), 3).tolist()
    for trial in range(trials):
        skill = rng.beta(2, 3, size=80)  # mean 0.4; videos differ, answers to one video are alike
        right = rng.random(240) < np.repeat(skill, 3)
        estimate = mean_interval(right, np.ones(240), groups, samples=300, seed=trial)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.91 <= covered / trials <= 0.98


def test_paired_difference_by_hand():
    # Before: 1 of 4; after: 3 of 4, on the same two videos; video c exists before only and is left out.
    before, after = np.array([1, 0, 0, 0, 1]), np.array([1, 1, 1, 0, 0])
    there, still_there = np.ones(5), np.array([1, 1, 1, 1, 0])
    difference = paired_difference(after, still_there, before, there, list("aabbc"), samples=400, seed=0)
    assert difference.value == pytest.approx(0.5)
    assert difference.count == 2
    assert difference.low == pytest.approx(0.5) and difference.high == pytest.approx(0.5)  # both videos gained one half


def test_pairing_removes_what_makes_a_video_hard():
    rng = np.random.default_rng(5)
    hardness, groups = rng.normal(0, 5, 100), list(range(100))
    first, second = hardness + 1 + rng.normal(0, 0.1, 100), hardness + rng.normal(0, 0.1, 100)
    ones = np.ones(100)
    paired = paired_difference(first, ones, second, ones, groups, samples=400, seed=0)
    single = mean_interval(first, ones, groups, samples=400, seed=0)
    assert 0.9 < paired.low < 1 < paired.high < 1.1
    assert single.high - single.low > 10 * (paired.high - paired.low)


def test_paired_difference_without_a_common_video_is_nothing():
    nothing = paired_difference(
        np.ones(2), np.array([1, 0]), np.ones(2), np.array([0, 1]), ["a", "b"], samples=10, seed=0
    )
    assert nothing == NOTHING


def test_runs_that_agree_leave_the_spread_of_the_videos():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2, 200).astype(float)
    crossed = crossed_interval(np.stack([one] * 3), np.ones((3, 200)), samples=4000, seed=0)
    alone = mean_interval(one, np.ones(200), list(range(200)), samples=4000, seed=0)
    assert (crossed.value, crossed.count) == (pytest.approx(alone.value), 600)
    assert (crossed.low, crossed.high) == pytest.approx((alone.low, alone.high), abs=0.01)


def test_runs_that_differ_widen_the_interval():
    """Of two runs with means 0 and 1 on every video, a draw takes twice the first in a quarter of the cases."""
    crossed = crossed_interval(np.array([[0.0] * 50, [1.0] * 50]), np.ones((2, 50)), samples=1000, seed=0)
    assert (crossed.value, crossed.low, crossed.high) == (0.5, 0.0, 1.0)


def test_a_crossed_value_is_a_ratio_of_sums():
    crossed = crossed_interval(np.array([[1.0, 0.0]]), np.array([[1.0, 9.0]]), samples=200, seed=0)
    assert (crossed.value, crossed.count) == (pytest.approx(0.1), 10)


def test_a_crossed_difference_takes_the_same_runs_and_videos_on_both_sides():
    rng = np.random.default_rng(0)
    sums, counts = rng.random((3, 40)), np.ones((3, 40))
    better = crossed_interval(sums + 0.25, counts, samples=500, seed=0, other=(sums, counts))
    assert (better.value, better.low, better.high) == pytest.approx((0.25, 0.25, 0.25))
    other = crossed_interval(sums, counts, samples=500, seed=0, other=(sums[:, ::-1], counts))
    assert other.value == pytest.approx(0) and other.low < -0.05 and other.high > 0.05


def test_crossed_tables_of_other_shapes_are_refused_and_nothing_counted_is_none():
    with pytest.raises(ValueError, match="shapes"):
        crossed_interval(np.zeros((2, 3)), np.ones((3, 2)), samples=10, seed=0)
    assert crossed_interval(np.zeros((2, 3)), np.zeros((2, 3)), samples=10, seed=0) == NOTHING
    assert crossed_interval(np.ones((2, 1)), np.ones((2, 1)), samples=10, seed=0) == Estimate(1.0, 2, None, None)
