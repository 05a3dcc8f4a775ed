"""configs/mesh: each file fits the topology that its name says, with the recipe for the 7B model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from isrdpo_jax.config import load_config
from isrdpo_jax.schema import LlamaConfig
from isrdpo_jax.yaml_tree import read_plain

CONFIGS = Path(__file__).parents[2] / "configs"
MESHES = sorted((CONFIGS / "mesh").glob("*.yaml"))
TOPOLOGIES = {"v5e_4x4", "v5e_4x8", "v5p_2x2x2", "v5p_2x2x4", "v6e_2x4", "v6e_4x4", "v6e_16x16", "gpu_1", "cpu_1"}


def test_every_topology_has_a_file():
    assert {path.stem for path in MESHES} == TOPOLOGIES


@pytest.mark.parametrize("path", MESHES, ids=lambda path: path.stem)
def test_a_mesh_takes_all_chips_and_every_batch_splits_over_it(path: Path):
    base = CONFIGS / ("shapes.yaml" if path.stem == "cpu_1" else "video_llava_7b.yaml")
    config = load_config(base, [f"include={path}"]).config
    mesh, dpo = config.mesh, config.dpo
    chips = math.prod(map(int, path.stem.partition("_")[2].split("x")))
    assert mesh.data * mesh.fsdp * mesh.tensor == chips
    ways = mesh.data * mesh.fsdp
    pairs, rest = divmod(dpo.batch_size, dpo.accumulation_steps)
    assert rest == 0
    for size in (pairs, config.collect.batch_videos, config.collect.lanes or ways):
        assert size % ways == 0
    assert LlamaConfig().num_heads % mesh.tensor == 0
    assert f"include=configs/mesh/{path.name}" in path.read_text(), "the file says how it is used"


@pytest.mark.parametrize("path", MESHES, ids=lambda path: path.stem)
def test_a_mesh_changes_how_a_run_goes_and_not_what_is_learnt(path: Path):
    sections = read_plain(str(path))
    kept = {section: set(values) for section, values in sections.items()}
    allowed = {
        "mesh": {"data", "fsdp", "tensor"},
        "dpo": {"accumulation_steps"},
        "collect": {"batch_videos", "lanes"},
    }
    assert all(keys <= allowed[section] for section, keys in kept.items())
