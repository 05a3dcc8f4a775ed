"""What the prepared data knows of a run's videos: frames to show, and the truth where the data set has one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isrdpo_jax.config import load_config
from isrdpo_jax.data.loader import VideoSource, open_split
from isrdpo_jax.errors import IsrdpoError
from isrdpo_jax.report.load import Truths
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.weights.policy_folder import PolicyFolder


@dataclass(frozen=True)
class Videos:
    """The videos of one run.

    Attributes:
        frames: gives a video's frames, uint8 [t, H, W, 3], or None where they are not at hand.
        truths: empty where the data set knows no truth, or is not at hand.
    """

    frames: Callable[[str], np.ndarray | None] = lambda video: None
    truths: Truths = field(default_factory=dict)


def videos_of(run: Path) -> Videos:
    """The training videos of a run; nothing where the prepared data is not on this machine."""
    layout = RunLayout(run)
    try:
        config = load_config(layout.config).config
        num_frames = PolicyFolder(run, layout.iteration(0).checkpoint).config.vision.num_frames
        source = open_split(config, "train", num_frames=num_frames, prepare=False)
    except IsrdpoError:  # a report of a run whose data lies elsewhere shows no frames
        return Videos()
    places = {video: i for i, video in enumerate(source.ids)}

    def frames(video: str) -> np.ndarray | None:
        return source[places[video]].frames if video in places else None

    return Videos(frames, _truths(source) if config.data.dataset == "shapes_world" else {})


def _truths(source: VideoSource) -> Truths:
    return {video.id: video.truth for video in source if video.truth is not None}
