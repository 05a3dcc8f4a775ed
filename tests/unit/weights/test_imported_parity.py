"""Checkpoint folders as they are published, imported by the command line, against what torch says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from folder_goldens import (
    FOLDERS,
    Imported,
    check_answer,
    check_generated,
    check_logits,
    check_score,
    import_golden,
    isrdpo,
    load_golden,
)

from isrdpo_jax.weights.policy_folder import find_policy

NAMES = sorted(path.name for path in FOLDERS.iterdir() if not list(path.glob("checkpoint/*.bin")))  # .bin needs torch
PORTS = [name for name in NAMES if name.startswith("video_llava")]


@pytest.fixture(scope="module", params=NAMES)
def imported(request, tmp_path_factory) -> Imported:
    return import_golden(FOLDERS / request.param, tmp_path_factory.mktemp(request.param))


def test_there_are_folders_of_all_kinds():
    goldens = [load_golden(FOLDERS / name) for name in NAMES]
    assert len(PORTS) == 2 and len(goldens) == 3
    assert {golden.case["dtype"] for golden in goldens} == {"float32", "bfloat16"}
    assert all(golden.case["images"] for golden in goldens if golden.case["dtype"] == "bfloat16")
    shards = {name: len(list((FOLDERS / name / "checkpoint").glob("*.safetensors"))) for name in NAMES}
    assert min(shards.values()) == 1 and max(shards.values()) > 2
    assert {golden.case["further_rows"] for golden in goldens} == {0, 3, 64}


def test_tokens_are_those_of_sentencepiece(imported):
    a, case, policy = imported.golden.arrays, imported.golden.case, imported.policy
    assert list(policy.prefix_ids) == a["prefix"].tolist()
    assert policy.tokenizer.encode_turn(case["prompt"]) == a["turn"].tolist()
    assert policy.tokenizer.encode_response(case["response"]) == a["response"].tolist()
    assert policy.tokenizer.decode(a["response"].tolist()) == case["response"]
    assert policy.config.llama.vocab_size == policy.tokenizer.vocab_size + case["further_rows"]


def test_logits(imported):
    for kind in imported.golden.kinds:
        check_logits(imported, kind)


def test_greedy_tokens(imported):
    for kind in imported.golden.kinds:
        check_generated(imported, kind)


def test_score_of_the_command_line(imported):
    check_score(imported)


def test_answer_of_the_command_line(imported):
    check_answer(imported)


def as_hub(name: str) -> str:
    """Layout C to layout B: the port on the hub, written by transformers 4."""
    for tower in ("video_tower.", "image_tower."):
        if name.startswith(tower):
            return f"{tower}vision_model.{name.removeprefix(tower)}"
    return name


def as_state_dict(name: str) -> str:
    """Layout C to layout D: the names inside the model."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return f"model.{name.replace('language_model.model.', 'language_model.')}"


@pytest.mark.parametrize("name", PORTS)
@pytest.mark.parametrize("rename", [as_hub, as_state_dict])
def test_the_port_under_its_other_names_has_the_same_parameters(name, rename, tmp_path):
    golden = load_golden(FOLDERS / name)
    renamed = shutil.copytree(golden.checkpoint, tmp_path / "renamed")
    for shard in renamed.glob("*.safetensors"):
        rename_tensors(shard, rename)
    for index in renamed.glob("*.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"] = {rename(tensor): shard for tensor, shard in content["weight_map"].items()}
        index.write_text(json.dumps(content))
    policies = []
    for source, out in ((golden.checkpoint, tmp_path / "saved_policy"), (renamed, tmp_path / "renamed_policy")):
        isrdpo("import", source, out, *golden.settings)
        policies.append(Imported(golden, out, tmp_path).policy)
        assert find_policy(str(out)).config.on("cpu") == policies[0].config
    jax.tree.map(np.testing.assert_array_equal, *(policy.params for policy in policies))
    assert policies[0].digest == policies[1].digest


def rename_tensors(path: Path, rename: Callable[[str], str]) -> None:
    """Changes the names in the header of a safetensors file and leaves every value."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    assert len({rename(name) for name in names}) == len(names)
    new = json.dumps({rename(name) if name in names else name: value for name, value in header.items()}).encode()
    path.chmod(0o644)
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])
