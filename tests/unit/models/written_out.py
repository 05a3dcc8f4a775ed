"""Tower and decoder written out in NumPy, float64, from their published description; shares nothing with the package.

Parameters are the package's nested dicts; `layers` are stacked on axis 0.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from isrdpo_jax.schema import LlamaConfig, VisionConfig

Tree = dict


def float64(params: Tree) -> Tree:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def layer(params: Tree, i: int) -> Tree:
    return jax.tree.map(lambda x: x[i], params)


def linear(x: np.ndarray, p: Tree) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def layer_norm(x: np.ndarray, p: Tree, eps: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def rms_norm(x: np.ndarray, p: Tree, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def self_attention(x: np.ndarray, p: Tree, heads: int) -> np.ndarray:
    """x [n, d]; full attention with biases."""
    size = x.shape[-1] // heads
    q, k, v = (linear(x, p[name]) for name in "qkv")
    out = []
    for head in range(heads):
        s = slice(head * size, (head + 1) * size)
        out.append(softmax(q[:, s] @ k[:, s].T / math.sqrt(size)) @ v[:, s])
    return linear(np.concatenate(out, -1), p["out"])


def vision_layer(x: np.ndarray, p: Tree, config: VisionConfig) -> np.ndarray:
    """x [t, n, d]: temporal embedding and attention at each position, then the frame's own block."""
    eps, heads = config.layer_norm_eps, config.num_heads
    x = x.copy()
    if config.temporal_attention:
        for i in range(x.shape[1]):
            at_position = x[:, i] + p["temporal"]["embedding"]
            normed = layer_norm(at_position, p["temporal"]["norm"], eps)
            x[:, i] = at_position + self_attention(normed, p["temporal"]["attention"], heads)
    for j, frame in enumerate(x):
        frame = frame + self_attention(layer_norm(frame, p["norm1"], eps), p["attention"], heads)
        x[j] = frame + linear(erf_gelu(linear(layer_norm(frame, p["norm2"], eps), p["fc1"])), p["fc2"])
    return x


def video_tower(pixels: np.ndarray, p: Tree, config: VisionConfig) -> np.ndarray:
    """pixels [t, S, S, 3] -> [tokens, d]."""
    size, grid = config.patch_size, config.image_size // config.patch_size
    frames = []
    for frame in pixels.astype(np.float64):
        patches = [
            frame[i * size : (i + 1) * size, j * size : (j + 1) * size].ravel()
            for i in range(grid)
            for j in range(grid)
        ]
        frames.append(np.stack([p["class_embedding"], *(linear(patch, p["patch_embedding"]) for patch in patches)]))
    x = layer_norm(np.stack(frames) + p["position_embedding"], p["pre_norm"], config.layer_norm_eps)
    tapped = [x]
    for i in range(len(p["layers"]["norm1"]["scale"])):
        tapped.append(vision_layer(tapped[-1], layer(p["layers"], i), config))
    first = 0 if config.keep_cls else 1
    return tapped[-1][:, first:].reshape(-1, x.shape[-1])


def rotate_half(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """x [n, c] of one head: x cos + rotate_half(x) sin, with the angles repeated over both halves."""
    size = x.shape[-1]
    angles = positions[:, None] * theta ** (-np.arange(0, size, 2) / size)
    angles = np.concatenate([angles, angles], axis=-1)
    turned = np.concatenate([-x[:, size // 2 :], x[:, : size // 2]], axis=-1)
    return x * np.cos(angles) + turned * np.sin(angles)


def llama_layer(x: np.ndarray, p: Tree, config: LlamaConfig) -> np.ndarray:
    """x [n, d], causal."""
    eps, size, positions = config.rms_norm_eps, config.head_dim, np.arange(len(x))
    y = rms_norm(x, p["norm1"], eps)
    q, k, v = (linear(y, p[name]) for name in "qkv")
    out = []
    for head in range(config.num_heads):
        kv = head // (config.num_heads // config.num_kv_heads)
        s, t = slice(head * size, (head + 1) * size), slice(kv * size, (kv + 1) * size)
        scores = (
            rotate_half(q[:, s], positions, config.rope_theta) @ rotate_half(k[:, t], positions, config.rope_theta).T
        )
        scores = np.where(np.tril(np.ones_like(scores)) > 0, scores / math.sqrt(size), -np.inf)
        out.append(softmax(scores) @ v[:, t])
    x = x + linear(np.concatenate(out, -1), p["out"])
    y = rms_norm(x, p["norm2"], eps)
    gate = linear(y, p["gate"])
    return x + linear(gate / (1 + np.exp(-gate)) * linear(y, p["up"]), p["down"])


def llama(x: np.ndarray, p: Tree, config: LlamaConfig) -> np.ndarray:
    """Input embeddings [n, d] -> final hidden states [n, d]."""
    for i in range(config.num_layers):
        x = llama_layer(x, layer(p["layers"], i), config)
    return rms_norm(x, p["norm"], config.rms_norm_eps)
