"""A video as a strip: some of its frames side by side in one small picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_FRAMES = 8
MAX_SIDE = 112  # pixels of a frame inside a strip
PIXELATED_BELOW = 64  # a smaller frame is enlarged with crisp pixels


@dataclass(frozen=True)
class Strip:
    """A PNG of `frames` of the video's `of` frames; sizes in pixels of the picture."""

    png: bytes
    frames: int
    of: int
    width: int
    height: int
    pixelated: bool


def make_strip(frames: np.ndarray | None) -> Strip | None:
    """At most `MAX_FRAMES` frames side by side; large ones are made smaller, small ones stay as they are.

    Args:
        frames: uint8 [t, H, W, 3], or None.

    Returns:
        The strip, or None without frames.
    """
    if frames is None or not len(frames):
        return None
    t = len(frames)
    chosen = frames[np.linspace(0, t - 1, min(t, MAX_FRAMES)).round().astype(int)]
    height, width = chosen.shape[1:3]
    scale = min(1.0, MAX_SIDE / height)
    small = [Image.fromarray(frame) for frame in chosen]
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = [image.resize(size, Image.Resampling.LANCZOS) for image in small]
    wide, high = small[0].size
    gap = max(1, high // 32)
    sheet = Image.new("RGBA", (len(small) * (wide + gap) - gap, high))
    for i, image in enumerate(small):
        sheet.paste(image, (i * (wide + gap), 0))
    if scale < 1:
        sheet = sheet.quantize(128, Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return Strip(buffer.getvalue(), len(small), t, *sheet.size, pixelated=high < PIXELATED_BELOW)
