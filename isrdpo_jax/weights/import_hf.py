"""From a Hugging Face folder to a policy folder, one layer of one tensor at a time.

What is read is checked as a whole before anything is written, and what is written becomes visible by one rename.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from isrdpo_jax.errors import CheckpointError, DataError
from isrdpo_jax.runs.atomic import sync, sync_tree
from isrdpo_jax.runs.streamed import Leaf, save_leaves
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.weights.hf_config import read_config
from isrdpo_jax.weights.hf_folder import HfFolder, StoredTensor, open_folder, stored_tensors
from isrdpo_jax.weights.layouts import (
    Layout,
    Published,
    is_buffer,
    published_tensors,
    recognise,
    unread_tensors,
)
from isrdpo_jax.weights.naming import collapse
from isrdpo_jax.weights.policy_folder import CHECKPOINT, UNREAD, write_base
from isrdpo_jax.weights.tensors import save_arrays

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_FLOATS = ("float32", "bfloat16", "float16")


def import_folder(
    source: str,
    out: Path,
    *,
    settings: Sequence[str] = (),
    say: Callable[[str], None],
    check_tokenizer: Callable[[Path, ModelConfig], None],
) -> ModelConfig:
    """Makes a policy folder of a checkpoint in one of the layouts of `weights.layouts`.

    Values keep their dtype. Needs memory for a few tensors, the largest of which is the embedding.

    Args:
        source: a folder, or a bucket's URL. out: a folder that is not there yet.
        settings: `key=value` of the model description, such as `vision.hidden_act=quick_gelu`.
        say: takes what was recognised and assumed, a line each.
        check_tokenizer: raises a `DataError` about a tokenizer folder that does not serve the model.

    Returns:
        The model that was recognised.

    Raises:
        CheckpointError: the folder cannot be used, with all that is wrong with it; or no room at `out`.
        ConfigError: a setting cannot be used.
        DataError: there is no tokenizer, or it does not serve the model.
    """
    if out.exists():
        raise CheckpointError(f"{out} is there already; choose another folder, or remove it.")
    folder = open_folder(source)
    raw, tensors = folder.read_json("config.json"), stored_tensors(folder)
    layout = recognise(tensors, source)
    config, assumed = read_config(raw, tensors, layout, settings)
    wanted = published_tensors(config, layout)
    _check(source, tensors, wanted, config, layout)
    say(f"layout {layout}: {len(tensors)} tensors, {_size(tensors):,} bytes, temporal attention {_on_off(config)}")
    for one in assumed:
        say(f"assumed {one}; another value: --set KEY=VALUE")
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an import that was killed
    try:
        unfinished.mkdir(parents=True)
        _write_tokenizer(folder, unfinished / "from", config, check_tokenizer)
        write_base(unfinished, config, unfinished / "from")
        shutil.rmtree(unfinished / "from")
        _write_unread(unfinished / UNREAD, config, layout, tensors)
        facts = {"source": {"layout": layout, "tensors": len(tensors)}}
        save_leaves(unfinished / CHECKPOINT, _leaves(tensors, wanted), facts=facts)
        sync_tree(unfinished)
        unfinished.rename(out)
        sync(out.parent)
    except OSError as error:
        raise CheckpointError(f"{out}: the folder cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return config


def _write_tokenizer(
    folder: HfFolder, out: Path, config: ModelConfig, check: Callable[[Path, ModelConfig], None]
) -> None:
    out.mkdir()
    files = [file for file in TOKENIZER_FILES if file in folder.files]
    if not files:
        raise DataError(f"{folder.name}: no tokenizer there; {TOKENIZER_FILES[0]} or {TOKENIZER_FILES[1]} is needed.")
    for file in files:
        (out / file).write_bytes(folder.read(file))
    check(out, config)


def _write_unread(out: Path, config: ModelConfig, layout: Layout, tensors: Mapping[str, StoredTensor]) -> None:
    """Keeps what no computation reads, so that an export is whole again."""
    unread = unread_tensors(config, layout)
    kept = {neutral: tensors[name].read() for name, (neutral, _) in unread.items() if name in tensors}
    save_arrays(out, kept)


def _leaves(tensors: Mapping[str, StoredTensor], wanted: Sequence[Published]) -> list[Leaf]:
    """Our parameters in order, each to be read layer by layer."""

    def leaf(path: str, group: list[Published]) -> Leaf:
        first = group[0]
        stacked = first.layer is not None
        shape = (len(group), *first.our_shape) if stacked else first.our_shape
        return Leaf(path, shape, tensors[first.name].dtype, [partial(_read, tensors, one) for one in group], stacked)

    return [leaf(path, list(group)) for path, group in groupby(wanted, lambda one: one.path)]


def _read(tensors: Mapping[str, StoredTensor], one: Published) -> np.ndarray:
    return one.to_ours(tensors[one.name].read())


def _check(
    source: str,
    tensors: Mapping[str, StoredTensor],
    wanted: Sequence[Published],
    config: ModelConfig,
    layout: Layout,
) -> None:
    """Raises:
    CheckpointError: names every tensor that is missing, not expected, of another shape or of another type.
    """
    shapes = {one.name: one.shape for one in wanted}
    optional = {name: shape for name, (_, shape) in unread_tensors(config, layout).items()}
    expected = shapes | optional
    have = {name for name in tensors if not is_buffer(name)}
    of_stack = {one.path: tensors[one.name].dtype for one in reversed(wanted) if one.name in tensors}  # its first's
    wrong = {
        name: f"{list(tensors[name].shape)} instead of {list(expected[name])}"
        for name in have & expected.keys()
        if tensors[name].shape != expected[name]
    }
    typed = {
        one.name: tensors[one.name].dtype.name
        for one in wanted
        if one.name in tensors
        and (tensors[one.name].dtype.name not in _FLOATS or tensors[one.name].dtype != of_stack[one.path])
    }
    problems = [
        *(f"missing {name}" for name in collapse(shapes.keys() - have)),
        *(f"not expected {name}" for name in collapse(have - expected.keys())),
        *(f"{name} is {what}" for what in sorted(set(wrong.values())) for name in collapse(_with(wrong, what))),
        *(f"{name} is of type {what}" for what in sorted(set(typed.values())) for name in collapse(_with(typed, what))),
    ]
    if problems:
        raise CheckpointError(
            f"{source}: the tensors do not fit the model that config.json describes (layout {layout}): "
            f"{'; '.join(problems)}. Nothing was written."
        )


def _with(problems: Mapping[str, str], what: str) -> list[str]:
    return [name for name, value in problems.items() if value == what]


def _bytes(tensor: StoredTensor) -> int:
    return int(np.prod(tensor.shape)) * tensor.dtype.itemsize


def _size(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(map(_bytes, tensors.values()))


def _on_off(config: ModelConfig) -> str:
    return "on" if config.vision.temporal_attention else "off"
