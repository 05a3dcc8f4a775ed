import base64
import io

import numpy as np
from PIL import Image

from isrdpo_jax.report.examples import MAX_FRAMES, MAX_SIDE, strip, word_differences


def decode(shown):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.source.partition(",")[2]))).convert("RGBA"))[..., :3]


def test_small_frames_are_kept_pixel_by_pixel():
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    shown = strip(frames)
    assert (shown.frames, shown.of, shown.pixelated) == (3, 3, True)
    pixels = decode(shown)
    gap = (pixels.shape[1] - 3 * 32) // 2
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(pixels[:, i * (32 + gap) : i * (32 + gap) + 32], frame)


def test_large_frames_are_made_smaller_and_sampled_from_first_to_last():
    frames = np.repeat(np.linspace(0, 255, 30).astype(np.uint8), 240 * 320 * 3).reshape(30, 240, 320, 3)
    shown = strip(frames)
    assert (shown.frames, shown.of, shown.height, shown.pixelated) == (MAX_FRAMES, 30, MAX_SIDE, False)
    pixels = decode(shown)
    assert pixels[50, 5].max() <= 4 and pixels[50, -5].min() >= 250


def test_no_frames_no_strip():
    assert strip(None) is None
    assert strip(np.zeros((0, 8, 8, 3), np.uint8)) is None


def test_word_differences_rebuild_both_texts():
    old, new = "A red circle moves left slowly .", "A red square moves left . It stops ."
    differences = word_differences(old, new)
    assert differences == (
        ("same", "A red"),
        ("removed", "circle"),
        ("added", "square"),
        ("same", "moves left"),
        ("removed", "slowly"),
        ("same", "."),
        ("added", "It stops ."),
    )
    assert " ".join(words for kind, words in differences if kind != "added") == old
    assert " ".join(words for kind, words in differences if kind != "removed") == new


def test_word_differences_of_equal_and_empty_texts():
    assert word_differences("a b", "a b") == (("same", "a b"),)
    assert word_differences("a", "") == (("removed", "a"),)
