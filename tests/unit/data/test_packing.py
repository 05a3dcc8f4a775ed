"""Rows of several segments: what stands where, and who predicts what."""

from __future__ import annotations

import numpy as np
import pytest

from isrdpo_jax.data.packing import PADDING, PREFIX, PairTokens, Segment, bucket, pack_pairs, pack_segments
from isrdpo_jax.errors import DataError
from isrdpo_jax.ops import attention

P = 100  # positions of the prefix
PAIR = PairTokens(turn=(11, 12), chosen=(21, 22, 2), rejected=(31, 2))


def test_segment_ids_are_those_of_the_mask():
    assert (PREFIX, PADDING) == (attention.PREFIX, attention.PADDING)


def test_a_pair_is_one_row_whose_responses_both_begin_behind_the_turn():
    rows, mask = pack_pairs([PAIR], P, turn_length=3, response_length=4)
    np.testing.assert_array_equal(rows.tokens, [[11, 12, 0, 21, 22, 2, 0, 31, 2, 0, 0]])
    positions = np.where(rows.segments == PADDING, 0, rows.positions)
    np.testing.assert_array_equal(positions, [[100, 101, 0, 102, 103, 104, 0, 102, 103, 0, 0]])
    np.testing.assert_array_equal(rows.segments, [[0, 0, -1, 1, 1, 1, -1, 2, 2, -1, -1]])
    np.testing.assert_array_equal(mask, [[[True, True, True, False], [True, True, False, False]]])


def test_each_response_token_is_predicted_by_the_one_before_it():
    rows, mask = pack_pairs([PAIR], P, turn_length=3, response_length=4)
    predicted = [
        [(int(rows.tokens[0, source]), int(target)) for source, target in zip(s[m], t[m], strict=True)]
        for s, t, m in zip(rows.sources[0], rows.targets[0], mask[0], strict=True)
    ]
    assert predicted == [[(12, 21), (21, 22), (22, 2)], [(12, 31), (31, 2)]]


@pytest.mark.parametrize(("turn_length", "response_length"), [(1, 4), (9, 2)])
def test_a_pair_that_does_not_fit_is_refused(turn_length: int, response_length: int):
    with pytest.raises(DataError, match=f"pair 1 has 2 prompt and 3 .* room for {turn_length} and {response_length}"):
        pack_pairs([PairTokens((11,), (2,), (2,)), PAIR], P, turn_length, response_length)


def test_the_exact_size_fits():
    rows, _ = pack_pairs([PairTokens(PAIR.turn, PAIR.chosen, PAIR.chosen)], P, turn_length=2, response_length=3)
    assert (rows.segments != PADDING).all()


def test_a_segment_predicts_its_response_and_its_extra_labels():
    segment = Segment.of_response((11, 12, 13), (21, 2), weight=4.0, extra=[(1, 99, 0.5)])
    assert segment.tokens == (11, 12, 13, 21, 2)
    assert segment.predictions == ((1, 99, 0.5), (2, 21, 4.0), (3, 2, 4.0))


def test_segments_lie_side_by_side_and_each_begins_behind_the_prefix():
    one, two = Segment.of_response((11, 12), (21, 2)), Segment.of_response((13,), (31, 2), weight=2.0)
    rows, weights = pack_segments([[one, two], [two]], P, width=8, predictions=5)
    np.testing.assert_array_equal(rows.tokens, [[11, 12, 21, 2, 13, 31, 2, 0], [13, 31, 2, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(rows.positions[0, :7], [100, 101, 102, 103, 100, 101, 102])
    np.testing.assert_array_equal(rows.segments, [[1, 1, 1, 1, 2, 2, 2, -1], [1, 1, 1, -1, -1, -1, -1, -1]])
    np.testing.assert_array_equal(rows.sources, [[1, 2, 4, 5, 0], [0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(rows.targets, [[21, 2, 31, 2, 0], [31, 2, 0, 0, 0]])
    np.testing.assert_array_equal(weights, [[1, 1, 2, 2, 0], [2, 2, 0, 0, 0]])


@pytest.mark.parametrize(("width", "predictions"), [(3, 2), (4, 1)])
def test_segments_that_do_not_fit_are_refused(width: int, predictions: int):
    with pytest.raises(DataError, match="row 0 needs more than"):
        pack_segments([[Segment.of_response((11, 12), (21, 2))]], P, width, predictions)


def test_buckets_come_in_few_values():
    assert [bucket(size) for size in (0, 1, 32, 33, 64, 65)] == [32, 32, 32, 64, 64, 96]
    assert bucket(17, 16) == 32
