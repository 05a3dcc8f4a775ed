"""A folder of images as a video: one image is one frame, in the order of the numbers in their names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from isrdpo_jax.data.frames import DecodedVideo, frame_indices
from isrdpo_jax.data.images import is_image, read_image
from isrdpo_jax.errors import VideoError


def read_folder(path: Path, num_frames: int) -> DecodedVideo:
    """Reads the sampled frames of a folder; hidden files and files that are no images are not frames.

    Images are read by Pillow and shown as stored, like the published preprocessing of frame folders.

    Raises:
        VideoError: `empty`, `unreadable` or `corrupt`.
    """
    try:
        names = [entry.name for entry in path.iterdir() if _is_frame(entry)]
    except OSError as error:
        raise VideoError(str(path), "unreadable", f"the folder cannot be listed ({error.strerror})") from error
    if not names:
        raise VideoError(str(path), "empty", "the folder holds no image")
    names.sort(key=_natural)
    indices = frame_indices(len(names), num_frames)
    images = {index: _read_frame(path, names[index]) for index in sorted(set(indices))}
    sizes = {image.shape for image in images.values()}
    if len(sizes) > 1:
        raise VideoError(str(path), "corrupt", f"the images differ in size: {sorted(sizes)}")
    frames = np.stack([images[index] for index in indices])
    return DecodedVideo(frames, declared=len(names), total=len(names), decoded=len(images), indices=indices)


def _is_frame(entry: Path) -> bool:
    return is_image(entry) and not entry.name.startswith(".")


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key under which `f_9999` comes before `f_10000`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _read_frame(folder: Path, name: str) -> np.ndarray:
    try:
        return read_image(folder / name)
    except VideoError as error:
        raise VideoError(str(folder), error.reason, f"{name}: {error.detail}") from error
