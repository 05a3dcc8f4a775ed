"""`isrdpo plan` with the real compiler: a reduced model on slices that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

VISION = {"image_size": 112, "hidden_size": 256, "intermediate_size": 1024, "num_layers": 3, "num_heads": 4}
LLAMA = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2816, "num_layers": 5, "num_heads": 8}
KV_HEADS = 4
CONFIG = {
    "start": "not/here",
    "model": {"vision": {**VISION, "num_frames": 8}, "llama": {**LLAMA, "num_kv_heads": KV_HEADS}},
    "sampling": {"max_new_tokens": 96},
    "describe": {"max_new_tokens": 96},
    "collect": {"batch_videos": 32, "turn_tokens": 192},
    "dpo": {"batch_size": 32, "accumulation_steps": 2},
    "compute": {"dtype": "bfloat16", "remat": "full", "attention": "splash"},
    "evaluation": {"enabled": False},
}
COMPUTING = ["encode", "prefill", "read", "judge", "reference", "dpo_step"]
GIB = 2**30
PROGRAMS = [
    "unstack", "encode", "prefill", "place", "read", "describe", "decode", "judge", "reference", "dpo_step",
]  # fmt: skip
STATE = 3 * 4  # bytes of a parameter with both its moments, float32


@pytest.fixture(scope="module")
def isrdpo(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    path: Path = tmp_path_factory.mktemp("plan") / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "isrdpo_jax", "plan", str(path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return call


@pytest.fixture(scope="module")
def plan(isrdpo) -> dict:
    done = isrdpo("--topology", "v5e:4x4", "--videos", "1000", "--json")
    assert done.returncode == 0, f"`make test-tpu-compile` installs what this needs.\n{done.stderr[-4000:]}"
    assert all(f"  {name}: " in done.stderr for name in PROGRAMS)  # said as they come
    return json.loads(done.stdout)


def decoder_parameters() -> int:
    d, kv = LLAMA["hidden_size"], LLAMA["hidden_size"] * KV_HEADS // LLAMA["num_heads"]
    layer = 2 * d * d + 2 * d * kv + 3 * d * LLAMA["intermediate_size"]
    return LLAMA["num_layers"] * layer + 2 * d * LLAMA["vocab_size"]


def test_every_program_of_an_iteration_is_planned(plan):
    assert (plan["topology"], plan["chip"], plan["devices"], plan["chips"]) == ("v5e:4x4", "v5e", 16, 16)
    assert [program["name"] for program in plan["programs"]] == PROGRAMS
    assert plan["fits"]
    assert plan["host_bytes"] < 16 * GIB
    assert len({program["fingerprint"] for program in plan["programs"]}) == len(PROGRAMS)


def test_a_loop_of_a_tpu_program_is_counted_and_nothing_needed_is_missing(plan):
    """Executed FLOPs are the useful ones where nothing is padded or computed again, and little more elsewhere."""
    programs = {program["name"]: program for program in plan["programs"]}
    ratio = {name: programs[name]["executed_flops"] / programs[name]["flops"] for name in COMPUTING}
    assert all(program["unknown_loops"] == 0 for program in plan["programs"])
    assert ratio["encode"] == pytest.approx(1, rel=0.01)
    assert all(0.98 < ratio[name] < 1.35 for name in COMPUTING), ratio
    assert ratio["dpo_step"] > 1.15  # a forward more


def test_the_step_holds_state_and_the_policy_that_it_copies(plan):
    step = plan["programs"][-1]
    share = decoder_parameters() / plan["chips"]
    assert step["argument_bytes"] == pytest.approx(STATE * share, rel=0.1)
    assert step["held_bytes"] == pytest.approx(4 * share, rel=0.3)
    assert step["hbm_bytes"] == step["argument_bytes"] + step["held_bytes"] + step["temp_bytes"]


def test_parameters_are_gathered_over_the_interconnect(plan):
    """Each micro-batch needs all parameters twice in bfloat16 and reduces a gradient."""
    step = plan["programs"][-1]
    micro = CONFIG["dpo"]["accumulation_steps"] * 2 * decoder_parameters() * 15 / 16
    assert 2 * micro < step["collective_bytes"] < 8 * micro
    assert step["bytes_accessed"] > 0


def test_the_iteration_costs_what_its_programs_take(plan):
    seconds = sum(program["calls"] * program["seconds"] for program in plan["programs"])
    assert plan["iteration"]["seconds"] == pytest.approx(seconds)
    assert plan["iteration"]["cost"] == pytest.approx(seconds / 3600 * 16 * plan["price"]["per_chip_hour"])


def test_a_step_that_does_not_fit_is_reported_with_what_to_change(isrdpo):
    done = isrdpo(
        "--topology", "v5e:2x2", "--json", "dpo.batch_size=4096", "dpo.accumulation_steps=1", "compute.attention=xla",
        "collect.batch_videos=4096",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    plan = json.loads(done.stdout)
    step = plan["programs"][-1]
    assert not plan["fits"]
    assert (step["fits"], step["seconds"], plan["iteration"]["seconds"]) == (False, None, None)
    assert step["hbm_bytes"] > 16 * GIB
    assert step["knob"].startswith("compute.attention=splash")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--topology", "v5e:3x3"], "v5e:3x3: INVALID_ARGUMENT"),
        (["--topology", "v4:2x2x1"], "no figures are known for the chip 'TPU v4'"),
        (["--topology", "v5e:4x4", "mesh.fsdp=3"], "needs a multiple of 3 devices and there are 16"),
        (["--topology", "v5e:4x4", "collect.batch_videos=8"], "collect.batch_videos=8, collect.lanes=16: the first"),
    ],
)
def test_what_cannot_be_planned_is_the_users_error(isrdpo, words, told):
    done = isrdpo(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
