"""Finding and reading a policy by the name that a user gives it.

A policy is a `model.json`, a `tokenizer/` and its parameters. In a folder of its own these lie together: of a packaged
or trained one the parameters are `params.safetensors`, with their digest in `card.json`; of an imported one they are
the Orbax checkpoint `checkpoint/`. In a run the first two lie in the run's folder and the parameters in each
`iter_TT/checkpoint`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from pydantic import ValidationError

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.models.video_llava import Params, abstract_params, logical_axes
from isrdpo_jax.runs.atomic import read_json, write_json
from isrdpo_jax.runs.checkpoint import restore_tree, tree_digest
from isrdpo_jax.runs.layout import RunLayout, manifest_path
from isrdpo_jax.runs.manifest import VerifyMode, hash_file, load_manifest
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.sharding import parameter_shardings
from isrdpo_jax.weights.tensors import read_tensors, write_tensors

MODEL, TOKENIZER, TENSORS, CARD = "model.json", "tokenizer", "params.safetensors", "card.json"
CHECKPOINT, UNREAD = "checkpoint", "unread.safetensors"
_ITERATION = re.compile(r"iter_(\d{2,})")


@dataclass(frozen=True)
class PolicyFolder:
    """Where a policy lies.

    Attributes:
        base: the folder with model and tokenizer, and in `unread.safetensors` the tensors of an imported checkpoint
            that no computation reads (behind the tapped layer of a tower), which an export gives back.
        parameters: a safetensors file or a checkpoint.
    """

    base: Path
    parameters: Path

    @property
    def config(self) -> ModelConfig:
        try:
            return ModelConfig.model_validate_json((self.base / MODEL).read_bytes())
        except (OSError, ValidationError) as error:
            raise CheckpointError(f"{self.base / MODEL}: no model description that can be read ({error}).") from error

    @property
    def tokenizer_folder(self) -> Path:
        return self.base / TOKENIZER

    @property
    def unread(self) -> Path | None:
        return self.base / UNREAD if (self.base / UNREAD).is_file() else None


def packaged_policies() -> list[str]:
    """Names of the policies that ship with the package."""
    return sorted(path.name for path in _packaged_root().iterdir() if (path / TENSORS).is_file())


def packaged_tokenizer(name: str) -> Path:
    """The tokenizer folder that ships under a name, with or without a policy beside it.

    Raises:
        CheckpointError: there is none.
    """
    folder = _packaged_root() / name / TOKENIZER
    if not folder.is_dir():
        raise CheckpointError(f"start: {name}: no packaged tokenizer of this name.")
    return folder


def find_policy(name: str) -> PolicyFolder:
    """The policy that `name` stands for: a packaged one, a policy folder, a run (its newest), or a run's `iter_TT`.

    Raises:
        CheckpointError: there is none; says what would be one.
    """
    if name in packaged_policies():
        return PolicyFolder(_packaged_root() / name, _packaged_root() / name / TENSORS)
    path = Path(name)
    if (path / TENSORS).is_file():
        return PolicyFolder(path, path / TENSORS)
    if (path / MODEL).is_file() and manifest_path(path / CHECKPOINT).is_file():
        return PolicyFolder(path, path / CHECKPOINT)
    run = RunLayout(path)
    if run.run_json.is_file():
        sealed = [one for one in run.iterations() if manifest_path(one.checkpoint).is_file()]
        if not sealed:
            raise CheckpointError(
                f"{path}: this run has no policy yet; `isrdpo run` writes the first one at its start."
            )
        return PolicyFolder(path, sealed[-1].checkpoint)
    if (match := _ITERATION.fullmatch(path.name)) and RunLayout(path.parent).run_json.is_file():
        checkpoint = RunLayout(path.parent).iteration(int(match[1])).checkpoint
        if not manifest_path(checkpoint).is_file():
            raise CheckpointError(
                f"{path}: this iteration has no finished policy (yet, or any more: checkpoint.keep_policies)."
            )
        return PolicyFolder(path.parent, checkpoint)
    raise CheckpointError(
        f"{name}: no policy there. Give one of the packaged policies ({', '.join(packaged_policies()) or 'none'}), "
        f"a folder that `isrdpo import` or `isrdpo sft` made, a run, or a run's iter_TT."
    )


def load_params(policy: PolicyFolder, mesh: Mesh, *, verify: VerifyMode = "always") -> tuple[Params, str]:
    """The parameters on the mesh, float32, and their `tree_digest`.

    Raises:
        CheckpointError: a byte differs from what was written, or the parameters do not fit the model.
    """
    abstract = abstract_params(policy.config)
    shardings = parameter_shardings(mesh, logical_axes(policy.config), abstract)
    if policy.parameters.is_file():
        card = read_json(policy.base / CARD)
        found = hash_file(policy.parameters).sha256
        if found != card["sha256"]:
            raise CheckpointError(
                f"{policy.parameters}: SHA-256 {found[:12]}… and its card says {card['sha256'][:12]}…; "
                "the file was changed. Install the package again, or write the policy anew."
            )
        params = jax.device_put(read_tensors(policy.parameters, abstract), shardings)
        return params, tree_digest(params)
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
    params = restore_tree(policy.parameters, placed, verify=verify)
    return params, load_manifest(manifest_path(policy.parameters)).facts["policy"]


def write_base(base: Path, config: ModelConfig, tokenizer_folder: Path, unread: Path | None = None) -> None:
    """Writes model description, tokenizer and unread tensors; what is there already stays."""
    base.mkdir(parents=True, exist_ok=True)
    if not (base / MODEL).exists():
        partial = base / f"{TOKENIZER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(base / TOKENIZER, ignore_errors=True)
        shutil.copytree(tokenizer_folder, partial)
        partial.rename(base / TOKENIZER)
        if unread is not None:
            shutil.copyfile(unread, base / UNREAD)
        write_json(base / MODEL, json.loads(config.model_dump_json()))


def write_policy(
    folder: Path, config: ModelConfig, tokenizer_folder: Path, params: Params, card: Mapping[str, Any]
) -> None:
    """Writes a policy folder; the card, with the digest, comes last."""
    write_base(folder, config, tokenizer_folder)
    write_tensors(folder / TENSORS, params)
    write_json(folder / CARD, {**card, "sha256": hash_file(folder / TENSORS).sha256, "policy": tree_digest(params)})


def _packaged_root() -> Path:
    return Path(str(files("isrdpo_jax") / "weights"))
