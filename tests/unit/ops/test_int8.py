"""Keys and values rounded to 8 bits."""

from __future__ import annotations

import numpy as np
import pytest

from isrdpo_jax.ops.int8 import from_int8, to_int8, unscaled

SIZE = 8  # of a head


@pytest.mark.parametrize("axis", [-2, -1])
def test_rounding_to_int8_moves_nothing_by_more_than_half_a_step(axis: int):
    x = np.random.default_rng(0).standard_normal((2, 3, SIZE, 11)).astype(np.float32)
    x[0, 1, :, 4] = 0.0  # a position whose keys vanish has no step
    x[1, 2, :, 5] *= 1e4  # and a large one does not coarsen the others
    x = x if axis == -2 else x.swapaxes(-1, -2)  # [..., p, c], as values are
    rounded = to_int8(x, axis)
    assert rounded.values.dtype == np.int8 and rounded.scale.shape == (2, 3, 1, 11)
    moved = np.abs(np.asarray(from_int8(rounded, axis, np.dtype(np.float32))) - x)
    steps = np.abs(x).max(axis, keepdims=True) / 127
    assert (moved <= 0.501 * steps).all()
    assert moved.max() > 0
    assert from_int8(x, axis, np.dtype(np.float32)) is x


def test_what_is_left_unscaled_is_exact_in_bfloat16():
    x = np.random.default_rng(1).standard_normal((3, SIZE, 11)).astype(np.float32)
    rounded = to_int8(x, -2)
    values, scale = unscaled(rounded, np.dtype("bfloat16"))
    assert np.array_equal(values.astype(np.float32), rounded.values) and scale is rounded.scale
    kept, none = unscaled(x, np.dtype(np.float32))
    assert kept is x and none is None
