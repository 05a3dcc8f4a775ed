"""Video-LLaVA: frozen towers and a projector in front of a LLaMA decoder.

`declare` gives the module's static definition; parameters are a plain nested dict
`{"video_tower": …, "projector": …, "llama": …}`, so that training the decoder alone is training one entry. A model
that sees images has `image_tower` beside them; both towers share the projector.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from isrdpo_jax.models.llama import Llama
from isrdpo_jax.models.projector import Projector
from isrdpo_jax.models.vision import VisionTower
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.sharding import constrain

Params = dict[str, Any]


class VideoLlava(nnx.Module):
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(config.compute_dtype)
        how: Any = {"unroll": config.unroll_layers, "remat": config.remat}
        self.video_tower = VisionTower(config.vision, **how, rngs=rngs)
        self.image_tower = None if config.image is None else VisionTower(config.image, **how, rngs=rngs)
        self.projector = Projector(config.vision.hidden_size, config.llama.hidden_size, rngs=rngs)
        self.llama = Llama(config.llama, lora=config.lora, attention=config.attention, **how, rngs=rngs)

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [b, t, S, S, 3] -> pre-projector features [b, n, d_vision]."""
        return self.video_tower(pixels.astype(self.dtype))

    def encode_images(self, pixels: jax.Array) -> jax.Array:
        """Normalised pixels [b, S, S, 3] -> pre-projector features [b, n, d_vision].

        Raises:
            ValueError: when the model has no image tower.
        """
        if self.image_tower is None:
            raise ValueError("this model has no image tower")
        return self.image_tower(pixels[:, None].astype(self.dtype))

    def embed_prefix(self, ids: jax.Array, features: jax.Array) -> jax.Array:
        """Embeddings of the prefix: text tokens int[s] before the video or image, then the projected features.

        Args:
            features: [b, n, d_vision].

        Returns:
            [b, s + n, d].
        """
        visual = self.projector(features.astype(self.dtype))
        text = jnp.broadcast_to(self.llama.embed(ids, self.dtype), (visual.shape[0], *ids.shape, visual.shape[-1]))
        return jnp.concatenate([text, visual], axis=1)


@functools.cache
def declare(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The static definition of the model and its abstract parameters (with their logical axes); allocates nothing."""
    model = nnx.eval_shape(lambda: VideoLlava(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)


def build(config: ModelConfig, params: Params) -> VideoLlava:
    """The module with these parameters in place; for use inside a jitted function.

    The parameters' gradients lie where the parameters lie.
    """
    params = jax.tree.map(lambda x, axes: constrain(x, axes, x), params, logical_axes(config))
    return nnx.merge(declare(config)[0], params)


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters; a pure function, to be jitted with `out_shardings`."""
    return nnx.to_pure_dict(nnx.state(VideoLlava(config, rngs=nnx.Rngs(key)), nnx.Param))


def abstract_params(config: ModelConfig) -> Params:
    """`jax.ShapeDtypeStruct` for every parameter."""
    return nnx.to_pure_dict(declare(config)[1])


def logical_axes(config: ModelConfig) -> Params:
    """The logical axes of every parameter, as tuples of names; stacked layers begin with `layers`."""
    flat = {}
    for path, variable in nnx.to_flat_state(declare(config)[1]):
        axes = variable.get_metadata()["axes"]
        flat[path] = (("layers",) if "layers" in path else ()) + tuple(axes)
    return nnx.traversals.unflatten_mapping(flat)
