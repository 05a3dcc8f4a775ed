"""Which published tensor is which parameter: the four layouts in which Video-LLaVA checkpoints are found.

`original` is what Video-LLaVA, LLaVA-Hound and ISR-DPO write; `hub` is the transformers port on the hub; `saved` is
what transformers 5 writes for a model that it made itself; `state_dict` is that model's own naming. They differ in
prefixes only. The names behind the prefixes are those of LLaMA and CLIP in transformers, and of LanguageBind for the
temporal attention.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.models.video_llava import abstract_params
from isrdpo_jax.schema import ModelConfig, VisionConfig
from isrdpo_jax.weights.tensors import by_name

Layout = Literal["original", "hub", "saved", "state_dict"]
Tower = Literal["video_tower", "image_tower"]
TOWERS: tuple[Tower, ...] = ("video_tower", "image_tower")

# The prefix of each part, and how the projector's two layers are called.
_PREFIXES: dict[Layout, dict[str, str]] = {
    "original": {
        "video_tower": "model.video_tower.video_tower.",
        "image_tower": "model.image_tower.image_tower.",
        "projector": "model.mm_projector.",
        "llama": "model.",
        "head": "lm_head.",
    },
    "hub": {
        "video_tower": "video_tower.vision_model.",
        "image_tower": "image_tower.vision_model.",
        "projector": "multi_modal_projector.",
        "llama": "language_model.model.",
        "head": "language_model.lm_head.",
    },
    "saved": {
        "video_tower": "video_tower.",
        "image_tower": "image_tower.",
        "projector": "multi_modal_projector.",
        "llama": "language_model.model.",
        "head": "language_model.lm_head.",
    },
    "state_dict": {
        "video_tower": "model.video_tower.",
        "image_tower": "model.image_tower.",
        "projector": "model.multi_modal_projector.",
        "llama": "model.language_model.",
        "head": "lm_head.",
    },
}
_PROJECTOR_LAYERS: dict[Layout, tuple[str, str]] = {
    "original": ("0", "2"),
    "hub": ("linear_1", "linear_2"),
    "saved": ("linear_1", "linear_2"),
    "state_dict": ("linear_1", "linear_2"),
}

# Our module, without its part -> the published one; # is the layer.
_TOWER_MODULES = {
    "patch_embedding": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",
    "layers.temporal.norm": "encoder.layers.#.temporal_layer_norm1",
    "layers.temporal.attention.q": "encoder.layers.#.temporal_attn.q_proj",
    "layers.temporal.attention.k": "encoder.layers.#.temporal_attn.k_proj",
    "layers.temporal.attention.v": "encoder.layers.#.temporal_attn.v_proj",
    "layers.temporal.attention.out": "encoder.layers.#.temporal_attn.out_proj",
    "layers.norm1": "encoder.layers.#.layer_norm1",
    "layers.attention.q": "encoder.layers.#.self_attn.q_proj",
    "layers.attention.k": "encoder.layers.#.self_attn.k_proj",
    "layers.attention.v": "encoder.layers.#.self_attn.v_proj",
    "layers.attention.out": "encoder.layers.#.self_attn.out_proj",
    "layers.norm2": "encoder.layers.#.layer_norm2",
    "layers.fc1": "encoder.layers.#.mlp.fc1",
    "layers.fc2": "encoder.layers.#.mlp.fc2",
}
_LLAMA_MODULES = {
    "layers.norm1": "layers.#.input_layernorm",
    "layers.q": "layers.#.self_attn.q_proj",
    "layers.k": "layers.#.self_attn.k_proj",
    "layers.v": "layers.#.self_attn.v_proj",
    "layers.out": "layers.#.self_attn.o_proj",
    "layers.norm2": "layers.#.post_attention_layernorm",
    "layers.gate": "layers.#.mlp.gate_proj",
    "layers.up": "layers.#.mlp.up_proj",
    "layers.down": "layers.#.mlp.down_proj",
    "norm": "norm",
}
# Parameters that are no module's weight or bias.
_TABLES = {
    "class_embedding": "embeddings.class_embedding",
    "position_embedding": "embeddings.position_embedding.weight",
    "layers.temporal.embedding": "encoder.layers.#.temporal_embedding",
    "embedding": "embed_tokens.weight",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_BUFFERS = re.compile(r"\.(inv_freq|position_ids)$")  # what transformers computes and some versions stored


@dataclass(frozen=True)
class Published:
    """One tensor of a checkpoint and its place in our parameters.

    Attributes:
        name: in the checkpoint. shape: there.
        path: our parameter, dotted. layer: its place on the parameter's first axis; None where layers are not stacked.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    layer: int | None

    @property
    def our_shape(self) -> tuple[int, ...]:
        """The shape of `to_ours`."""
        if self.path.endswith("patch_embedding.kernel"):
            o, channels, y, x = self.shape
            return y * x * channels, o
        if self.path.endswith(".kernel") or self.path == "llama.head":
            return self.shape[::-1]
        return self.shape[1:] if self.path.endswith("temporal.embedding") else self.shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Linear weights [o, i] become kernels [i, o], the convolution [o, 3, y, x] a kernel of patches (y, x, 3)."""
        if self.path.endswith("patch_embedding.kernel"):
            return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
        if self.path.endswith(".kernel") or self.path == "llama.head":
            return array.T
        return array[0] if self.path.endswith("temporal.embedding") else array

    def to_published(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        if self.path.endswith("patch_embedding.kernel"):
            o, channels, y, x = self.shape
            return array.reshape(y, x, channels, o).transpose(3, 2, 0, 1)
        if self.path.endswith(".kernel") or self.path == "llama.head":
            return array.T
        return array.reshape(self.shape)


def recognise(names: Collection[str], where: str) -> Layout:
    """The layout of a checkpoint with these tensors.

    Raises:
        CheckpointError: none of the four.
    """
    towers = {layout: f"{prefixes['video_tower']}embeddings." for layout, prefixes in _PREFIXES.items()}
    for layout, prefixes in _PREFIXES.items():
        embedding = f"{prefixes['llama']}embed_tokens.weight" in names
        if embedding and any(name.startswith(towers[layout]) for name in names):
            return layout
    some = ", ".join(sorted(names)[:3]) or "nothing"
    raise CheckpointError(
        f"{where}: no layout of Video-LLaVA that is known here (original, hub, saved or state_dict: a LLaMA decoder "
        f"and a video tower under their prefixes). It holds {len(names)} tensors, such as {some}."
    )


def prefix(layout: Layout, part: str) -> str:
    """What stands before the names of a part: a tower, `projector`, `llama` or `head`."""
    return _PREFIXES[layout][part]


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is no parameter but something computed (rotary frequencies, position numbers)."""
    return bool(_BUFFERS.search(name))


