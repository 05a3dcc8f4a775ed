"""Every device program of an iteration compiles for a real TPU topology, sharded as the rules say, and fits its chips.

The compiler is libtpu's own; the chips are described to it, not there. It is told so by its environment, which must not
reach the other tests, so it works in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOPOLOGY, CHIP_BYTES = "v5e:4x4", 16 * 2**30
MESHES = [{"fsdp": 8, "tensor": 2}, {"data": 2, "fsdp": 8}]
PROGRAMS = [
    "encode", "prefill", "unstack", "place", "read", "decode", "place_int8", "decode_int8", "next_token_logprobs",
    "pair_logprobs", "dpo_step",
]  # fmt: skip
ABSENT_CHIPS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody holds a chip
}


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env={**os.environ, **ABSENT_CHIPS}, capture_output=True, text=True)
    assert done.returncode == 0, f"`make test-tpu-compile` installs what this needs.\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    return json.loads(run("compile_programs.py", TOPOLOGY, *map(json.dumps, MESHES)))


@pytest.fixture(params=range(len(MESHES)), ids=[" ".join(f"{k}={v}" for k, v in mesh.items()) for mesh in MESHES])
def case(request, reports) -> tuple[dict, dict]:
    """A mesh and what was compiled for it."""
    mesh = {"data": 1, "fsdp": 1, "tensor": 1, **MESHES[request.param]}
    return mesh, reports[request.param]


def test_every_program_compiles_and_fits_a_chip(case):
    _, report = case
    assert list(report["programs"]) == PROGRAMS
    peak = {name: program["peak_bytes"] for name, program in report["programs"].items()}
    assert all(0 < size < CHIP_BYTES for size in peak.values()), peak


def test_the_train_state_is_spread_over_fsdp_and_tensor_and_updated_in_place(case):
    """What a step donates and gets back in place is the state: parameters and both moments of the decoder."""
    mesh, report = case
    share = report["state_bytes"] / (mesh["fsdp"] * mesh["tensor"])
    step = report["programs"]["dpo_step"]
    assert step["donated_bytes"] == pytest.approx(share, rel=0.1)
    assert step["argument_bytes"] >= step["donated_bytes"]


def test_the_step_gathers_parameters_and_reduces_gradients(case):
    _, report = case
    collectives = report["programs"]["dpo_step"]["collectives"]
    assert collectives.get("all-gather", 0) > 0, collectives
    assert collectives.get("reduce-scatter", 0) + collectives.get("all-reduce", 0) > 0, collectives


def test_features_and_caches_stay_split_over_their_videos(case):
    mesh, report = case
    ways = mesh["data"] * mesh["fsdp"]
    assert report["features_split"] == ways
    assert report["cache_split"] == {"batch": ways, "kv_heads": mesh["tensor"]}


def test_attention_of_whole_rows_is_the_kernel(case):
    """Twice where there is a gradient: its own pass for the queries, and one for keys and values."""
    _, report = case
    kernels = {name: program["kernels"] for name, program in report["programs"].items()}
    assert kernels["prefill"] == kernels["pair_logprobs"] == 1, kernels
    assert kernels["dpo_step"] == 4, kernels  # forward, forward again, and the two


def test_decoding_moves_activations_and_leaves_parameters_where_they_are(case):
    _, report = case
    gathered = report["programs"]["decode"]["gathered"]
    assert max(map(math.prod, gathered)) <= report["largest_activation"], gathered


@pytest.mark.parametrize("name", ["place", "read", "decode", "next_token_logprobs"])
def test_no_cache_travels_between_chips(case, name):
    """Places and slots are found within a chip's own lanes."""
    _, report = case
    gathered = report["programs"][name]["gathered"]
    assert not [shape for shape in gathered if set(shape) & set(report["cache_lengths"])], gathered


def test_prefixes_and_slots_are_updated_in_place(case):
    _, report = case
    programs = report["programs"]
    donated = {name: programs[name]["donated_bytes"] for name in ("place", "read", "decode")}
    assert donated["place"] >= report["prefixes_bytes"]
    assert min(donated["read"], donated["decode"]) >= report["slots_bytes"], (donated, report["slots_bytes"])


def test_decoding_copies_no_prefixes(case):
    _, report = case
    assert report["programs"]["decode"]["temp_bytes"] < 0.75 * report["prefixes_bytes"]


def test_rounded_prefixes_are_read_as_they_are(case):
    """No rescaled copy of a layer: what decoding needs beside its arguments hardly grows, and the arguments shrink."""
    _, report = case
    exact, rounded = (report["programs"][name] for name in ("decode", "decode_int8"))
    assert rounded["temp_bytes"] - exact["temp_bytes"] < 0.1 * report["prefixes_bytes"]
    assert exact["argument_bytes"] - rounded["argument_bytes"] > 0.3 * report["prefixes_bytes"]


@pytest.mark.parametrize(("topology", "fsdp"), [("v5e:4x8", 16), ("v5p:2x2x4", 8), ("v6e:16x16", 128)])
def test_a_mesh_lies_on_slices_of_any_shape(topology: str, fsdp: int):
    """fsdp x 2 chips: on 16 x 16 chips, an axis of the torus is split."""
    assert run("lay_mesh.py", topology, json.dumps({"fsdp": fsdp, "tensor": 2})).split() == ["1", str(fsdp), "2"]
