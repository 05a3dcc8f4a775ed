"""The frames of a run's videos, for its report."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from isrdpo_jax.config import load_config
from isrdpo_jax.data.loader import VideoSource, open_split
from isrdpo_jax.errors import IsrdpoError
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.weights.policy_folder import PolicyFolder


def frames_of(run: Path, video: str) -> np.ndarray | None:
    """uint8 [t, H, W, 3], or None where the prepared data is not on this machine."""
    source = _source(run)
    if source is None or video not in source.ids:
        return None
    return source[source.ids.index(video)].frames


@functools.cache
def _source(run: Path) -> VideoSource | None:
    layout = RunLayout(run)
    try:
        frames = PolicyFolder(run, layout.iteration(0).checkpoint).config.vision.num_frames
        return open_split(load_config(layout.config).config, "train", num_frames=frames, prepare=False)
    except IsrdpoError:  # a report of a run whose data lies elsewhere shows no frames
        return None
