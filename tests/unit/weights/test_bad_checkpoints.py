"""Checkpoints that cannot be used: one error that says everything, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import TINY, random_params
from tiny_policy import with_words

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.weights import export_hf
from isrdpo_jax.weights.export_hf import export_folder
from isrdpo_jax.weights.hf_folder import open_folder, stored_tensors
from isrdpo_jax.weights.import_hf import import_folder
from isrdpo_jax.weights.naming import collapse
from isrdpo_jax.weights.policy_folder import find_policy, packaged_tokenizer, write_policy

MODEL = with_words(TINY)
INDEX = "model.safetensors.index.json"
Q = "model.layers.{}.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A checkpoint in three shards or more."""
    root = tmp_path_factory.mktemp("checkpoints")
    write_policy(root / "policy", MODEL, packaged_tokenizer("shapes"), random_params(MODEL), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_hf, "SHARD_BYTES", 60_000)
        policy = find_policy(str(root / "policy"))
        export_folder(policy, root / "hf", layout="original", dtype="float32", say=lambda text: None)
    assert len(list((root / "hf").glob("*.safetensors"))) >= 3
    return root / "hf"


@pytest.fixture
def folder(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "hf"))


def refusal(folder: Path) -> str:
    """What an import says; nothing but the source is there afterwards."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        import_folder(
            str(folder), folder.parent / "out", say=lambda text: None, check_tokenizer=lambda folder, model: None
        )
    assert sorted(folder.parent.rglob("*")) == before
    return str(caught.value)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def rewrite(folder: Path, change) -> None:
    """Changes the tensors, now in one file without an index."""
    tensors = {name: array for shard in shards(folder) for name, array in load_file(shard).items()}
    for path in (*shards(folder), folder / INDEX):
        path.unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_truncated_shard(folder):
    shard = shards(folder)[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    message = f"{shard.name} is truncated: {len(whole) - 1000:,} bytes, and its header asks for {len(whole):,}"
    assert message in refusal(folder)
    shard.write_bytes(whole[:5])
    assert f"{shard.name} is no safetensors file (it begins with " in refusal(folder)
    shard.write_bytes(b"")
    assert f"{shard.name} is no safetensors file (it begins with '')" in refusal(folder)


def test_a_web_page_saved_as_a_shard(folder):
    shards(folder)[0].write_text("<!DOCTYPE html><html><body>Access denied</body></html>")
    assert f"{shards(folder)[0].name} is no safetensors file (it begins with '<!DOCTYPE html><')" in refusal(folder)


def test_headers_that_lie(folder):
    shard = shards(folder)[0]
    whole = shard.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")

    def write(changed: dict) -> None:
        text = json.dumps(changed).encode()
        shard.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])

    shard.write_bytes(whole[:8] + b"#" * length + whole[8 + length :])
    assert "has a damaged header (JSONDecodeError" in refusal(folder)
    write(header | {name: header[name] | {"dtype": "F99"}})
    assert "has a damaged header (KeyError: 'F99')" in refusal(folder)
    write(header | {name: header[name] | {"shape": [1, 2, 3]}})
    assert f"the offsets of {name} do not fit its shape" in refusal(folder)
    start, end = header[name]["data_offsets"]
    write(header | {name: header[name] | {"data_offsets": [start + 4, end + 4]}})
    assert "its tensors overlap or leave gaps" in refusal(folder)
    shard.write_bytes(whole + b"more")
    assert f"{shard.name} is too long" in refusal(folder)


def test_index_and_shards_that_do_not_agree(folder):
    second, first = (shard.name for shard in shards(folder)[:2])  # the second holds several
    name = next(iter(load_file(folder / first)))
    edit_index(folder, lambda index: index.pop(name))
    assert f"{INDEX} has no entry for {name} in {first}" in refusal(folder)
    edit_index(folder, lambda index: index.update({name: second}))
    message = refusal(folder)
    assert f"{second} lacks {name}" in message and f"no entry for {name} in {first}" in message
    edit_index(folder, lambda index: index.update({name: first}))
    shutil.copyfile(folder / first, folder / "model-00009-of-00009.safetensors")
    assert f"model-00009-of-00009.safetensors is there, and {INDEX} does not name it" in refusal(folder)
    (folder / "model-00009-of-00009.safetensors").unlink()
    (folder / second).unlink()
    assert f"{INDEX} names {second}, which is not there" in refusal(folder)
    (folder / INDEX).write_text('{"weight_map": [1]}')
    assert "no `weight_map` from tensors to shards" in refusal(folder)


def test_every_tensor_that_does_not_fit_is_named(folder):
    def change(tensors: dict) -> None:
        for layer in range(2):
            tensors[f"extra.layers.{layer}.w"] = np.zeros(3, np.float32)
        del tensors["lm_head.weight"]
        tensors[Q.format(0)] = tensors[Q.format(0)][:-1].copy()
        tensors[Q.format(1)] = tensors[Q.format(1)].astype(np.float16)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)

    rewrite(folder, change)
    message = refusal(folder)
    assert "(layout original)" in message and message.endswith("Nothing was written.")
    for part in (
        "missing lm_head.weight",
        "not expected extra.layers.{0-1}.w",
        "model.layers.0.self_attn.q_proj.weight is [15, 16] instead of [16, 16]",
        "model.norm.weight is of type int32",
        "is of type float16",
    ):
        assert part in message


def test_a_transposed_tensor(folder):
    def change(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].T.copy()

    rewrite(folder, change)
    v = MODEL.llama.vocab_size
    assert f"lm_head.weight is [16, {v}] instead of [{v}, 16]" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "llava_mistral"},
            "model_type is llava_mistral, and tensors are named like those of llava_llama",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, and only silu is supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is "),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type is llama3, and only default is supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true, and only false is supported"),
        ({"attention_bias": True, "mm_projector_type": "linear"}, "mm_projector_type is linear"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is "),
        ({"mm_vision_select_feature": "all"}, "only patch or cls_patch is supported"),
        ({"head_dim": 32}, "head_dim is 32, and only hidden_size / num_attention_heads is supported"),
        ({"num_hidden_layers": 3}, "missing model.layers.2.input_layernorm.weight"),
    ],
)
def test_models_of_another_kind(folder, changes, message):
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | changes))
    assert message in refusal(folder)


def test_folders_that_hold_no_checkpoint(folder, tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "this is a file" in refusal(folder / "config.json")
    (tmp_path / "empty").mkdir()
    assert "there is no file config.json" in refusal(tmp_path / "empty")
    (folder / "config.json").write_text("[]")
    assert "config.json: a JSON object is expected" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON" in refusal(folder)
    (folder / "config.json").write_text("{}")
    for path in (*shards(folder), folder / INDEX):
        path.unlink()
    assert "no checkpoint there. Expected model.safetensors or pytorch_model.bin" in refusal(folder)
    save_file({"transformer.wte.weight": np.zeros(3)}, folder / "model.safetensors")
    assert "no layout of Video-LLaVA that is known here" in refusal(folder)


def test_files_of_pytorch_say_what_they_need(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    for path in (*shards(folder), folder / INDEX):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    assert "which is not installed: pip install 'isrdpo-jax[torch]'" in refusal(folder)
    bucket = fsspec.filesystem("memory")
    bucket.put(f"{folder}/", "/bucket/bin/", recursive=True)
    with pytest.raises(CheckpointError, match="pytorch_model.bin can be read from a local disk only"):
        stored_tensors(open_folder("memory://bucket/bin"))


def test_what_a_killed_import_left_is_cleared(folder, tmp_path):
    (tmp_path / "out.partial" / "checkpoint").mkdir(parents=True)
    import_folder(str(folder), tmp_path / "out", say=lambda text: None, check_tokenizer=lambda folder, model: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_names_are_collapsed_by_layer():
    names = ["a.layers.0.w", "a.layers.1.w", "a.layers.3.w", "b", "c.layers.7.x", "d.2.w"]
    assert collapse(names) == ["a.layers.{0-1,3}.w", "b", "c.layers.7.x", "d.2.w"]
