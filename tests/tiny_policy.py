"""A policy with random weights that reads and says the words of the packaged tokenizer, and videos of noise for it."""

from __future__ import annotations

import jax
import numpy as np
from tiny import TINY, random_params

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.records import Question, Video
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.models.video_llava import abstract_params, logical_axes
from isrdpo_jax.schema import MeshConfig, ModelConfig
from isrdpo_jax.sharding import make_mesh, parameter_shardings
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.weights.policy_folder import packaged_tokenizer


def tiny_policy(sizes: MeshConfig = MeshConfig(), devices: int = 1, seed: int = 0) -> Policy:  # noqa: B008
    tokenizer = load_tokenizer(packaged_tokenizer("shapes"))
    config = with_words(TINY)
    mesh = make_mesh(sizes, jax.devices()[:devices])
    shardings = parameter_shardings(mesh, logical_axes(config), abstract_params(config))
    params = jax.device_put(random_params(config, seed), shardings)
    return Policy(config, params, tokenizer, load_prompts(), mesh, digest=f"random {seed}")


def with_words(config: ModelConfig) -> ModelConfig:
    """The model with an embedding for every word of the packaged tokenizer."""
    vocab_size = load_tokenizer(packaged_tokenizer("shapes")).vocab_size
    words = config.llama.model_copy(update={"vocab_size": vocab_size, "max_positions": 512})
    return config.model_copy(update={"llama": words})


def noise_video(name: str, questions: int = 2, seed: int = 0) -> Video:
    """Frames are a function of name and seed."""
    rng = np.random.default_rng([seed, *name.encode()])
    frames = rng.integers(0, 256, (TINY.vision.num_frames, 10, 12, 3), np.uint8)
    asked = tuple(Question(f"{name}/{i}", f"What is in part {i}?") for i in range(questions))
    return Video(name, frames, asked, truth=None, sft_rows=())
