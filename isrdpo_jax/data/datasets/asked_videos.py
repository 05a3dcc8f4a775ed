"""From rows with questions to prepared videos: what the builders of other people's data sets share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from isrdpo_jax.data.datasets.features import to_example
from isrdpo_jax.data.decode_pool import decode_many
from isrdpo_jax.data.question_rows import QuestionRows, Row
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.skips import Skip, Skips
from isrdpo_jax.errors import VideoError
from isrdpo_jax.schema import DataConfig


@dataclass(eq=False, kw_only=True)
class AskedVideosConfig(tfds.core.BuilderConfig):
    """The questions as they are now; the name holds a digest, so that a changed file or video is prepared anew."""

    split: str
    num_frames: int
    rows: QuestionRows
    data: DataConfig


def asked_videos_config(split: str, rows: QuestionRows, num_frames: int, data: DataConfig) -> AskedVideosConfig:
    """Looks the videos up (size and time of change), and names the result."""
    digest = hashlib.sha256(rows.sha256.encode())
    for video, path in sorted({(row.video, row.path) for row in rows.good}):
        digest.update(repr((video, _stamps(path))).encode())
    name = f"{split}_t{num_frames}_{digest.hexdigest()[:16]}"
    return AskedVideosConfig(name=name, split=split, num_frames=num_frames, rows=rows, data=data)


def examples(config: AskedVideosConfig, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what decodes, and records the rest in the folder being written, which an exception leaves unborn.

    Raises:
        DataError: more cannot be used than the configuration allows.
    """
    rows, data = config.rows, config.data
    row_skips(rows).check(data)  # before anything is decoded
    lost: list[Skip] = []
    for video, skip in decoded(rows, config.num_frames, data.decode_timeout_s):
        if video is not None:
            yield video.id, to_example(video)
        if skip is not None:
            lost.append(skip)
            if data.on_bad_record == "fail":
                break
    left_out = row_skips(rows, *lost)
    left_out.check(data)
    left_out.write(folder)


def row_skips(rows: QuestionRows, *lost: Skip) -> Skips:
    """The rows that cannot be used, and those lost with their video, in order."""
    bad = [Skip(row.line, str(row.file), row.reason, row.detail, str(row.file)) for row in rows.bad]
    order = {str(file): i for i, file in enumerate(rows.files)}
    skips = sorted([*bad, *lost], key=lambda skip: (order[skip.file], skip.line))
    return Skips(rows.source, len(rows), tuple(skips))


def decoded(rows: QuestionRows, num_frames: int, timeout_s: float) -> Iterator[tuple[Video | None, Skip | None]]:
    """Every video with its questions, or why it is lost with them."""
    videos = rows.videos
    results = decode_many([asked[0].path for asked in videos.values()], num_frames, timeout_s)
    for (video_id, asked), result in zip(videos.items(), results, strict=True):
        if isinstance(result, VideoError):
            file, line = str(asked[0].file), asked[0].line
            yield None, Skip(line, result.path, result.reason, result.detail, file, rows=len(asked))
        else:
            yield Video(video_id, result.frames, questions_of(asked), truth=None, sft_rows=()), None


def questions_of(rows: list[Row]) -> tuple[Question, ...]:
    return tuple(Question(row.id, row.question, row.answer, row.caption) for row in rows)


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of every file in a folder; nothing where there is none."""
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                return sorted(_stamp(entry.name, entry.stat()) for entry in entries)
        return [_stamp("", path.stat())]
    except (OSError, ValueError):  # the decoder will say what is wrong with it
        return []


def _stamp(name: str, status: os.stat_result) -> tuple[str, int, int]:
    return name, status.st_size, status.st_mtime_ns
