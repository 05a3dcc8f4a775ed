"""From uint8 frames to what the video tower sees, as the published checkpoints were trained.

The order of operations is LanguageBind's: scale to [0, 1], normalise, resize the short side (bilinear, without
antialiasing), crop the centre. Only the pixels that survive the crop are computed.
"""

from __future__ import annotations

import math

import numpy as np

from isrdpo_jax.schema import PIXEL_MEAN, PIXEL_STD

MEAN, STD = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)


def preprocess(frames: np.ndarray, image_size: int) -> np.ndarray:
    """Turns frames into the tower's input.

    Agrees with `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` on normalised float32 to about
    1e-6, because sampling positions are rounded to float32 as there.

    Args:
        frames: uint8 [t, height, width, 3], RGB.
        image_size: side of the square that the tower sees, pixels (s).

    Returns:
        float32 [t, s, s, 3].
    """
    height, width = frames.shape[1:3]
    new_height, new_width = _resized(height, width, image_size)
    rows = _centre(new_height, image_size)
    columns = _centre(new_width, image_size)
    if (new_height, new_width) == (height, width):
        return _normalise(frames[:, rows][:, :, columns])

    top, bottom, down = _neighbours(height, new_height, rows)
    left, right, across = _neighbours(width, new_width, columns)
    down, across = down[:, None, None], across[:, None]

    def blend_across(y: np.ndarray) -> np.ndarray:
        lines = frames[:, y]
        return _normalise(lines[:, :, left]) * (1 - across) + _normalise(lines[:, :, right]) * across

    return blend_across(top) * (1 - down) + blend_across(bottom) * down


def _normalise(pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] to float32 [..., 3], the channels standardised."""
    values = pixels.astype(np.float32)
    values /= 255
    values -= MEAN
    values /= STD
    return values


def _resized(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size whose short side is `short_side`; the long side is floored, as pytorchvideo does."""
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


def _centre(length: int, crop: int) -> slice:
    """The middle `crop` of `length` pixels; half pixels go to the even offset, as in torchvision's video crop."""
    offset = round((length - crop) / 2)
    return slice(offset, offset + crop)


def _neighbours(source: int, target: int, kept: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the kept output pixels: the two input pixels around each, and the second one's weight (float32)."""
    scale = np.float64(np.float32(source) / np.float32(target))
    centres = np.arange(kept.start, kept.stop) + 0.5
    positions = np.maximum(centres * scale - 0.5, 0).astype(np.float32)  # one rounding: torch's is a fused multiply-add
    first = positions.astype(np.int64)
    second = np.minimum(first + 1, source - 1)
    return first, second, positions - first.astype(np.float32)