def published_tensors(config: ModelConfig, layout: Layout) -> list[Published]:
    """Every tensor that our parameters are made of, in the order of our paths, then layers."""
    ours = sorted((path, leaf.shape) for path, leaf in by_name(abstract_params(config)).items())
    return [tensor for path, shape in ours for tensor in _of_parameter(config, layout, path, shape)]


def unread_tensors(config: ModelConfig, layout: Layout) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors behind the tapped layer of each tower, which no computation reads: name -> (neutral name, shape).

    The neutral name, `video_tower.encoder.layers.23.…`, is the same in every layout.
    """
    return {
        prefix(layout, tower) + name: (f"{tower}.{name}", shape)
        for tower, vision in towers(config)
        for name, shape in _behind_the_tap(vision)
    }


def towers(config: ModelConfig) -> Iterator[tuple[Tower, VisionConfig]]:
    yield "video_tower", config.vision
    if config.image is not None:
        yield "image_tower", config.image


def _of_parameter(config: ModelConfig, layout: Layout, path: str, shape: tuple[int, ...]) -> Iterator[Published]:
    name = _published_name(layout, path)
    if "#" not in name:
        yield Published(name, _published_shape(config, path, shape), path, None)
        return
    for layer in range(shape[0]):
        yield Published(name.replace("#", str(layer)), _published_shape(config, path, shape[1:]), path, layer)


def _published_name(layout: Layout, path: str) -> str:
    part, rest = path.split(".", 1)
    if path == "llama.head":
        return f"{prefix(layout, 'head')}weight"
    if rest in _TABLES:
        return prefix(layout, part) + _TABLES[rest]
    module, leaf = rest.rsplit(".", 1)
    if part == "projector":
        return f"{prefix(layout, part)}{_PROJECTOR_LAYERS[layout][int(module[-1]) - 1]}.{_LEAVES[leaf]}"
    modules = _LLAMA_MODULES if part == "llama" else _TOWER_MODULES
    return f"{prefix(layout, part)}{modules[module]}.{_LEAVES[leaf]}"


def _published_shape(config: ModelConfig, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path.endswith("patch_embedding.kernel"):
        vision = dict(towers(config))[path.split(".")[0]]  # type: ignore[index]
        return shape[1], 3, vision.patch_size, vision.patch_size
    if path.endswith(".kernel") or path == "llama.head":
        return shape[::-1]
    return (1, *shape) if path.endswith("temporal.embedding") else shape


def _behind_the_tap(vision: VisionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, mlp = vision.hidden_size, vision.intermediate_size
    attention = {f"{p}_proj.{leaf}": (d, d)[: 2 - (leaf == "bias")] for p in "qkv" for leaf in ("weight", "bias")}
    attention |= {"out_proj.weight": (d, d), "out_proj.bias": (d,)}
    layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}": shape for name, shape in attention.items()}
    layer |= {f"layer_norm{i}.{leaf}": (d,) for i in (1, 2) for leaf in ("weight", "bias")}
    layer |= {"mlp.fc1.weight": (mlp, d), "mlp.fc1.bias": (mlp,), "mlp.fc2.weight": (d, mlp), "mlp.fc2.bias": (d,)}
    if vision.temporal_attention:
        layer |= {f"temporal_attn.{name}": shape for name, shape in attention.items()}
        layer |= {f"temporal_layer_norm1.{leaf}": (d,) for leaf in ("weight", "bias")}
        layer["temporal_embedding"] = (1, vision.num_frames, d)
    for number in range(vision.layers_built, vision.num_layers):
        yield from ((f"encoder.layers.{number}.{name}", shape) for name, shape in layer.items())
    yield from ((f"post_layernorm.{leaf}", (d,)) for leaf in ("weight", "bias"))
