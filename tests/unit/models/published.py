"""Weights (or gradients) under the names of the published checkpoint, as the package's tree of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from isrdpo_jax.models.video_llava import Params

# Modules with a weight and perhaps a bias; the number of a layer is left out.
MODULES = {
    "video_tower.embeddings.patch_embedding": "video_tower.patch_embedding",
    "video_tower.pre_layrnorm": "video_tower.pre_norm",
    "video_tower.encoder.layers.temporal_layer_norm1": "video_tower.layers.temporal.norm",
    "video_tower.encoder.layers.temporal_attn.q_proj": "video_tower.layers.temporal.attention.q",
    "video_tower.encoder.layers.temporal_attn.k_proj": "video_tower.layers.temporal.attention.k",
    "video_tower.encoder.layers.temporal_attn.v_proj": "video_tower.layers.temporal.attention.v",
    "video_tower.encoder.layers.temporal_attn.out_proj": "video_tower.layers.temporal.attention.out",
    "video_tower.encoder.layers.layer_norm1": "video_tower.layers.norm1",
    "video_tower.encoder.layers.self_attn.q_proj": "video_tower.layers.attention.q",
    "video_tower.encoder.layers.self_attn.k_proj": "video_tower.layers.attention.k",
    "video_tower.encoder.layers.self_attn.v_proj": "video_tower.layers.attention.v",
    "video_tower.encoder.layers.self_attn.out_proj": "video_tower.layers.attention.out",
    "video_tower.encoder.layers.layer_norm2": "video_tower.layers.norm2",
    "video_tower.encoder.layers.mlp.fc1": "video_tower.layers.fc1",
    "video_tower.encoder.layers.mlp.fc2": "video_tower.layers.fc2",
    "mm_projector.0": "projector.linear1",
    "mm_projector.2": "projector.linear2",
    "llama.model.layers.input_layernorm": "llama.layers.norm1",
    "llama.model.layers.self_attn.q_proj": "llama.layers.q",
    "llama.model.layers.self_attn.k_proj": "llama.layers.k",
    "llama.model.layers.self_attn.v_proj": "llama.layers.v",
    "llama.model.layers.self_attn.o_proj": "llama.layers.out",
    "llama.model.layers.post_attention_layernorm": "llama.layers.norm2",
    "llama.model.layers.mlp.gate_proj": "llama.layers.gate",
    "llama.model.layers.mlp.up_proj": "llama.layers.up",
    "llama.model.layers.mlp.down_proj": "llama.layers.down",
    "llama.model.norm": "llama.norm",
}
# Parameters that no such module holds.
TABLES = {
    "video_tower.embeddings.class_embedding": "video_tower.class_embedding",
    "video_tower.embeddings.position_embedding.weight": "video_tower.position_embedding",
    "video_tower.encoder.layers.temporal_embedding": "video_tower.layers.temporal.embedding",
    "llama.model.embed_tokens.weight": "llama.embedding",
    "llama.lm_head.weight": "llama.head",
}


def to_params(published: Mapping[str, np.ndarray]) -> Params:
    """Linear weights [o, i] become kernels [i, o]; layers are stacked on axis 0."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    single: dict[str, np.ndarray] = {}
    for name, array in published.items():
        path, array = _ours(re.sub(r"\.layers\.\d+\.", ".layers.", name), np.asarray(array, np.float32))
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer:
            stacks.setdefault(path, {})[int(layer[1])] = array
        else:
            single[path] = array
    stacked = {path: np.stack([layers[i] for i in range(len(layers))]) for path, layers in stacks.items()}
    return traverse_util.unflatten_dict({**single, **stacked}, sep=".")


def _ours(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    if name in TABLES:
        if name.endswith("temporal_embedding"):
            array = array[0]  # of [1, t, d]
        return TABLES[name], array.T if name == "llama.lm_head.weight" else array
    module, leaf = name.rsplit(".", 1)
    if leaf == "bias":
        return f"{MODULES[module]}.bias", array
    if array.ndim == 1:
        return f"{MODULES[module]}.scale", array
    # The convolution [o, 3, y, x] sees patches flattened as (y, x, 3).
    matrix = array.transpose(2, 3, 1, 0).reshape(-1, len(array)) if array.ndim == 4 else array.T
    return f"{MODULES[module]}.kernel", matrix
