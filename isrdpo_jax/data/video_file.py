"""Decodes the sampled frames of one video file with PyAV.

A frame is named by its number in presentation order. Short files are decoded from start to end; long ones by seeking,
so that the cost depends on the distance between keyframes and not on the length. Both give the same frames: wherever
the numbers do not add up while seeking, the file is decoded in full.

FFmpeg reports neither a file that ends early nor every damaged frame as an error; both are looked for here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from isrdpo_jax.data.frames import DecodedVideo, frame_indices
from isrdpo_jax.data.packets import PacketTable, is_mp4, packet_table
from isrdpo_jax.data.seeking import LostCountError, Seeker
from isrdpo_jax.errors import VideoError

# Seeking starts to save work where a file holds this many times more frames than are wanted.
SEEK_ABOVE = 8

# Without these, FFmpeg also "plays" text files, single images, and playlists that open other files.
_OPEN_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,obu,h264,hevc,m4v,yuv4mpegpipe",
    "protocol_whitelist": "file",
}


def read_file(path: Path, num_frames: int) -> DecodedVideo:
    """Reads the sampled frames of a video file.

    Raises:
        VideoError: with any reason but `missing`, `empty` and `timeout`.
    """
    try:
        with _open(path) as container:
            stream = _video_stream(path, container)
            table = packet_table(container, stream, os.path.getsize(path))
            declared = _declared(container, stream, table)
            if table is not None:
                _refuse_torn(path, stream, table)
                if table.total > SEEK_ABOVE * num_frames:
                    with suppress(LostCountError):
                        seeker = Seeker(container, stream, table)
                        return _read_by_seeking(path, seeker, table.total, num_frames, declared)
        return _read_in_full(path, num_frames, table.total if table is not None else declared or 0, declared)
    except OSError as error:
        raise VideoError(str(path), "unreadable", f"reading fails ({error.strerror})") from error
    except av.FFmpegError as error:
        raise VideoError(str(path), "corrupt", f"the decoder fails ({error.strerror})") from error


def _open(path: Path) -> InputContainer:
    try:  # "file:" keeps FFmpeg from reading a name as a URL
        return av.open(f"file:{path}", options=_OPEN_OPTIONS, metadata_errors="replace")
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise VideoError(str(path), "not_a_video", "no video container, or one without its head or index") from error


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first stream that moves (cover art is none)."""
    if not len(container.streams):
        raise VideoError(str(path), "zero_frames", "the container holds no stream")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        raise VideoError(str(path), "no_video_stream", f"streams of the file: {kinds}")
    if streams[0].codec_context is None:
        raise VideoError(str(path), "not_a_video", "its codec is unknown to this build of FFmpeg")
    streams[0].codec_context.thread_count = 1  # files are decoded in parallel, not frames
    return streams[0]


def _declared(container: InputContainer, stream: VideoStream, table: PacketTable | None) -> int | None:
    """Frames that the container says it shows."""
    if not stream.frames:
        return None
    if is_mp4(container) and table is not None:
        return table.total  # all samples but those that an edit list hides
    return stream.frames


def _refuse_torn(path: Path, stream: VideoStream, table: PacketTable) -> None:
    """Finds a file that ends before its index or its stated duration does."""
    if table.missing:
        present = table.total - table.missing
        detail = f"declares {table.total} frames and holds {present}: the file is cut off"
        raise VideoError(str(path), "short_decode" if present else "zero_frames", detail)
    stated = _stated_duration(stream)
    if stated is not None and table.end is not None and stream.average_rate:
        tolerance = 0.1 + 2 / float(stream.average_rate)  # the tag is rounded, and a last frame may lack its duration
        if table.end < stated - tolerance:
            detail = f"declares {stated:.2f} s and ends after {table.end:.2f} s: the file is cut off"
            raise VideoError(str(path), "short_decode", detail)


def _stated_duration(stream: VideoStream) -> float | None:
    """Seconds that Matroska and WebM, which count no frames, may state for a stream: the tag `HH:MM:SS.fraction`."""
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (KeyError, ValueError):
        return None


def _read_by_seeking(path: Path, seeker: Seeker, total: int, num_frames: int, declared: int | None) -> DecodedVideo:
    indices = frame_indices(total, num_frames)
    to_rgb = VideoReformatter()
    pictures = {}
    for number, frame in seeker.frames(sorted(set(indices))):
        _refuse_damaged(path, number, frame)
        pictures[number] = _upright(frame, to_rgb)
    return _collect(path, pictures, indices, declared, total, seeker.decoded)


def _read_in_full(path: Path, num_frames: int, guess: int, declared: int | None) -> DecodedVideo:
    """Decodes every frame and keeps those wanted of a file with `guess` frames; a wrong guess costs a second pass."""
    indices = frame_indices(guess, num_frames) if guess else ()
    wanted = set(indices)
    to_rgb = VideoReformatter()
    pictures = {}
    total = 0
    with _open(path) as container:
        # AVI counts chunks; one of them, the placeholder behind a packed B-frame, may hold no frame.
        spare = int(container.format.name == "avi")
        for frame in _all_frames(container, _video_stream(path, container), declared):
            _refuse_damaged(path, total, frame)
            if total in wanted:
                pictures[total] = _upright(frame, to_rgb)
            total += 1
    if total == 0:
        raise VideoError(str(path), "zero_frames", "no frame decodes")
    if declared is not None and total < declared - spare:
        raise VideoError(str(path), "short_decode", f"declares {declared} frames and {total} decode")
    if total != guess:
        return _read_in_full(path, num_frames, total, declared)
    return _collect(path, pictures, indices, declared, total, total)


def _all_frames(container: InputContainer, stream: VideoStream, declared: int | None) -> Iterator[VideoFrame]:
    """Every frame in presentation order, up to a packet that the end of the file cuts."""
    for packet in container.demux(stream):
        if packet.is_corrupt and declared is not None:
            yield from stream.decode(None)
            return
        yield from packet.decode()


def _refuse_damaged(path: Path, number: int, frame: VideoFrame) -> None:
    if frame.is_corrupt:
        raise VideoError(str(path), "corrupt", f"frame {number} is damaged")


def _upright(frame: VideoFrame, to_rgb: VideoReformatter) -> np.ndarray:
    """uint8 [height, width, 3], RGB, turned and mirrored as the display matrix asks."""
    picture = to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    # Row-major 3x3 fixed point; (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(cast(bytes, matrix), np.int32)[:5]
    if abs(a) < abs(b):
        picture = picture.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _collect(
    path: Path,
    pictures: dict[int, np.ndarray],
    indices: tuple[int, ...],
    declared: int | None,
    total: int,
    decoded: int,
) -> DecodedVideo:
    sizes = {picture.shape[:2] for picture in pictures.values()}
    if len(sizes) > 1:
        raise VideoError(str(path), "corrupt", f"the frame size changes: {sorted(sizes)}")
    return DecodedVideo(np.stack([pictures[index] for index in indices]), declared, total, decoded, indices)
