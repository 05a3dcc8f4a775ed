"""Opens a prepared split: videos by index, in the order of their ids, read from ArrayRecord.

Nothing relies on the order on disk: TFDS shuffles by a hash of the keys. Records are joined by id.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import absl.logging
import tensorflow_datasets as tfds

from isrdpo_jax.data.datasets.features import from_example
from isrdpo_jax.data.datasets.shapes_world import ShapesWorld, shapes_world_config
from isrdpo_jax.data.datasets.video_qa import VideoQa, video_qa_config
from isrdpo_jax.data.records import Question, SftRow, Video
from isrdpo_jax.data.skips import read_skips
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config, DataConfig

__all__ = ["Question", "SftRow", "Split", "Video", "VideoSource", "open_split"]

Split = Literal["train", "eval", "sft"]

_INDEX = "index.json"


class VideoSource:
    """Random access to the videos of a prepared split, in the order of their ids.

    Attributes:
        ids: the videos' ids, sorted.
        folder: the prepared folder.
        digest: SHA-256 of the stored records.
        skips: how many rows and videos were left out when the split was prepared, by reason.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.folder = Path(builder.data_dir)
        self._records = builder.as_data_source(split)
        stored, self.digest = _index(self.folder, self._records)
        self._order = sorted(range(len(stored)), key=stored.__getitem__)
        self.ids = [stored[i] for i in self._order]
        left_out = read_skips(self.folder)
        self.skips: dict[str, int] = left_out.counts if left_out else {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Video:
        video = from_example(self._records[self._order[i]])
        if video.id != self.ids[i]:
            raise DataError(f"{self.folder}: record {self.ids[i]} is not where {_INDEX} has it; delete {_INDEX}.")
        return video

    def __iter__(self) -> Iterator[Video]:
        return (self[i] for i in range(len(self)))


def open_split(config: Config, split: Split, *, num_frames: int, prepare: bool = True) -> VideoSource:
    """Opens a split, and builds it first when it is missing.

    Args:
        config: its sections `data` and `prompts` say what the split holds.
        split: which one.
        num_frames: frames per video (t), sampled when the split is built.
        prepare: build the split when it is missing.

    Raises:
        DataError: the split has no videos by configuration, or is missing and `prepare` is off, or has more bad rows
            or videos than the configuration allows; then nothing is left of a build.
    """
    builder = _builder(config, split, num_frames)
    folder = Path(builder.data_dir)
    if not folder.is_dir():
        if not prepare:
            raise DataError(f"{folder}: the {split} split is not prepared; run `isrdpo data build CONFIG`.")
        _prepare(builder)
    left_out = read_skips(folder)
    if left_out:
        left_out.check(config.data)  # it may have been prepared under a more lenient configuration
    return VideoSource(builder, split)


def _builder(config: Config, split: Split, num_frames: int) -> tfds.core.DatasetBuilder:
    data = config.data
    with _quiet():
        if data.dataset == "video_qa":
            video_qa = video_qa_config(split, _jsonl(data, split), num_frames, data)
            return VideoQa(data_dir=data.dir, config=video_qa, file_format="array_record")
        videos = {"train": data.train_videos, "eval": data.eval_videos, "sft": data.sft_videos}[split]
        if videos == 0:
            raise DataError(f"data.{split}_videos is 0: the {split} split has no videos.")
        shapes_world = shapes_world_config(split, videos, data.world_seed, num_frames, config.prompts.dir)
        return ShapesWorld(data_dir=data.dir, config=shapes_world, file_format="array_record")


def _jsonl(data: DataConfig, split: Split) -> Path:
    """The file with a split's questions."""
    if split == "sft":
        raise DataError("data.dataset: video_qa has no labelled rows; supervised training needs shapes_world.")
    field, path = ("path", data.path) if split == "train" else ("eval_path", data.eval_path)
    if path is None:
        raise DataError(f"data.{field}: not given; video_qa needs the JSONL with the questions of the {split} split.")
    return Path(path)


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Builds into a temporary folder that TFDS renames when all is written."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with _quiet(), tempfile.TemporaryDirectory() as unused:
        offline = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_dir=unused, download_config=offline)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what TFDS has to say about configurations and downloads; errors and progress bars stay."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _index(folder: Path, records: Sequence[Mapping[str, Any]]) -> tuple[list[str], str]:
    """The ids in stored order, and the SHA-256 over the record files; found once and kept beside them."""
    kept = folder / _INDEX
    if not kept.exists():
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*.array_record*")):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        index = {"ids": [record["id"].decode() for record in records], "sha256": digest.hexdigest()}
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps(index), encoding="utf-8")
        partial.replace(kept)
    index = json.loads(kept.read_text(encoding="utf-8"))
    return index["ids"], index["sha256"]
