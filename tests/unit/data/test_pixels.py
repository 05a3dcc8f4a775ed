"""The pixel pipeline against goldens that torch made (tests/parity/make_pixel_goldens.py)."""

from pathlib import Path

import numpy as np
import pytest

from isrdpo_jax.data.frames import frame_indices
from isrdpo_jax.data.pixels import MEAN, STD, preprocess

GOLDENS = Path(__file__).parents[2] / "goldens" / "pixels.npz"
CASES = sorted({key.split("/")[0] for key in np.load(GOLDENS)})


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_torch(case):
    with np.load(GOLDENS) as goldens:
        ours = preprocess(goldens[f"{case}/frames"], int(goldens[f"{case}/size"]))
        expected = goldens[f"{case}/pixels"]
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_frames_of_the_right_size_are_only_normalised():
    frames = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    expected = (frames.astype(np.float32) / np.float32(255) - MEAN) / STD
    np.testing.assert_array_equal(preprocess(frames, 16), expected)


@pytest.mark.parametrize(("width", "offset"), [(21, 0), (23, 2), (25, 2), (26, 3)])
def test_half_pixels_of_the_crop_go_to_the_even_offset(width, offset):
    frames = np.zeros((1, 20, width, 3), np.uint8)
    frames[:] = np.arange(width, dtype=np.uint8)[:, None]
    first = preprocess(frames, 20)[0, 0, 0] * STD + MEAN
    np.testing.assert_allclose(first * 255, offset, atol=1e-4)


def test_resizing_takes_neighbours_and_does_not_average():
    """Without antialiasing, a shrunken picture misses what lies between the sampled pixels."""
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, ::10] = 255  # sampled rows are 4, 5, 14, 15, ...
    pixels = preprocess(frames, 4) * STD + MEAN
    np.testing.assert_allclose(pixels, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (16, (0, 2, 4, 6, 8, 10, 12, 15)),
        (9, (0, 1, 2, 3, 4, 5, 6, 8)),
        (3, (0, 0, 0, 0, 1, 1, 1, 2)),
        (1, (0,) * 8),
        (300, (0, 42, 85, 128, 170, 213, 256, 299)),
    ],
)
def test_frame_rule(total, expected):
    assert frame_indices(total, 8) == expected


def test_no_frame_out_of_nothing():
    with pytest.raises(ValueError, match="8 frames out of 0"):
        frame_indices(0, 8)
