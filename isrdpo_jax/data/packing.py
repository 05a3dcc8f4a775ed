"""Rows of several segments behind one prefix, as numpy arrays of fixed shapes.

The prefix (s text tokens and the visual tokens) is the same length p in every row; what is packed here lies behind it.
A *prediction* is a triple: the position whose hidden state predicts, the token predicted, its weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isrdpo_jax.errors import DataError

PREFIX, PADDING = 0, -1  # segment ids, as in ops.attention


class PackedArrays(NamedTuple):
    """tokens, positions, segments: int32[b, n]; sources (indices into tokens), targets: int32[b, …]."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    sources: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Segment:
    """Tokens behind the prefix, and what is predicted inside them: (index into tokens, target, weight)."""

    tokens: tuple[int, ...]
    predictions: tuple[tuple[int, int, float], ...]

    @staticmethod
    def of_response(
        turn: Sequence[int], response: Sequence[int], weight: float = 1.0, extra: Iterable[tuple[int, int, float]] = ()
    ) -> Segment:
        """A user turn and its response (EOS included); the loss is on the response, and on `extra` predictions."""
        first = len(turn) - 1
        shifted = ((first + j, token, weight) for j, token in enumerate(response))
        return Segment((*turn, *response), (*extra, *shifted))


def bucket(size: int, multiple: int = 32) -> int:
    """The next multiple: widths come in few values, so that programs are traced few times."""
    return max(multiple, -(-size // multiple) * multiple)


def pack_segments(
    rows: Sequence[Sequence[Segment]], prefix_length: int, width: int, predictions: int
) -> tuple[PackedArrays, np.ndarray]:
    """Packs segments side by side; each begins at the position behind the prefix.

    Args:
        rows: the segments of each row. width: positions behind the prefix. predictions: predictions per row, padded.

    Returns:
        The arrays, and float32[b, predictions] weights (0 for padding).

    Raises:
        DataError: a row does not fit.
    """
    b = len(rows)
    tokens, positions = np.zeros((b, width), np.int32), np.zeros((b, width), np.int32)
    segments = np.full((b, width), PADDING, np.int32)
    sources, targets = np.zeros((b, predictions), np.int32), np.zeros((b, predictions), np.int32)
    weights = np.zeros((b, predictions), np.float32)
    for i, row in enumerate(rows):
        at = filled = 0
        for number, segment in enumerate(row, start=1):
            size, count = len(segment.tokens), len(segment.predictions)
            if at + size > width or filled + count > predictions:
                raise DataError(
                    f"row {i} needs more than {width} positions or {predictions} predictions; widen the bucket."
                )
            tokens[i, at : at + size] = segment.tokens
            positions[i, at : at + size] = prefix_length + np.arange(size)
            segments[i, at : at + size] = number
            for j, (index, target, weight) in enumerate(segment.predictions, start=filled):
                sources[i, j], targets[i, j], weights[i, j] = at + index, target, weight
            at, filled = at + size, filled + count
    return PackedArrays(tokens, positions, segments, sources, targets), weights


@dataclass(frozen=True)
class PairTokens:
    """A pair's user turn, and its two responses (EOS included)."""

    turn: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def pack_pairs(
    pairs: Sequence[PairTokens], prefix_length: int, turn_length: int, response_length: int
) -> tuple[PackedArrays, np.ndarray]:
    """One row per pair: `turn | chosen | rejected`; the turn belongs to the prefix, both responses begin behind it.

    The three have the same columns in every row, each padded at its end: `turn_length` and twice `response_length`.

    Returns:
        The arrays with targets int32[b, 2, response_length], and bool[b, 2, response_length], true on response tokens.

    Raises:
        DataError: a pair does not fit.
    """
    b, width = len(pairs), turn_length + 2 * response_length
    tokens, positions = np.zeros((b, width), np.int32), np.zeros((b, width), np.int32)
    segments = np.full((b, width), PADDING, np.int32)
    sources, targets = np.zeros((2, b, 2, response_length), np.int32)
    mask = np.zeros((b, 2, response_length), bool)
    for i, pair in enumerate(pairs):
        turn, longest = len(pair.turn), max(len(pair.chosen), len(pair.rejected))
        if turn > turn_length or longest > response_length:
            raise DataError(
                f"pair {i} has {turn} prompt and {longest} response tokens, and there is room for {turn_length} and "
                f"{response_length}; widen the bucket."
            )
        tokens[i, :turn], positions[i, :turn] = pair.turn, prefix_length + np.arange(turn)
        segments[i, :turn] = PREFIX
        for side, response in enumerate((pair.chosen, pair.rejected)):
            at, size = turn_length + side * response_length, len(response)
            tokens[i, at : at + size] = response
            positions[i, at : at + size] = prefix_length + turn + np.arange(size)
            segments[i, at : at + size] = side + 1
            # The first token is predicted by the turn's last position, the others by the token before them.
            sources[i, side, 0] = turn - 1
            sources[i, side, 1:size] = at + np.arange(size - 1)
            targets[i, side, :size], mask[i, side, :size] = response, True
    return PackedArrays(tokens, positions, segments, sources, targets), mask
