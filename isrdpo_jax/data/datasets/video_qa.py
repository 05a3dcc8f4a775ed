"""TFDS builder of a user's own videos and questions: a table that names video files or frame folders beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from isrdpo_jax.data.datasets.asked_videos import AskedVideosConfig, examples
from isrdpo_jax.data.datasets.features import video_features


class VideoQa(tfds.core.GeneratorBasedBuilder):
    """A user's videos, each with all its questions."""

    VERSION = tfds.core.Version("1.1.0")  # 1.1.0: captions; skips name their file
    pkg_dir_path = Path(__file__).parent  # spares TFDS the search for metadata
    url_infos = None  # nothing is downloaded, so there are no checksums to search for

    builder_config: AskedVideosConfig

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="A user's videos with questions about them.",
            features=video_features(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return examples(self.builder_config, Path(self.data_dir))
