"""TFDS builder of a user's own videos and questions: a JSONL that names video files or frame folders beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from isrdpo_jax.data.datasets.features import to_example, video_features
from isrdpo_jax.data.decode_pool import decode_many
from isrdpo_jax.data.jsonl_rows import JsonlRows, Row, read_rows
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.skips import Skip, Skips
from isrdpo_jax.errors import VideoError
from isrdpo_jax.schema import DataConfig


@dataclass(eq=False, kw_only=True)
class VideoQaConfig(tfds.core.BuilderConfig):
    """One JSONL as it is now; the name holds a digest, so that a changed file or video is prepared anew."""

    split: str
    num_frames: int
    rows: JsonlRows
    data: DataConfig


def video_qa_config(split: str, path: Path, num_frames: int, data: DataConfig) -> VideoQaConfig:
    """Reads the JSONL, looks its videos up (size and time of change), and names the result.

    Raises:
        DataError: the JSONL cannot be read.
    """
    rows = read_rows(path)
    digest = hashlib.sha256(rows.sha256.encode())
    for video in sorted({row.video for row in rows.good}):
        digest.update(repr((video, _stamps(path.parent / video))).encode())
    name = f"{split}_t{num_frames}_{digest.hexdigest()[:16]}"
    return VideoQaConfig(name=name, split=split, num_frames=num_frames, rows=rows, data=data)


class VideoQa(tfds.core.GeneratorBasedBuilder):
    """A user's videos, each with all its questions."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent  # spares TFDS the search for metadata
    url_infos = None  # nothing is downloaded, so there are no checksums to search for

    builder_config: VideoQaConfig

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="A user's videos with questions about them.",
            features=video_features(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields what decodes. Records the rest in the folder being written, which an exception leaves unborn."""
        config = self.builder_config
        source, of = str(config.rows.path), len(config.rows)
        skips = [Skip(row.line, source, row.reason, row.detail) for row in config.rows.bad]
        Skips(source, of, tuple(skips)).check(config.data)  # before anything is decoded
        videos = _by_video(config.rows)
        paths = [config.rows.path.parent / rows[0].video for rows in videos.values()]
        decoded = decode_many(paths, config.num_frames, config.data.decode_timeout_s)
        for (video_id, rows), result in zip(videos.items(), decoded, strict=True):
            if isinstance(result, VideoError):
                skips.append(Skip(rows[0].line, result.path, result.reason, result.detail, rows=len(rows)))
                if config.data.on_bad_record == "fail":
                    break
                continue
            questions = tuple(Question(row.id, row.question, row.answer) for row in rows)
            yield video_id, to_example(Video(video_id, result.frames, questions, truth=None, sft_rows=()))
        left_out = Skips(source, of, tuple(sorted(skips, key=lambda skip: skip.line)))
        left_out.check(config.data)
        left_out.write(Path(self.data_dir))


def _by_video(rows: JsonlRows) -> dict[str, list[Row]]:
    """The usable rows of each video, both in the order of the file."""
    videos: dict[str, list[Row]] = {}
    for row in rows.good:
        videos.setdefault(row.video_id, []).append(row)
    return videos


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
