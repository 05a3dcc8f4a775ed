"""Every experiment and sweep that ships: what it differs in from the config that it stands on, and in nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from isrdpo_jax.config import diff_configs, leaves, load_config
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.sweep.points import read_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = [CONFIGS / "shapes.yaml", CONFIGS / "video_llava_7b.yaml"]
EXPERIMENTS = {
    "isr_dpo": {},
    "self_rewarding": {"judge.context": "none"},
    "no_retrospection": {"judge.context": "fresh"},
    "blind_judge": {"judge.video": "blank"},
    "text_judge": {"judge.mode": "text"},
    "rubric_judge": {"judge.mode": "rubric"},
    "reference_initial": {"dpo.reference": "initial"},
    "random_preferences": {"judge.mode": "random", "judge.context": "none"},
    "true_preferences": {"judge.mode": "truth", "judge.context": "none"},
    "nine_iterations": {"run.iterations": 9},
}
SWEEPS = {
    "beta": [{"dpo.beta": 0.03}, {}, {"dpo.beta": 0.3}, {"dpo.beta": 1.0}],
    "temperature": [{"sampling.temperature": 0.5}, {"sampling.temperature": 0.7}, {}, {"sampling.temperature": 1.3}],
    "ld_alpha": [*({"dpo.ld_alpha": alpha} for alpha in (0.0, 0.25, 0.5, 0.75)), {}],
    "loss": [{}, {"dpo.loss": "ipo"}, {"dpo.loss": "hinge"}, {"dpo.loss": "robust", "dpo.label_smoothing": 0.1}],
    "experiments": [
        values | ({"run.seed": seed} if seed else {})
        for name, values in EXPERIMENTS.items()
        if name not in ("nine_iterations", "random_preferences", "true_preferences")
        for seed in (0, 1, 2)
    ],
}


def differences(base, config, *, without: tuple[str, ...] = ("run.name",)) -> dict[str, object]:
    return {key: value for key, _, value in diff_configs(base, config) if key not in without}


def test_there_are_no_others():
    assert {path.stem for path in (CONFIGS / "experiments").glob("*")} == EXPERIMENTS.keys()
    assert {path.stem for path in (CONFIGS / "sweeps").glob("*")} == SWEEPS.keys()


@pytest.mark.parametrize("base", BASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_changes_what_it_is_about(base: Path, name: str):
    plain, overrides = load_config(base).config, [f"include={CONFIGS}/experiments/{name}.yaml"]
    if name == "true_preferences" and plain.data.dataset != "shapes_world":
        with pytest.raises(ConfigError, match=r"judge.mode=truth .* need a data set with ground truth"):
            load_config(base, overrides)
        return
    config = load_config(base, overrides).config
    changed = {key: value for key, value in EXPERIMENTS[name].items() if dict(leaves(plain))[key] != value}
    assert differences(plain, config) == changed
    assert config.run.name == name


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_changes_what_it_is_about(name: str):
    plain = load_config(BASES[0]).config
    sweep = read_sweep(CONFIGS / "sweeps" / f"{name}.yaml")
    found = [
        differences(plain, point.config, without=("run.name", "run.dir", "run.iterations")) for point in sweep.points
    ]
    assert found == SWEEPS[name]
    assert sweep.root == Path("runs") / name
    larger = read_sweep(CONFIGS / "sweeps" / f"{name}.yaml", ["start=models/mine"], BASES[1])
    assert {(p.config.start, p.config.compute.dtype) for p in larger.points} == {("models/mine", "bfloat16")}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_commands_in_the_comments_name_files_that_exist(path: Path):
    commands = re.findall(r"isrdpo .*", path.read_text())
    assert commands or path.parent.name == "mesh"
    for command in commands:
        for named in re.findall(r"configs/[\w/]+\.yaml", command):
            assert (CONFIGS.parent / named).is_file()
