"""From a policy to a folder that the Hugging Face world loads, one parameter at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from isrdpo_jax.errors import CheckpointError, ConfigError
from isrdpo_jax.models.video_llava import abstract_params
from isrdpo_jax.runs.atomic import free_bytes, no_space, sync, sync_tree
from isrdpo_jax.runs.streamed import open_leaves
from isrdpo_jax.schema import PIXEL_MEAN, PIXEL_STD, ModelConfig
from isrdpo_jax.weights.hf_config import write_config
from isrdpo_jax.weights.hf_folder import INDEX
from isrdpo_jax.weights.layouts import Layout, Published, published_tensors, unread_tensors
from isrdpo_jax.weights.policy_folder import PolicyFolder
from isrdpo_jax.weights.tensors import by_name, read_tensors, save_arrays

ExportLayout = Literal["original", "hub"]
Dtype = Literal["bfloat16", "float32"]
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
SHARD_BYTES = 2_000_000_000  # a shard is put together in memory
_PAD_VOCABULARY = 64  # the port's tables end at a multiple of it
_CONTROL = ("bos", "eos", "pad")
_PORT_TOKENS = {"image": "<image>", "video": "<video>", "pad": "<pad>"}


def lost_in_port(config: ModelConfig) -> list[str]:
    """What the transformers port of Video-LLaVA would not compute as this model does."""
    lost = []
    if config.vision.temporal_attention:
        lost.append("it has no temporal attention, and this model's would be left out")
    if not config.vision.keep_cls:
        n = config.vision.patches_per_frame
        lost.append(f"it shows the decoder {n + 1} tokens a frame, class token included, and this model was given {n}")
    return lost


def export_folder(
    policy: PolicyFolder,
    out: Path,
    *,
    layout: ExportLayout,
    dtype: Dtype,
    force: bool = False,
    say: Callable[[str], None],
) -> None:
    """Writes shards, index, configuration and tokenizer; `import_folder` of the result gives the same policy.

    Needs memory for the largest stacked parameter and one shard. In layout `hub` the vocabulary grows by the port's
    tokens for image, video and padding where it lacks them; their rows are the mean of the others.

    Args:
        out: a folder that is not there yet. dtype: of all tensors.
        force: write the port although it would not compute what the model does.

    Raises:
        ConfigError: the port cannot hold the model.
        CheckpointError: the policy cannot be read, or the folder cannot be written.
    """
    config = policy.config
    if out.exists():
        raise CheckpointError(f"{out} is there already; choose another folder, or remove it.")
    if layout == "hub":
        _check_port(config, policy, force)
        vision = config.vision.model_copy(update={"temporal_attention": False, "keep_cls": True})
        config = config.model_copy(update={"vision": vision})
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        partial.mkdir(parents=True)
        if layout == "hub":
            token_ids = _write_port_tokenizer(policy.tokenizer_folder, partial)
            rows = max(token_ids.values()) + 1
            if rows > config.llama.vocab_size:
                rows += -rows % _PAD_VOCABULARY
                say(f"vocabulary {config.llama.vocab_size} -> {rows}: the new rows are the mean of the others")
                config = config.model_copy(update={"llama": config.llama.model_copy(update={"vocab_size": rows})})
            _write_processor(partial, config)
        else:
            token_ids = _copy_tokenizer(policy.tokenizer_folder, partial)
        _write_json(partial / "config.json", write_config(config, layout, dtype, token_ids))
        _write_json(partial / "generation_config.json", {f"{name}_token_id": token_ids[name] for name in _CONTROL})
        _write_shards(partial, policy, config, layout, _DTYPES[dtype], say)
        sync_tree(partial)
        partial.rename(out)
        sync(out.parent)
    except OSError as error:
        raise CheckpointError(f"{out}: the folder cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_port(config: ModelConfig, policy: PolicyFolder, force: bool) -> None:
    image, vision = config.image, config.vision
    as_video = vision.model_copy(update={"num_frames": 1, "temporal_attention": False, "keep_cls": False})
    if image is None:
        raise ConfigError(
            f"{policy.base}: the port needs an image tower, and this model has none. Use --layout original."
        )
    if image != as_video:
        raise ConfigError(
            f"{policy.base}: the port has one configuration for both towers, and these differ. Use --layout original."
        )
    lost = lost_in_port(config)
    if lost and not force:
        raise ConfigError(
            f"{policy.base}: the transformers port would not compute what this model does: {'; and '.join(lost)}. "
            "Use --layout original, or --force to write it all the same."
        )


def _write_shards(
    out: Path,
    policy: PolicyFolder,
    config: ModelConfig,
    layout: Layout,
    dtype: np.dtype,
    say: Callable[[str], None],
) -> None:
    shapes = [one.shape for one in published_tensors(config, layout)]
    shapes += [shape for _, shape in unread_tensors(config, layout).values()]
    total = sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize
    if free_bytes(out) < total:
        raise no_space(out, total)
    shard: dict[str, np.ndarray] = {}
    names: list[list[str]] = []

    def flush() -> None:
        save_arrays(out / f"shard-{len(names)}", shard)
        names.append(list(shard))
        shard.clear()

    for name, array in _tensors(policy, config, layout):
        array = np.ascontiguousarray(array, dtype)
        if shard and sum(one.nbytes for one in shard.values()) + array.nbytes > SHARD_BYTES:
            flush()
        shard[name] = array
    flush()
    weight_map: dict[str, str] = {}
    for number, inside in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (out / f"shard-{number}").rename(out / file)
        weight_map |= dict.fromkeys(inside, file)
    _write_json(out / INDEX["safetensors"], {"metadata": {"total_size": total}, "weight_map": weight_map})
    say(f"layout {layout}: {len(weight_map)} tensors, {total:,} bytes in {len(names)} shards")


def _tensors(policy: PolicyFolder, config: ModelConfig, layout: Layout) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the layout, by name."""
    read = _reader(policy)
    path, parameter = "", np.zeros(())
    for one in published_tensors(config, layout):
        if one.path != path:
            path, parameter = one.path, _resized(read(one.path), one)
        yield one.name, one.to_published(parameter if one.layer is None else parameter[one.layer])
    kept = {} if policy.unread is None else load_file(str(policy.unread))
    for name, (neutral, shape) in unread_tensors(config, layout).items():
        yield name, kept[neutral] if neutral in kept else _changes_nothing(name, shape)


