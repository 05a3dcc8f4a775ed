"""TFDS builder of LLaVA-Hound's data, in the folders that its set-up scripts make; nothing is downloaded.

```
ROOT/video_instruction/train/dpo/sft_dpo_17k.jsonl      prompts; their answers are not used
ROOT/video_instruction/test/<set>.qa[.official].jsonl   held-out questions
ROOT/video_data/train/<video>/                          a training row's video: a folder of frames
ROOT/video_data/<video>/                                a test row's video, which begins with test/<set>/
```
A video that is no folder of frames may be a file of the same name with a suffix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from isrdpo_jax.data.datasets.asked_videos import AskedVideosConfig, examples
from isrdpo_jax.data.datasets.features import video_features
from isrdpo_jax.data.question_rows import QuestionRows, join_rows, read_rows
from isrdpo_jax.schema import HoundTestSet

_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif")


class LlavaHound(tfds.core.GeneratorBasedBuilder):
    """LLaVA-Hound's videos, each with all its questions."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent  # spares TFDS the search for metadata
    url_infos = None  # nothing is downloaded, so there are no checksums to search for

    builder_config: AskedVideosConfig

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="LLaVA-Hound's instructions for videos, or its test questions.",
            features=video_features(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return examples(self.builder_config, Path(self.data_dir))


def training_rows(root: Path) -> QuestionRows:
    """The 17k prompts.

    Raises:
        DataError: they are not where LLaVA-Hound keeps them.
    """
    file = root / "video_instruction" / "train" / "dpo" / "sft_dpo_17k.jsonl"
    return read_rows(file, lambda video: _locate(root / "video_data" / "train" / video))


def heldout_rows(root: Path, sets: Sequence[HoundTestSet]) -> QuestionRows:
    """The questions of test sets; a question's id begins with its set's name (`set_of`).

    Raises:
        DataError: a set is not where LLaVA-Hound keeps it.
    """
    folder = root / "video_instruction" / "test"
    return join_rows(
        [
            read_rows(folder / _file_name(name), lambda video: _locate(root / "video_data" / video), f"{name}/")
            for name in sets
        ]
    )


def set_of(question_id: str) -> str:
    """The test set that a question belongs to."""
    return question_id.partition("/")[0]


def _file_name(name: HoundTestSet) -> str:
    plain = name.removesuffix("_official")
    return f"{plain}.qa.jsonl" if plain == name else f"{plain}.qa.official.jsonl"


def _locate(path: Path) -> Path:
    """The path, or a file of the same name with a video's suffix where there is nothing at the path itself."""
    if os.path.exists(path):  # unlike Path.exists, it takes any name
        return path
    return next((Path(file) for suffix in _SUFFIXES if os.path.isfile(file := f"{path}{suffix}")), path)
