"""Between a checkpoint's `config.json` and our model description.

An explicit value is obeyed or refused, never replaced. What the file leaves out is read off the tensors where they tell
it, and is otherwise what the published weights were trained with, which is not what transformers would fill in:
its CLIP defaults to quick_gelu and its LLaMA to an epsilon of 1e-6. Every such value is an assumption that is told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from isrdpo_jax.errors import CheckpointError, ConfigError
from isrdpo_jax.schema import ModelConfig, VisionConfig
from isrdpo_jax.weights.hf_folder import StoredTensor
from isrdpo_jax.weights.layouts import Layout, Tower, prefix, towers
from isrdpo_jax.yaml_tree import CoreLoader

MODEL_TYPES = {"original": "llava_llama", **dict.fromkeys(("hub", "saved", "state_dict"), "video_llava")}
_HEAD_SIZE = 64  # of CLIP ViT-L/14
_FRAMES = 8

# Fields of a LLaMA configuration that would change what is computed: the only values that are.
_LLAMA_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (False,),
    "rope_scaling": (None,),
    "pretraining_tp": (1,),
}
_TOP_ONLY: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", "cls_patch"),
    "mm_use_x_start_end": (False,),
    "mm_use_x_patch_token": (False,),
    "mm_use_im_start_end": (False,),
    "mm_use_im_patch_token": (False,),
    "projector_hidden_act": ("gelu",),
    "multimodal_projector_bias": (True,),
    "vision_feature_select_strategy": ("default", "full"),
    "tie_word_embeddings": (False,),
    "quantization_config": (None,),
}


@dataclass
class _Reading:
    """What has been read so far: `assumed` and `problems` are told to the user."""

    assumed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def take(self, section: Mapping[str, Any], key: str, ours: str, otherwise: Any, why: str) -> Any:
        """The value of `key`, or `otherwise`, which is then an assumption about our setting `ours`."""
        if section.get(key) is None:
            self.assumed.append(f"{ours}={_yaml(otherwise)} ({why})")
        return _given(section, key, otherwise)

    def only(self, section: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
        for key, values in allowed.items():
            if key in section and section[key] not in values:
                listed = " or ".join(map(_yaml, values))
                self.problems.append(f"{key} is {_yaml(section[key])}, and only {listed} is supported")


def read_config(
    raw: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    layout: Layout,
    settings: Sequence[str] = (),
) -> tuple[ModelConfig, list[str]]:
    """The model that a checkpoint holds.

    Args:
        raw: the content of config.json. tensors: of the checkpoint.
        settings: `dotted.key=value` of the model description, such as `vision.hidden_act=quick_gelu`; they win.

    Returns:
        The model, and the assumptions that were made, each as `key=value (why)`.

    Raises:
        CheckpointError: the checkpoint is of another kind of model, or holds what is not supported; lists it all.
        ConfigError: a setting that the model description does not have, or a value that it refuses.
    """
    reading = _Reading()
    kind = raw.get("model_type")
    if kind is not None and kind != MODEL_TYPES[layout]:
        reading.problems.append(
            f"model_type is {_yaml(kind)}, and tensors are named like those of {MODEL_TYPES[layout]}"
        )
    reading.only(raw, _TOP_ONLY)
    text = raw if layout == "original" else raw.get("text_config", {})
    tree: dict[str, Any] = {"llama": _llama(reading, text, tensors, layout)}
    tree["vision"] = _tower(reading, raw, tensors, layout, "video_tower")
    if any(name.startswith(prefix(layout, "image_tower")) for name in tensors):
        tree["image"] = _tower(reading, raw, tensors, layout, "image_tower")
    dtype = raw.get("dtype") or raw.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    tree["compute_dtype"] = "bfloat16" if dtype in ("bfloat16", "float16") else "float32"
    if reading.problems:
        raise CheckpointError(f"config.json: {'; '.join(reading.problems)}.")
    given = [_set(tree, text) for text in settings]
    try:
        config = ModelConfig.model_validate(tree)
    except ValidationError as error:
        listed = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))
        raise ConfigError(f"config.json and --set give no model: {listed}.") from error
    return config, [told for told in reading.assumed if told.split("=")[0] not in given]


def _llama(
    reading: _Reading, raw: Mapping[str, Any], tensors: Mapping[str, StoredTensor], layout: Layout
) -> dict[str, Any]:
    reading.only(raw, _LLAMA_ONLY)
    if raw.get("model_type", "llama") not in ("llama", "llava_llama"):
        reading.problems.append(f"the decoder is of type {_yaml(raw['model_type'])}, and only llama is supported")
    base = prefix(layout, "llama")
    vocab, d = tensors[f"{base}embed_tokens.weight"].shape
    gate = tensors.get(f"{base}layers.0.mlp.gate_proj.weight")
    heads = reading.take(raw, "num_attention_heads", "llama.num_heads", max(1, d // 128), "heads of 128 as in LLaMA")
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        reading.problems.append(f"rope_type is {_yaml(rope['rope_type'])}, and only default is supported")
    theta = {"rope_theta": raw.get("rope_theta", rope.get("rope_theta"))}
    config = {
        "vocab_size": _given(raw, "vocab_size", vocab),
        "hidden_size": _given(raw, "hidden_size", d),
        "intermediate_size": _given(raw, "intermediate_size", gate.shape[0] if gate else 1),
        "num_layers": _given(raw, "num_hidden_layers", _count_layers(tensors, f"{base}layers.")),
        "num_heads": heads,
        "num_kv_heads": reading.take(raw, "num_key_value_heads", "llama.num_kv_heads", heads, "no grouped queries"),
        "rms_norm_eps": float(reading.take(raw, "rms_norm_eps", "llama.rms_norm_eps", 1e-5, "as Vicuna")),
        "rope_theta": float(reading.take(theta, "rope_theta", "llama.rope_theta", 10000.0, "as Vicuna")),
        "max_positions": reading.take(raw, "max_position_embeddings", "llama.max_positions", 4096, "as Vicuna 1.5"),
    }
    size = raw.get("head_dim")
    if size is not None and size * heads != config["hidden_size"]:
        reading.problems.append(f"head_dim is {size}, and only hidden_size / num_attention_heads is supported")
    return config


def _tower(
    reading: _Reading, raw: Mapping[str, Any], tensors: Mapping[str, StoredTensor], layout: Layout, tower: Tower
) -> dict[str, Any]:
    """A tower's sizes: from its section (which the original layout has only where we wrote it), or its tensors."""
    section = raw.get(f"{tower}_config" if layout == "original" else "vision_config") or {}
    ours = "vision" if tower == "video_tower" else "image"
    base = prefix(layout, tower)
    trained = "as LanguageBind was trained"
    patches = tensors.get(f"{base}embeddings.patch_embedding.weight")
    positions = tensors.get(f"{base}embeddings.position_embedding.weight")
    fc1 = tensors.get(f"{base}encoder.layers.0.mlp.fc1.weight")
    temporal = tensors.get(f"{base}encoder.layers.0.temporal_embedding")
    if patches is None or positions is None or fc1 is None or len(patches.shape) != 4 or len(positions.shape) != 2:
        reading.problems.append(
            f"the tensors of the {tower} do not tell its sizes ({base}embeddings.…, {base}encoder.…)"
        )
        return {}
    d, patch = patches.shape[0], patches.shape[2]
    side = patch * round((positions.shape[0] - 1) ** 0.5)
    if layout == "original":
        layer, feature = raw.get("mm_vision_select_layer"), raw.get("mm_vision_select_feature")
        keep_cls = None if feature is None else feature == "cls_patch"
    else:
        layer, keep_cls = raw.get("vision_feature_layer"), True  # the port keeps it in videos, whatever it says
    layer, keep_cls = section.get("feature_layer", layer), section.get("keep_cls", keep_cls)
    config = {
        "image_size": _given(section, "image_size", side),
        "patch_size": _given(section, "patch_size", patch),
        "hidden_size": _given(section, "hidden_size", d),
        "intermediate_size": _given(section, "intermediate_size", fc1.shape[0]),
        "num_layers": _given(section, "num_hidden_layers", _count_layers(tensors, f"{base}encoder.layers.")),
        "num_heads": reading.take(
            section, "num_attention_heads", f"{ours}.num_heads", max(1, d // _HEAD_SIZE), "heads of 64 as in CLIP ViT-L"
        ),
        "hidden_act": reading.take(section, "hidden_act", f"{ours}.hidden_act", "gelu", trained),
        "layer_norm_eps": float(reading.take(section, "layer_norm_eps", f"{ours}.layer_norm_eps", 1e-5, trained)),
        "feature_layer": reading.take({"l": layer}, "l", f"{ours}.feature_layer", -2, trained),
        "temporal_attention": temporal is not None,
    }
    if tower == "image_tower":
        return config | {"num_frames": 1, "keep_cls": section.get("keep_cls", False)}
    config["keep_cls"] = reading.take(
        {"k": keep_cls}, "k", "vision.keep_cls", False, "as LLaVA-Hound and ISR-DPO; Video-LLaVA itself keeps it"
    )
    if temporal is not None:
        config["num_frames"] = temporal.shape[1]
    else:
        length, per_frame = raw.get("video_seq_length"), positions.shape[0]
        frames = {"t": length // per_frame} if length and length % per_frame == 0 else section
        key = "t" if "t" in frames else "num_frames"
        config["num_frames"] = reading.take(frames, key, "vision.num_frames", _FRAMES, trained)
    return config


def write_config(config: ModelConfig, layout: Layout, dtype: str, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """The `config.json` of an export; `read_config` of it gives the same model back, without assumptions.

    Args:
        dtype: of the tensors. token_ids: bos, eos and pad, and for the port `image` and `video`.
    """
    llama = {
        "vocab_size": config.llama.vocab_size,
        "hidden_size": config.llama.hidden_size,
        "intermediate_size": config.llama.intermediate_size,
        "num_hidden_layers": config.llama.num_layers,
        "num_attention_heads": config.llama.num_heads,
        "num_key_value_heads": config.llama.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.llama.rms_norm_eps,
        "rope_theta": config.llama.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": config.llama.max_positions,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": token_ids["bos"],
        "eos_token_id": token_ids["eos"],
        "pad_token_id": token_ids["pad"],
    }
    if layout == "original":
        return {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava_llama",
            **llama,
            "torch_dtype": dtype,
            "X": ["Video"] if config.image is None else ["Image", "Video"],
            "mm_hidden_size": config.vision.hidden_size,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": config.vision.feature_layer,
            "mm_vision_select_feature": "cls_patch" if config.vision.keep_cls else "patch",
            "mm_use_x_patch_token": False,
            "mm_use_x_start_end": False,
            "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
            **({} if config.image is None else {"mm_image_tower": "LanguageBind/LanguageBind_Image"}),
            "image_aspect_ratio": "pad",
            "use_mm_proj": True,
            **{f"{tower}_config": _clip(vision) | _tapped(vision) for tower, vision in towers(config)},
        }
    per_frame = config.vision.patches_per_frame
    return {
        "architectures": ["VideoLlavaForConditionalGeneration"],
        "model_type": "video_llava",
        "text_config": {"model_type": "llama", **llama},
        "vision_config": _clip(config.vision),
        "dtype": dtype,
        "image_token_index": token_ids["image"],
        "video_token_index": token_ids["video"],
        "pad_token_id": token_ids["pad"],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": config.vision.feature_layer,
        "vision_feature_select_strategy": "default",
        "image_seq_length": per_frame,
        "video_seq_length": config.vision.num_frames * (per_frame + 1),
        "tie_word_embeddings": False,
    }


def _clip(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
    }


def _tapped(vision: VisionConfig) -> dict[str, Any]:
    """What the original layout says nowhere, or once for both towers."""
    return {"num_frames": vision.num_frames, "feature_layer": vision.feature_layer, "keep_cls": vision.keep_cls}


def _given(section: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    return otherwise if section.get(key) is None else section[key]


def _count_layers(tensors: Mapping[str, StoredTensor], base: str) -> int:
    numbers = [int(match[1]) for name in tensors if (match := re.match(re.escape(base) + r"(\d+)\.", name))]
    return max(numbers, default=0) + 1


def _set(tree: dict[str, Any], text: str) -> str:
    """Applies one setting and returns its key."""
    key, equals, value = text.partition("=")
    *parents, last = key.split(".")
    section: Any = tree
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    if not equals or not isinstance(section, dict):
        raise ConfigError(f"--set {text}: write a key of the model description, such as vision.hidden_act=quick_gelu.")
    try:
        section[last] = yaml.load(value, Loader=CoreLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML ({error}).") from error
    return key


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
