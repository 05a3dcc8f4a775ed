import io

import numpy as np
from PIL import Image

from isrdpo_jax.report.strips import MAX_FRAMES, MAX_SIDE, make_strip


def decode(shown):
    return np.asarray(Image.open(io.BytesIO(shown.png)).convert("RGBA"))[..., :3]


def test_small_frames_are_kept_pixel_by_pixel():
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    shown = make_strip(frames)
    assert (shown.frames, shown.of, shown.pixelated) == (3, 3, True)
    pixels = decode(shown)
    gap = (pixels.shape[1] - 3 * 32) // 2
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(pixels[:, i * (32 + gap) : i * (32 + gap) + 32], frame)


def test_large_frames_are_made_smaller_and_sampled_from_first_to_last():
    frames = np.repeat(np.linspace(0, 255, 30).astype(np.uint8), 240 * 320 * 3).reshape(30, 240, 320, 3)
    shown = make_strip(frames)
    assert (shown.frames, shown.of, shown.height, shown.pixelated) == (MAX_FRAMES, 30, MAX_SIDE, False)
    pixels = decode(shown)
    assert pixels[50, 5].max() <= 4 and pixels[50, -5].min() >= 250


def test_no_frames_no_strip():
    assert make_strip(None) is None
    assert make_strip(np.zeros((0, 8, 8, 3), np.uint8)) is None
