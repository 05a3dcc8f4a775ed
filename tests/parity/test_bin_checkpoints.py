"""Checkpoints that PyTorch wrote: tensors are read, and nothing else is ever run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY, random_params
from tiny_policy import with_words

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.runs.checkpoint import restore_tree, tree_digest
from isrdpo_jax.weights.export_hf import export_folder
from isrdpo_jax.weights.import_hf import import_folder
from isrdpo_jax.weights.policy_folder import find_policy, packaged_tokenizer, write_policy

MODEL = with_words(TINY)


@pytest.fixture(params=["float32", "bfloat16"])
def folder(tmp_path, request) -> Path:
    """A checkpoint in two `.bin` shards with their index."""
    write_policy(tmp_path / "policy", MODEL, packaged_tokenizer("shapes"), random_params(MODEL), {})
    policy = find_policy(str(tmp_path / "policy"))
    export_folder(policy, tmp_path / "hf", layout="original", dtype=request.param, say=lambda text: None)
    (shard,) = (tmp_path / "hf").glob("*.safetensors")
    tensors = load_file(shard)
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, inside in parts.items():
        torch.save({name: tensors[name] for name in inside}, tmp_path / "hf" / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (tmp_path / "hf" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for path in (shard, shard.with_name("model.safetensors.index.json")):
        path.rename(tmp_path / path.name)
    return tmp_path / "hf"


def bring_in(folder: Path) -> Params:
    out = folder.with_name("out")
    import_folder(str(folder), out, say=lambda text: None, check_tokenizer=lambda folder, model: None)
    return restore_tree(out / "checkpoint")


def test_bin_shards_are_the_same_policy(folder):
    params = bring_in(folder)
    expected = random_params(MODEL)
    if params["llama"]["head"].dtype != np.float32:
        dtype = params["llama"]["head"].dtype
        expected = {part: _cast(tree, dtype) for part, tree in expected.items()}
    assert tree_digest(params) == tree_digest(expected)


def _cast(tree: Params, dtype: np.dtype) -> Params:
    return {
        key: _cast(value, dtype) if isinstance(value, dict) else np.asarray(value).astype(dtype)
        for key, value in tree.items()
    }


class RunsACommand:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda shard: shard | {"x": RunsACommand()}, "no PyTorch file of tensors alone"),
        (lambda shard: shard | {"steps": 3}, "holds other things than tensors: steps"),
        (lambda shard: list(shard.values()), "holds a list and not tensors by name"),
    ],
)
def test_anything_but_tensors_is_refused(folder, monkeypatch, content, message):
    monkeypatch.chdir(folder.parent)
    shard = folder / "pytorch_model-00001-of-00002.bin"
    torch.save(content(torch.load(shard, weights_only=True)), shard)
    with pytest.raises(CheckpointError, match=message):
        bring_in(folder)
    assert not list(folder.parent.glob("ran")) and not list(folder.parent.glob("out*"))


def test_damaged_files_are_refused(folder):
    shard = folder / "pytorch_model-00002-of-00002.bin"
    whole = shard.read_bytes()
    for content in (whole[:-500], b"", b"<!DOCTYPE html>", whole[:2000]):
        shard.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"00002-of-00002.bin is no PyTorch file of tensors alone"):
            bring_in(folder)
    assert not list(folder.parent.glob("out*"))
