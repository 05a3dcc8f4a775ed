"""A tree of parameters in one safetensors file; names are the tree's paths, joined by dots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.runs.atomic import no_space


def write_tensors(path: Path, params: Params) -> None:
    """Writes every array of the tree, gathered to this host. Raises as `save_arrays`."""
    save_arrays(path, {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in by_name(params).items()})


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file as PyTorch's users expect it.

    Raises:
        CheckpointError: the disk is full, or the file cannot be written.
    """
    try:
        save_file(dict(arrays), str(path), metadata={"format": "pt"})
        path.chmod(0o644)  # save_file leaves it to its owner alone
    except (OSError, SafetensorError) as error:
        if "No space left" in str(error) or "File too large" in str(error) or "quota" in str(error):
            raise no_space(path, sum(array.nbytes for array in arrays.values())) from error
        raise CheckpointError(f"{path}: the file cannot be written ({error}).") from error


def read_tensors(path: Path, abstract: Params) -> Params:
    """Reads the arrays that `abstract` names, as numpy.

    Raises:
        CheckpointError: unreadable, or names, shapes or dtypes differ; lists all differences.
    """
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
    wanted = by_name(abstract)
    problems = [f"{name} is missing" for name in wanted.keys() - tensors.keys()]
    problems += [f"{name} is not part of the model" for name in tensors.keys() - wanted.keys()]
    for name in wanted.keys() & tensors.keys():
        have, want = tensors[name], wanted[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            problems.append(f"{name} is {have.dtype}{list(have.shape)}, not {want.dtype}{list(want.shape)}")
    if problems:
        raise CheckpointError(f"{path}: these tensors do not fit the model: {'; '.join(sorted(problems))}.")
    return jax.tree.unflatten(jax.tree.structure(abstract), [tensors[name] for name in wanted])


def by_name(params: Params) -> dict[str, Any]:
    """The leaves of a tree of parameters by their dotted paths."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}
