"""Opens a prepared split: videos by index, in the order of their ids, read from ArrayRecord.

Nothing relies on the order on disk: TFDS shuffles by a hash of the keys. Records are joined by id.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import absl.logging
import tensorflow_datasets as tfds

from isrdpo_jax.data.datasets.asked_videos import asked_videos_config
from isrdpo_jax.data.datasets.features import from_example
from isrdpo_jax.data.datasets.llava_hound import LlavaHound, heldout_rows, training_rows
from isrdpo_jax.data.datasets.shapes_world import ShapesWorld, shapes_world_config
from isrdpo_jax.data.datasets.video_qa import VideoQa
from isrdpo_jax.data.question_rows import QuestionRows, read_rows
from isrdpo_jax.data.records import Question, SftRow, Video
from isrdpo_jax.data.skips import read_skips
from isrdpo_jax.errors import DataError
from isrdpo_jax.schema import Config

__all__ = [
    "Question",
    "SftRow",
    "Split",
    "Video",
    "VideoSource",
    "configured_splits",
    "open_split",
    "prepared_folder",
    "split_rows",
]

Split = Literal["train", "eval", "sft"]

_INDEX = "index.json"


class VideoSource:
    """Random access to the videos of a prepared split, in the order of their ids.

    Attributes:
        ids: the videos' ids, sorted.
        folder: the prepared folder.
        digest: SHA-256 of the stored records.
        most_questions: of any of the videos.
        skips: how many rows and videos were left out when the split was prepared, by reason.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self.folder = Path(builder.data_dir)
        self._records = builder.as_data_source(split)
        index = _index(self.folder, self._records)
        stored, self.digest, self.most_questions = index["ids"], index["sha256"], index["most_questions"]
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
        with _alone(folder):
            builder = _builder(config, split, num_frames)  # it may have been built meanwhile
            if not folder.is_dir():
                _prepare(builder)
    left_out = read_skips(folder)
    if left_out:
        left_out.check(config.data)  # it may have been prepared under a more lenient configuration
    return VideoSource(builder, split)


def prepared_folder(config: Config, split: Split, *, num_frames: int) -> Path | None:
    """The folder of a prepared split; None where it is to be built yet."""
    folder = Path(_builder(config, split, num_frames).data_dir)
    return folder if folder.is_dir() else None


def configured_splits(config: Config) -> list[Split]:
    """The splits that a config names: those of a run, or for supervised training (`model`) those of it."""
    data = config.data
    wanted = {"train": config.model is None, "eval": data.heldout, "sft": False}
    if data.dataset == "shapes_world":
        wanted["sft"] = data.sft_videos > 0
    return [split for split in get_args(Split) if wanted[split]]


def split_rows(config: Config, split: Split) -> QuestionRows | None:
    """The rows that a split is prepared from; none for the embedded world, which has no files.

    Raises:
        DataError: the config does not name them, or they cannot be read.
    """
    data = config.data
    if data.dataset == "shapes_world":
        return None
    if split == "sft":
        raise DataError(f"data.dataset: {data.dataset} has no labelled rows; supervised training needs shapes_world.")
    if data.path is None and (split == "train" or data.dataset == "llava_hound"):
        raise DataError(f"data.path: not given; {data.dataset} needs {_NEEDED[data.dataset]}.")
    if data.dataset == "llava_hound":
        root = Path(str(data.path))
        if split == "eval" and not data.test_sets:
            raise DataError("data.test_sets: not given; name the test sets of LLaVA-Hound to evaluate on.")
        return training_rows(root) if split == "train" else heldout_rows(root, data.test_sets)
    if split == "eval" and data.eval_path is None:
        raise DataError("data.eval_path: not given; video_qa needs the file with the questions of the eval split.")
    return read_rows(Path(str(data.path if split == "train" else data.eval_path)))


_NEEDED = {
    "video_qa": "the file with the questions of the train split",
    "llava_hound": "the folder with video_data and video_instruction",
}


def _builder(config: Config, split: Split, num_frames: int) -> tfds.core.DatasetBuilder:
    data = config.data
    with _quiet():
        rows = split_rows(config, split)
        if rows is not None:
            builder = LlavaHound if data.dataset == "llava_hound" else VideoQa
            asked = asked_videos_config(split, rows, num_frames, data)
            return builder(data_dir=data.dir, config=asked, file_format="array_record")
        videos = {"train": data.train_videos, "eval": data.eval_videos, "sft": data.sft_videos}[split]
        if videos == 0:
            raise DataError(f"data.{split}_videos is 0: the {split} split has no videos.")
        shapes_world = shapes_world_config(split, videos, data.world_seed, num_frames, config.prompts.dir)
        return ShapesWorld(data_dir=data.dir, config=shapes_world, file_format="array_record")


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Builds into a temporary folder that TFDS renames when all is written."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with _quiet(), tempfile.TemporaryDirectory() as unused:
        offline = tfds.download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_dir=unused, download_config=offline)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process prepares a split, and those that want it meanwhile wait; the kernel frees a dead one's lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


def _index(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ids in stored order, the SHA-256 over the record files, and the most questions of a video; found once and
    kept beside the records."""
    kept = folder / _INDEX
    index = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if "most_questions" not in index:
        digest = hashlib.sha256()
        for path in sorted(folder.glob("*.array_record*")):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        ids, questions = [], [0]
        for record in records:
            ids.append(record["id"].decode())
            questions.append(len(json.loads(record["questions"])))
        index = {"ids": ids, "sha256": digest.hexdigest(), "most_questions": max(questions)}
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps(index), encoding="utf-8")
        partial.replace(kept)
    return index
