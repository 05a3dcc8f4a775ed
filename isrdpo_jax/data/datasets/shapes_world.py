"""TFDS builder of the embedded world: scenes become .mp4 files, which are decoded like anybody's videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from isrdpo_jax.data.datasets.features import to_example, video_features
from isrdpo_jax.data.prompts import Prompts, load_prompts
from isrdpo_jax.data.records import Question, SftRow, Video
from isrdpo_jax.data.shapes_world import language
from isrdpo_jax.data.shapes_world.annotator import annotate
from isrdpo_jax.data.shapes_world.render import FPS, render
from isrdpo_jax.data.shapes_world.scene import Scene, Split, sample_scenes, scene_key
from isrdpo_jax.data.video import decode_video
from isrdpo_jax.data.video_writer import write_video


@dataclass(eq=False)
class ShapesWorldConfig(tfds.core.BuilderConfig):
    """One split of one world; its name is its identity, so that another number builds another folder."""

    split: Split = "train"
    videos: int = 0
    world_seed: int = 0
    num_frames: int = 8
    prompts_dir: str | None = None


def shapes_world_config(
    split: Split, videos: int, world_seed: int, num_frames: int, prompts_dir: str | None
) -> ShapesWorldConfig:
    """Names the split; rows for supervised training hold rendered prompts, so these belong to its identity."""
    name = f"{split}_w{world_seed}_n{videos}_t{num_frames}"
    if split == "sft":
        name += f"_p{load_prompts(prompts_dir).digest[:8]}"
    return ShapesWorldConfig(
        name=name,
        split=split,
        videos=videos,
        world_seed=world_seed,
        num_frames=num_frames,
        prompts_dir=prompts_dir,
    )


class ShapesWorld(tfds.core.GeneratorBasedBuilder):
    """Videos of two moving shapes, with one question per object and exact truth."""

    VERSION = tfds.core.Version("1.2.0")  # 1.2.0: descriptions state sizes in sentences of their own
    pkg_dir_path = Path(__file__).parent  # spares TFDS the search for metadata
    url_infos = None  # nothing is downloaded, so there are no checksums to search for

    builder_config: ShapesWorldConfig

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Two shapes move across a background; questions, descriptions and exact truth.",
            features=video_features(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {self.builder_config.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        folder = Path(self._data_dir_root) / self.name / "videos" / config.name
        folder.mkdir(parents=True, exist_ok=True)
        prompts = load_prompts(config.prompts_dir)
        for i, scene in enumerate(sample_scenes(config.split, config.videos, config.world_seed)):
            video_id = f"{config.split}-{i:05d}-{scene_key(scene)}"
            path = folder / f"{video_id}.mp4"
            write_video(path, render(scene), FPS)
            frames = decode_video(path, config.num_frames).frames
            yield video_id, to_example(_video(video_id, scene, frames, prompts, config))


def _video(video_id: str, scene: Scene, frames: Any, prompts: Prompts, config: ShapesWorldConfig) -> Video:
    truth = scene.truth
    questions = tuple(
        Question(
            id=f"{video_id}-{thing.colour}",
            text=language.question(thing.colour),
            answer=str(language.Statement(colour=thing.colour, shape=thing.shape, direction=thing.direction)),
        )
        for thing in scene.objects
    )
    rows: tuple[SftRow, ...] = ()
    if config.split == "sft":
        rows = annotate(truth, prompts, (config.world_seed, int(scene_key(scene), 16), scene.noise_seed))
    return Video(id=video_id, frames=frames, questions=questions, truth=truth, sft_rows=rows)