def _reader(policy: PolicyFolder) -> Callable[[str], np.ndarray]:
    """Reads a parameter by its path."""
    if policy.parameters.is_file():
        arrays = by_name(read_tensors(policy.parameters, abstract_params(policy.config)))
        return lambda path: arrays[path]
    stores = open_leaves(policy.parameters)
    return lambda path: stores[path].read().result()


def _resized(parameter: np.ndarray, tensor: Published) -> np.ndarray:
    """Embedding and head with rows for further tokens, where the layout has them."""
    if tensor.path not in ("llama.embedding", "llama.head") or parameter.shape == tensor.our_shape:
        return parameter
    axis = 0 if tensor.path == "llama.embedding" else 1
    mean = parameter.mean(axis, dtype=np.float32, keepdims=True).astype(parameter.dtype)
    missing = tensor.our_shape[axis] - parameter.shape[axis]
    return np.concatenate([parameter, np.repeat(mean, missing, axis)], axis)


def _changes_nothing(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """For a layer that no computation reads: one that hands its input on."""
    return (np.ones if name.endswith("weight") and "norm" in name.split(".")[-2] else np.zeros)(shape, np.float32)


def _copy_tokenizer(source: Path, out: Path) -> dict[str, int]:
    for file in source.iterdir():
        shutil.copyfile(file, out / file.name)
    return _control_ids(_load_tokenizer(source))


def _write_port_tokenizer(source: Path, out: Path) -> dict[str, int]:
    """The tokenizer with the port's tokens; returns the ids of all special ones."""
    tokenizer = _load_tokenizer(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [_PORT_TOKENS["image"], _PORT_TOKENS["video"]]})
    tokenizer.add_special_tokens({"pad_token": _PORT_TOKENS["pad"]})
    tokenizer.save_pretrained(str(out))
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _PORT_TOKENS.items()}
    return {**_control_ids(tokenizer), **ids}


def _load_tokenizer(folder: Path):
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises to install PyTorch
    from transformers import AutoTokenizer  # takes a second to import

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _control_ids(tokenizer) -> dict[str, int]:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in _CONTROL}
    return {name: 0 if value is None else value for name, value in ids.items()}


def _write_processor(out: Path, config: ModelConfig) -> None:
    """What the port's processor needs: CLIP's preprocessing, at this model's size."""
    size = config.vision.image_size
    pixels = {
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": PIXEL_MEAN,
        "image_std": PIXEL_STD,
        "do_convert_rgb": True,
        "processor_class": "VideoLlavaProcessor",
    }
    _write_json(out / "preprocessor_config.json", {**pixels, "image_processor_type": "VideoLlavaImageProcessor"})
    _write_json(out / "video_preprocessor_config.json", {**pixels, "video_processor_type": "VideoLlavaVideoProcessor"})
    processor = {
        "processor_class": "VideoLlavaProcessor",
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    _write_json(out / "processor_config.json", processor)


def _write_json(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
