"""Policies are found by name, written with a digest, and refused when a byte differs."""

import jax
import numpy as np
import pytest

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.models.video_llava import abstract_params
from isrdpo_jax.runs.checkpoint import tree_digest
from isrdpo_jax.schema import LlamaConfig, MeshConfig, ModelConfig, VisionConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.stages.sft import initial_params
from isrdpo_jax.weights.policy_folder import TENSORS, find_policy, load_params, packaged_tokenizer, write_policy
from isrdpo_jax.weights.tensors import read_tensors, write_tensors

MODEL = ModelConfig(
    vision=VisionConfig(
        image_size=16, patch_size=8, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=1, num_frames=2
    ),
    llama=LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=1, num_kv_heads=1, max_positions=64
    ),
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def params(mesh):
    return initial_params(MODEL, mesh, seed=3)


@pytest.fixture
def folder(tmp_path, params):
    write_policy(tmp_path / "policy", MODEL, packaged_tokenizer("shapes"), params, {"seed": 3})
    return tmp_path / "policy"


def test_a_written_policy_comes_back_bit_by_bit(folder, params, mesh):
    found = find_policy(str(folder))
    loaded, digest = load_params(found, mesh)
    assert found.config == MODEL and digest == tree_digest(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), loaded, params))


def test_a_policy_lands_on_any_mesh(folder, params):
    wide = make_mesh(MeshConfig(data=1, fsdp=8, tensor=1))
    loaded, digest = load_params(find_policy(str(folder)), wide)
    assert digest == tree_digest(params)
    assert loaded["llama"]["head"].sharding.shard_shape((8, 16)) == (1, 16)


def test_a_flipped_byte_is_refused(folder, mesh):
    content = bytearray((folder / TENSORS).read_bytes())
    content[-5] ^= 1
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_params(find_policy(str(folder)), mesh)


def test_missing_extra_and_wrong_tensors_are_all_listed(tmp_path, params):
    damaged = {**params, "extra": np.zeros(2, np.float32)}
    damaged["llama"] = {**params["llama"], "head": np.zeros((8, 15), np.float32)}
    del damaged["projector"]
    write_tensors(tmp_path / "x.safetensors", damaged)
    with pytest.raises(CheckpointError) as error:
        read_tensors(tmp_path / "x.safetensors", abstract_params(MODEL))
    told = str(error.value)
    assert (
        "extra is not part" in told
        and "llama.head is float32[8, 15]" in told
        and "projector.linear1.bias is missing" in told
    )


def test_an_unknown_name_says_what_would_be_one(tmp_path):
    with pytest.raises(CheckpointError, match="a run's iter_TT"):
        find_policy(str(tmp_path / "nowhere"))


def test_a_truncated_file_is_a_user_error(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        read_tensors(tmp_path / "x.safetensors", abstract_params(MODEL))
