"""`isrdpo sft`: a start policy from nothing, in one command that may be killed at any moment."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import yaml
from tiny import assert_trees_equal
from tiny_run import MODEL, SETTINGS, Lab

from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.runs.atomic import read_json, read_jsonl
from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import make_mesh
from isrdpo_jax.weights.policy_folder import CARD, TENSORS, find_policy, load_params

SEED = 20
KILLS = 3
STEPS = 4  # of each phase


@pytest.fixture(scope="module")
def config(lab: Lab) -> Path:
    phases = [
        {"steps": STEPS, "learning_rate": 2e-3, "batch_videos": 4, "mixture": {"describe": 1.0}},
        {
            "steps": STEPS,
            "learning_rate": 1e-3,
            "batch_videos": 4,
            "mixture": {"answer": 1.0, "judge": 0.5},
            "text_rows": 4,
            "text_weight": 0.5,
        },
    ]
    settings = {
        "start": "shapes",
        "run": {"dir": str(lab.root / "runs")},
        "data": {"dir": str(lab.root / "data"), "sft_videos": 10, "eval_videos": 12},
        "model": json.loads(MODEL.model_dump_json()),
        "sft": {"phases": phases, "log_every": 1},
        **{name: SETTINGS[name] for name in ("describe", "evaluation", "checkpoint")},
    }
    path = lab.root / "sft.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def trained(lab: Lab, config: Path) -> Path:
    lab.isrdpo("sft", config, "run.name=sft")
    return lab.layout("sft").root / "policy"


def params(policy: Path):
    return load_params(find_policy(str(policy)), make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1)))[0]


def test_the_policy_answers_and_its_card_says_how_it_was_made(trained: Path, lab: Lab, isrdpo):
    assert isrdpo("ask", trained, lab.video, "What does the red thing do?", "--max-new-tokens", 4, "--json").code == 0
    card = read_json(trained / CARD)
    assert card["seed"] == 0 and card["videos"] == 10 and card["seconds"] >= 0 and len(card["sha256"]) == 64
    assert card["parameters"] == sum(leaf.size for leaf in leaves(params(trained)))
    assert card["heldout"]["accuracy"]["count"] == 24
    assert {"command", "data", "device", "policy"} <= card.keys()
    steps = [row["step"] for row in read_jsonl(lab.layout("sft").iteration(0).metrics)]
    assert steps == list(range(1, 2 * STEPS + 1))


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_killed_at_random_moments_it_makes_the_same_policy(trained: Path, lab: Lab, config: Path):
    chance = random.Random(SEED)
    layout = lab.layout("sft_killed")
    metrics, policy = layout.iteration(0).metrics, layout.root / "policy"
    moments = []
    for _ in range(KILLS):
        behind, pause = chance.randint(0, 2 * STEPS - 1), chance.uniform(0, 0.1)
        moments.append((behind, round(pause, 3)))
        child = lab.start("sft", config, "run.name=sft_killed")
        while child.poll() is None and steps_done(metrics) < behind:
            time.sleep(0.002)
        time.sleep(pause)
        child.kill()
        child.communicate()
    print(f"seed {SEED}, killed behind these steps, after these seconds: {moments}")
    lab.isrdpo("sft", config, "run.name=sft_killed")
    assert_trees_equal(params(policy), params(trained))
    assert read_jsonl(metrics) == read_jsonl(lab.layout("sft").iteration(0).metrics)
    untimed = [
        {name: value for name, value in read_json(one / CARD).items() if name != "seconds"} for one in (policy, trained)
    ]
    assert untimed[0] == untimed[1]


def steps_done(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def test_a_finished_policy_is_left_alone_and_another_configuration_refused(trained: Path, config: Path, isrdpo):
    before = (trained / TENSORS).stat().st_mtime_ns
    assert isrdpo("sft", config, "run.name=sft").code == 0
    refused = isrdpo("sft", config, "run.name=sft", "sft.weight_decay=0.1")
    assert refused.code == 2 and "another configuration" in refused.err
    assert (trained / TENSORS).stat().st_mtime_ns == before


def test_a_flipped_byte_is_refused(trained: Path, lab: Lab, tmp_path: Path, isrdpo):
    copy = tmp_path / "policy"
    shutil.copytree(trained, copy)
    content = bytearray((copy / TENSORS).read_bytes())
    content[-5] ^= 1
    (copy / TENSORS).write_bytes(content)
    with pytest.raises(CheckpointError, match="was changed"):
        params(copy)
    refused = isrdpo("ask", copy, lab.video, "What moves?")
    assert refused.code == 2 and str(copy / TENSORS) in refused.err


@pytest.mark.parametrize("missing", ["model=null", "sft.phases=[]"])
def test_without_a_model_or_phases_it_says_what_is_missing(config: Path, isrdpo, missing: str):
    refused = isrdpo("sft", config, "run.name=none", missing)
    assert refused.code == 2 and "needs a `model` section and at least one entry of `sft.phases`" in refused.err


def test_an_image_tower_that_nothing_would_train_is_refused(config: Path, isrdpo):
    tower = "{num_frames: 1, temporal_attention: false, hidden_size: 16, num_heads: 2}"
    refused = isrdpo("sft", config, "run.name=none", f"model.image={tower}")
    assert refused.code == 2 and "an image tower would stay random" in refused.err


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_anything_is_read(config: Path, isrdpo):
    refused = isrdpo("sft", config, "run.name=split")  # in this process there are 8 devices
    assert refused.code == 2 and "sft.phases[0].batch_videos=4 does not split over data x fsdp = 8" in refused.err
