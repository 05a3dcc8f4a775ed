"""What decoding a video yields, and the rule that says which frames are looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DecodedVideo:
    """The frames of one video that the model sees.

    Attributes:
        frames: uint8 [t, height, width, 3], RGB, upright (rotation metadata applied).
        declared: frames that the container (or the folder) says it holds; None where it does not say.
        total: frames of the video that `indices` count.
        decoded: frames that were decoded to get these; less than `total` where a long file was sampled by seeking.
        indices: the frames' numbers in presentation order, [t]; a short video repeats some.
    """

    frames: np.ndarray
    declared: int | None
    total: int
    decoded: int
    indices: tuple[int, ...]


def frame_indices(total: int, num_frames: int) -> tuple[int, ...]:
    """Spreads `num_frames` over a video: floor(linspace(0, total - 1, num_frames)), first and last frame included.

    The rule of Video-LLaVA's frame-folder backend; a video with fewer frames repeats some of them.

    Raises:
        ValueError: the video or the request has no frame.
    """
    if total < 1 or num_frames < 1:
        raise ValueError(f"cannot take {num_frames} frames out of {total}")
    return tuple(int(index) for index in np.linspace(0, total - 1, num_frames))
