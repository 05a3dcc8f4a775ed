"""From an image file to what the image tower sees, as the published checkpoints were trained.

The image is padded to a square (`image_aspect_ratio: pad` in the published configs), scaled to [0, 1], resized and
normalised; a square needs no crop. Resizing is bicubic with antialiasing, torchvision's default for tensors since
version 0.17. Which version, and so which default, the checkpoints were trained with is not published.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from isrdpo_jax.data.pixels import MEAN, STD
from isrdpo_jax.errors import VideoError, VideoReason

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})
PADDING = (MEAN * 255).astype(np.uint8)  # (122, 116, 104): the mean colour, rounded down


def is_image(path: Path) -> bool:
    """Whether a path is named like an image and is no folder (whose images would be frames)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def read_image(path: Path) -> np.ndarray:
    """Reads an image with Pillow, as stored: orientation tags are not applied, like in the published preprocessing.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        VideoError: `missing`, `unreadable` or `corrupt`.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise VideoError(str(path), "missing", "no such file") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise VideoError(str(path), "corrupt", f"not a readable image ({error})") from error
    except OSError as error:  # Pillow raises a bare OSError for a truncated image; the system's carry a number
        reason: VideoReason = "corrupt" if error.errno is None else "unreadable"
        raise VideoError(str(path), reason, f"the image cannot be read ({error})") from error


def preprocess_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """Turns an image into the tower's input.

    Agrees with `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` on float64 to about 1e-6. The cubic
    overshoots at edges; like torchvision's resize of float tensors, nothing is clipped.

    Args:
        image: uint8 [height, width, 3], RGB.
        image_size: side of the square that the tower sees, pixels (s).

    Returns:
        float32 [s, s, 3].
    """
    channels = np.moveaxis(_padded_to_square(image), -1, 0)
    resized = np.stack([_resize(channel.astype(np.float32) / 255, image_size) for channel in channels], axis=-1)
    return (resized - MEAN) / STD


def _padded_to_square(image: np.ndarray) -> np.ndarray:
    """The image in the middle of a square of its longer side; an odd pixel of padding goes below or to the right."""
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, 3), PADDING)
    square[top : top + height, left : left + width] = image
    return square


def _resize(channel: np.ndarray, side: int) -> np.ndarray:
    """One channel, float32, to side x side; Pillow widens the cubic (a = -0.5) by the scale, which is antialiasing."""
    return np.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC))
