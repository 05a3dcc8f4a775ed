"""The LanguageBind towers: CLIP's ViT; the video tower has a temporal attention in front of every spatial block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from isrdpo_jax.models.layers import LayerNorm, Linear, activation, normal, scan_layers
from isrdpo_jax.ops.attention import attend
from isrdpo_jax.schema import Remat, VisionConfig


class Attention(nnx.Module):
    """Full self-attention with biases on q, k, v and out: x [b, n, d] -> [b, n, d]."""

    def __init__(self, d: int, heads: int, *, rngs: nnx.Rngs, out_scale: float = 1.0):
        self.heads = heads
        self.q, self.k, self.v = (Linear(d, d, ("embed", "heads"), rngs=rngs) for _ in range(3))
        self.out = Linear(d, d, ("heads", "embed"), rngs=rngs, scale=out_scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        split = (*x.shape[:2], self.heads, -1)
        out = attend(self.q(x).reshape(split), self.k(x).reshape(split), self.v(x).reshape(split), None)
        return self.out(out.reshape(x.shape))


class TemporalAttention(nnx.Module):
    """Attention over the t frames at each spatial position, class token included; no MLP of its own."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        d = config.hidden_size
        self.embedding = normal(rngs, (config.num_frames, d), d**-0.5, (None, "embed"))
        self.norm = LayerNorm(d, config.layer_norm_eps)
        # Zero at first: training from nothing begins with the per-frame tower, which learns to see sooner.
        self.attention = Attention(d, config.num_heads, rngs=rngs, out_scale=0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, t, n, d] -> the same; the temporal embedding stays in the residual stream."""
        b, t, n, d = x.shape
        x = x.swapaxes(1, 2).reshape(b * n, t, d) + self.embedding[...].astype(x.dtype)
        x = x + self.attention(self.norm(x))
        return x.reshape(b, n, t, d).swapaxes(1, 2)


class VisionLayer(nnx.Module):
    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        d, eps = config.hidden_size, config.layer_norm_eps
        self.act = config.hidden_act
        self.temporal = TemporalAttention(config, rngs=rngs) if config.temporal_attention else None
        self.norm1, self.attention = LayerNorm(d, eps), Attention(d, config.num_heads, rngs=rngs)
        self.norm2 = LayerNorm(d, eps)
        self.fc1 = Linear(d, config.intermediate_size, ("embed", "mlp"), rngs=rngs)
        self.fc2 = Linear(config.intermediate_size, d, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, t, n, d] -> the same."""
        b, t, n, d = x.shape
        if self.temporal is not None:
            x = self.temporal(x)
        x = x.reshape(b * t, n, d)
        x = x + self.attention(self.norm1(x))
        x = x + self.fc2(activation(self.act)(self.fc1(self.norm2(x))))
        return x.reshape(b, t, n, d)


class VisionTower(nnx.Module):
    """Frames to features; an image is a video of one frame.

    Layers and norm behind the tapped layer do not exist here: they never matter.
    """

    def __init__(self, config: VisionConfig, *, unroll: bool = False, remat: Remat = "none", rngs: nnx.Rngs):
        d, patch = config.hidden_size, config.patch_size
        self.config, self.unroll, self.remat = config, unroll, remat
        self.patch_embedding = Linear(patch * patch * 3, d, (None, "embed"), rngs=rngs, bias=False)
        self.class_embedding = normal(rngs, (d,), d**-0.5, ("embed",))
        self.position_embedding = normal(rngs, (config.patches_per_frame + 1, d), d**-0.5, (None, "embed"))
        self.pre_norm = LayerNorm(d, config.layer_norm_eps)
        self.layers = nnx.vmap(lambda r: VisionLayer(config, rngs=r))(rngs.split(config.layers_built))

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Pre-projector features of each video.

        Args:
            pixels: [b, t, S, S, 3], normalised.

        Returns:
            [b, n, d], n = tokens_per_video, time-major: frame 0's patches row by row, then frame 1's.

        Raises:
            ValueError: when t is not the number of frames that the temporal embedding was made for.
        """
        c = self.config
        b, t, side = pixels.shape[:3]
        if t != c.num_frames:
            raise ValueError(f"the tower takes {c.num_frames} frames per video, not {t}")
        grid, p = side // c.patch_size, c.patch_size
        patches = pixels.reshape(b, t, grid, p, grid, p, 3).transpose(0, 1, 2, 4, 3, 5, 6)
        x = self.patch_embedding(patches.reshape(b, t, grid * grid, p * p * 3))
        cls = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (b, t, 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=2) + self.position_embedding[...].astype(x.dtype)
        x, _ = scan_layers(
            self.layers, lambda layer, x, _: (layer(x), None), self.pre_norm(x), unroll=self.unroll, remat=self.remat
        )
        x = x if c.keep_cls else x[:, :, 1:]
        return x.reshape(b, -1, x.shape[-1])
