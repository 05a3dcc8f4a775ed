"""A small video encoder, for the embedded world and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

# Fast and nearly without loss; other codecs use their defaults.
_OPTIONS = {"libx264": {"preset": "ultrafast", "crf": "4"}}


def write_video(path: str | Path, frames: np.ndarray, fps: int, codec: str = "libx264") -> None:
    """Encodes frames into a file; the suffix of `path` picks the container.

    Args:
        path: the file to write; an existing one is replaced.
        frames: uint8 [n, height, width, 3], RGB. Chroma is stored at half resolution where both sides are even.
        fps: frames per second.
        codec: name of an FFmpeg encoder.

    Raises:
        ValueError: the frames have the wrong dtype or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 [n, height, width, 3], not {frames.dtype} {list(frames.shape)}")
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=fps, options=_OPTIONS.get(codec, {})))
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.codec_context.thread_count = 1  # small pictures: starting threads costs more than they save
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
