"""A model ready to be asked or trained, and the features of videos that it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import Mesh

from isrdpo_jax.data.pixels import preprocess
from isrdpo_jax.data.prompts import Prompts
from isrdpo_jax.data.tokens import Tokenizer, load_tokenizer
from isrdpo_jax.errors import DataError
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.runs.manifest import VerifyMode
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.stages.shares import put_batch
from isrdpo_jax.weights.policy_folder import PolicyFolder, find_policy, load_params


@dataclass(frozen=True)
class Policy:
    """A model ready to be asked: parameters on a mesh, its tokenizer, the prompts. `digest` identifies the weights."""

    config: ModelConfig
    params: Params = field(repr=False)
    tokenizer: Tokenizer
    prompts: Prompts
    mesh: Mesh
    digest: str

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode_prefix(self.prompts))

    @property
    def prefix_length(self) -> int:
        """Positions before the user turn about a video: s text tokens and the visual tokens."""
        return self.prefix_length_of(image=False)

    def prefix_length_of(self, *, image: bool) -> int:
        """The same about a video, or about an image where the model has a tower for them."""
        vision = self.config.image if image else self.config.vision
        assert vision is not None
        return len(self.prefix_ids) + vision.tokens_per_video

    def check_fits(self, prefix_length: int, tokens: int, what: str) -> None:
        """Raises:
        DataError: when `tokens` behind a prefix of a video or an image exceed the context window.
        """
        limit = self.config.llama.max_positions - prefix_length
        if tokens > limit:
            raise DataError(f"{what}: {tokens} tokens, and the context window leaves {limit} behind the visual tokens.")


def encode_frames(policy: Policy, frames: Sequence[np.ndarray]) -> jax.Array:
    """uint8 frames [t, H, W, 3] of each video of this process -> features [b, n, d_vision] of the batch."""
    size = policy.config.vision.image_size
    pixels = np.stack([preprocess(one, size) for one in frames])
    return encode(policy.params, put_batch(policy.mesh, pixels), config=policy.config)


def open_policy(name: str | PolicyFolder, mesh: Mesh, prompts: Prompts, *, verify: VerifyMode = "always") -> Policy:
    """The policy that a user names (see `weights.policy_folder`), on the mesh."""
    folder = find_policy(name) if isinstance(name, str) else name
    params, digest = load_params(folder, mesh, verify=verify)
    model = folder.config.on(mesh.devices.flat[0].platform)
    return Policy(model, params, load_tokenizer(folder.tokenizer_folder), prompts, mesh, digest)
