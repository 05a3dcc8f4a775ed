"""What is exported and imported again is what was there, in every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import TINY, TINY_WITH_IMAGES, random_params
from tiny_policy import with_words

from isrdpo_jax.data.tokens import check_tokenizer, load_tokenizer
from isrdpo_jax.errors import CheckpointError, ConfigError, DataError
from isrdpo_jax.runs.checkpoint import restore_tree, tree_digest
from isrdpo_jax.schema import MeshConfig, ModelConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.weights import export_hf
from isrdpo_jax.weights.export_hf import export_folder
from isrdpo_jax.weights.import_hf import import_folder
from isrdpo_jax.weights.policy_folder import find_policy, load_params, packaged_tokenizer, write_policy
from isrdpo_jax.weights.tensors import by_name

VIDEO = with_words(TINY)
IMAGES = with_words(TINY_WITH_IMAGES)
# What the transformers port can hold: no temporal attention, class tokens kept, one size of tower.
PORT_VISION = VIDEO.vision.model_copy(update={"temporal_attention": False, "keep_cls": True, "num_heads": 4})
PORT = VIDEO.model_copy(
    update={
        "vision": PORT_VISION,
        "image": PORT_VISION.model_copy(update={"num_frames": 1, "keep_cls": False}),
    }
)
TOKENIZER = packaged_tokenizer("shapes")


def write(folder: Path, config: ModelConfig) -> Path:
    write_policy(folder, config, TOKENIZER, random_params(config), {})
    return folder


def export(policy: Path, out: Path, **options) -> list[str]:
    said: list[str] = []
    options = {"layout": "original", "dtype": "float32"} | options
    export_folder(find_policy(str(policy)), out, say=said.append, **options)
    return said


def bring_in(source: Path | str, out: Path, *settings: str) -> list[str]:
    said: list[str] = []
    check = lambda folder, model: check_tokenizer(folder, model.llama.vocab_size)  # noqa: E731
    import_folder(str(source), out, settings=settings, say=said.append, check_tokenizer=check)
    return said


def stored(policy: Path) -> dict[str, np.ndarray]:
    return by_name(restore_tree(policy / "checkpoint"))


def assert_same(policy: Path, config: ModelConfig) -> None:
    """The imported policy is the one that `write` wrote."""
    found = find_policy(str(policy))
    assert found.config == config
    expected = random_params(config)
    assert jax.tree.all(jax.tree.map(np.array_equal, restore_tree(policy / "checkpoint"), expected))
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    params, digest = load_params(found, mesh)
    assert digest == tree_digest(expected) == tree_digest(params)


@pytest.mark.parametrize("config", [VIDEO, IMAGES, PORT], ids=["video", "images", "port"])
def test_an_import_of_an_export_is_the_policy(tmp_path, config):
    said = export(write(tmp_path / "policy", config), tmp_path / "hf")
    assert said[0].startswith("layout original: ")
    told = bring_in(tmp_path / "hf", tmp_path / "back")
    assert told == [told[0]], "nothing is assumed, since the export says everything"
    assert "layout original" in told[0] and f"temporal attention {'off' if config is PORT else 'on'}" in told[0]
    assert_same(tmp_path / "back", config)
    export(tmp_path / "back", tmp_path / "again")
    assert load_file(next((tmp_path / "again").glob("*.safetensors"))).keys() == export_names(tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "back", "hf", "policy"]


def export_names(folder: Path) -> set[str]:
    return set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


PREFIXES = {  # of the hub's names in the other layouts of the port
    "saved": {"video_tower.vision_model.": "video_tower.", "image_tower.vision_model.": "image_tower."},
    "state_dict": {
        "video_tower.vision_model.": "model.video_tower.",
        "image_tower.vision_model.": "model.image_tower.",
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}


@pytest.mark.parametrize("layout", ["hub", "saved", "state_dict"])
def test_the_layouts_of_the_port(tmp_path, layout):
    said = export(write(tmp_path / "policy", PORT), tmp_path / "hf", layout="hub")
    rows = 64 * -(-(VIDEO.llama.vocab_size + 3) // 64)
    assert said[0] == f"vocabulary {VIDEO.llama.vocab_size} -> {rows}: the new rows are the mean of the others"
    tokenizer = load_tokenizer(tmp_path / "hf")
    assert tokenizer.vocab_size == VIDEO.llama.vocab_size + 3
    if layout != "hub":
        (shard,) = (tmp_path / "hf").glob("*.safetensors")
        renamed = {rename(name, PREFIXES[layout]): array for name, array in load_file(shard).items()}
        save_file(renamed, shard.with_name("model.safetensors"))
        shard.unlink()
        (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    assert bring_in(tmp_path / "hf", tmp_path / "back")[0].startswith(f"layout {layout}: ")
    found, expected = stored(tmp_path / "back"), by_name(random_params(PORT))
    old = VIDEO.llama.vocab_size
    for path, axis in (("llama.embedding", 0), ("llama.head", 1)):
        table, words = np.moveaxis(found.pop(path), axis, 0), np.moveaxis(np.asarray(expected.pop(path)), axis, 0)
        np.testing.assert_array_equal(table[:old], words)
        np.testing.assert_allclose(table[old:], np.repeat(words.mean(0)[None], rows - old, 0), atol=1e-6)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
    config = find_policy(str(tmp_path / "back")).config
    assert config == PORT.model_copy(update={"llama": PORT.llama.model_copy(update={"vocab_size": rows})})


def rename(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def test_the_port_is_refused_where_it_would_compute_something_else(tmp_path):
    config = PORT.model_copy(update={"vision": VIDEO.vision, "image": None})
    with pytest.raises(ConfigError, match="needs an image tower"):
        export(write(tmp_path / "one", config), tmp_path / "hf", layout="hub")
    with pytest.raises(ConfigError, match="one configuration for both towers"):
        export(write(tmp_path / "two", IMAGES), tmp_path / "hf", layout="hub")
    plain = VIDEO.vision.model_copy(update={"num_frames": 1, "temporal_attention": False})
    policy = write(tmp_path / "three", VIDEO.model_copy(update={"image": plain}))
    with pytest.raises(ConfigError, match="no temporal attention.* class token included.*--force"):
        export(policy, tmp_path / "hf", layout="hub")
    assert not (tmp_path / "hf").exists()
    export(policy, tmp_path / "hf", layout="hub", force=True)
    assert not any("temporal" in name for name in export_names(tmp_path / "hf"))


def test_bfloat16_stays_bfloat16_and_rounds_to_nearest(tmp_path):
    export(write(tmp_path / "policy", VIDEO), tmp_path / "hf", dtype="bfloat16")
    bring_in(tmp_path / "hf", tmp_path / "back")
    assert find_policy(str(tmp_path / "back")).config.compute_dtype == "bfloat16"
    for path, array in by_name(random_params(VIDEO)).items():
        found = stored(tmp_path / "back")[path]
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found, np.asarray(array).astype(ml_dtypes.bfloat16), err_msg=path)
    export(tmp_path / "back", tmp_path / "again", dtype="bfloat16")
    before, after = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("hf", "again"))
    assert all(np.array_equal(before[name], after[name]) for name in before.keys() | after.keys())


def test_unread_tensors_come_back_and_are_neutral_where_there_are_none(tmp_path):
    export(write(tmp_path / "policy", VIDEO), tmp_path / "hf")
    (shard,) = (tmp_path / "hf").glob("*.safetensors")
    tensors = load_file(shard)
    last = "model.video_tower.video_tower.encoder.layers.2."
    assert not tensors[f"{last}self_attn.q_proj.weight"].any() and tensors[f"{last}layer_norm1.weight"].all()
    assert tensors[f"{last}temporal_embedding"].shape == (1, 3, 16)
    rng = np.random.default_rng(0)
    norm = "model.video_tower.video_tower.post_layernorm.weight"
    unread = [name for name in tensors if name.startswith(last) or name == norm]
    assert len(unread) == 16 + 11 + 1
    for name in unread:
        tensors[name] = rng.normal(size=tensors[name].shape).astype(np.float32)
    save_file(tensors, shard)
    bring_in(tmp_path / "hf", tmp_path / "back")
    assert_same(tmp_path / "back", VIDEO)
    export(tmp_path / "back", tmp_path / "again")
    after = load_file(next((tmp_path / "again").glob("*.safetensors")))
    assert all(np.array_equal(tensors[name], after[name]) for name in tensors.keys() | after.keys())


def test_large_checkpoints_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(export_hf, "SHARD_BYTES", 40_000)
    export(write(tmp_path / "policy", VIDEO), tmp_path / "hf")
    shards = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    bring_in(tmp_path / "hf", tmp_path / "back")
    assert_same(tmp_path / "back", VIDEO)


def test_a_bucket_is_read_like_a_folder(tmp_path):
    export(write(tmp_path / "policy", VIDEO), tmp_path / "hf")
    bucket = fsspec.filesystem("memory")
    bucket.put(f"{tmp_path}/hf/", "/bucket/hound/", recursive=True)
    bring_in("memory://bucket/hound", tmp_path / "back")
    assert_same(tmp_path / "back", VIDEO)


def test_published_folders_leave_things_out_and_it_is_told(tmp_path):
    """An original folder describes no tower: what its tensors do not tell is assumed, and can be set."""
    wide = VIDEO.vision.model_copy(update={"hidden_size": 128, "num_heads": 2, "num_layers": 4})
    config = VIDEO.model_copy(update={"vision": wide})
    export(write(tmp_path / "policy", config), tmp_path / "hf")
    described = json.loads((tmp_path / "hf" / "config.json").read_text())
    for key in ("video_tower_config", "rms_norm_eps", "rope_theta", "mm_vision_select_layer"):
        del described[key]
    described["rope_scaling"] = None
    (tmp_path / "hf" / "config.json").write_text(json.dumps(described))
    told = bring_in(tmp_path / "hf", tmp_path / "back")
    assumed = {line.removeprefix("assumed ").split("=")[0] for line in told[1:]}
    assert assumed == {
        "llama.rms_norm_eps",
        "llama.rope_theta",
        "vision.num_heads",
        "vision.hidden_act",
        "vision.layer_norm_eps",
        "vision.feature_layer",
    }
    assert_same(tmp_path / "back", config)
    told = bring_in(tmp_path / "hf", tmp_path / "set", "vision.hidden_act=quick_gelu", "llama.rms_norm_eps=1e-6")
    assert not any("hidden_act" in line or "rms_norm_eps" in line for line in told)
    changed = find_policy(str(tmp_path / "set")).config
    assert changed.vision.hidden_act == "quick_gelu" and changed.llama.rms_norm_eps == 1e-6


def test_settings_that_cannot_be_used(tmp_path):
    export(write(tmp_path / "policy", VIDEO), tmp_path / "hf")
    for setting, message in (
        ("vision.hidden_act", "--set vision.hidden_act: write a key"),
        ("vision.activation=gelu", "vision.activation: Extra inputs are not permitted"),
        ("vision.hidden_act=relu", "vision.hidden_act: Input should be 'gelu' or 'quick_gelu'"),
        ("towers.act=relu", "--set towers.act=relu: write a key"),
    ):
        with pytest.raises(ConfigError, match=message):
            bring_in(tmp_path / "hf", tmp_path / "back", setting)
    assert not (tmp_path / "back").exists()


def test_buffers_are_passed_over(tmp_path):
    export(write(tmp_path / "policy", VIDEO), tmp_path / "hf")
    (shard,) = (tmp_path / "hf").glob("*.safetensors")
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "model.rotary_emb.inv_freq": np.ones(2, np.float32),
        "model.video_tower.video_tower.embeddings.position_ids": np.arange(5),
    }
    save_file(load_file(shard) | buffers, shard.with_name("model.safetensors"))
    shard.unlink()
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    bring_in(tmp_path / "hf", tmp_path / "back")
    assert_same(tmp_path / "back", VIDEO)


def test_a_folder_that_is_there_is_never_written_over(tmp_path):
    policy = write(tmp_path / "policy", VIDEO)
    export(policy, tmp_path / "hf")
    for act in (lambda: export(policy, tmp_path / "hf"), lambda: bring_in(tmp_path / "hf", policy)):
        with pytest.raises(CheckpointError, match="is there already"):
            act()


def test_a_tokenizer_that_does_not_serve_is_refused_before_anything_is_written(tmp_path):
    export(write(tmp_path / "policy", VIDEO), tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").rename(tmp_path / "kept.json")
    (tmp_path / "hf" / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="no tokenizer there; tokenizer.model or tokenizer.json is needed"):
        bring_in(tmp_path / "hf", tmp_path / "back")
    shutil.copytree(TOKENIZER, tmp_path / "hf", dirs_exist_ok=True)
    small = VIDEO.model_copy(update={"llama": VIDEO.llama.model_copy(update={"vocab_size": 100})})
    write_policy(tmp_path / "small", small, TOKENIZER, random_params(small), {})
    export(tmp_path / "small", tmp_path / "small_hf")
    with pytest.raises(DataError, match=f"has {VIDEO.llama.vocab_size} tokens, and the model's vocabulary 100"):
        bring_in(tmp_path / "small_hf", tmp_path / "back")
    assert not list(tmp_path.glob("back*"))
