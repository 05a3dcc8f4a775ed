from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from isrdpo_jax.runs.layout import STAGES, RunLayout, manifest_path


def test_paths_are_those_that_users_know():
    run = RunLayout(Path("runs/demo"))
    third = run.iteration(3)
    paths = [
        run.config, run.run_json, run.lock, run.report, third.pairs, third.metrics, third.checkpoint, third.evaluation,
        third.part("responses", 0, 12), third.part("reference", 1, 2), third.train_step(10), third.manifest("collect"),
        manifest_path(third.checkpoint), manifest_path(third.train_step(10)),
    ]  # fmt: skip
    assert [path.relative_to("runs/demo").as_posix() for path in paths] == [
        "config.yaml", "run.json", "lock", "report/index.html", "iter_03/pairs.jsonl", "iter_03/metrics.jsonl",
        "iter_03/checkpoint", "iter_03/evaluation", "iter_03/responses/part-00000-00012.jsonl",
        "iter_03/reference/part-00001-00002.jsonl", "iter_03/train/step_00000010", "iter_03/collect.manifest.json",
        "iter_03/checkpoint.manifest.json", "iter_03/train/step_00000010.manifest.json",
    ]  # fmt: skip
    assert STAGES == ("collect", "pairs", "reference", "optimize", "evaluate")


def test_listings_are_in_order_and_ignore_what_is_not_theirs(tmp_path: Path):
    run = RunLayout(tmp_path / "run")
    assert run.iterations() == [] and run.iteration(1).train_steps() == [] and run.iteration(1).parts("pairs") == []
    for t in (10, 2, 100, 0):
        run.iteration(t).root.mkdir(parents=True)
    (run.root / "iter_x").mkdir()
    assert [iteration.index for iteration in run.iterations()] == [0, 2, 10, 100]

    iteration = run.iteration(2)
    for step in (20, 3):
        iteration.train_step(step).mkdir(parents=True)
    (iteration.train / "step_00000030.orbax-checkpoint-tmp").mkdir()
    assert iteration.train_steps() == [3, 20]

    for process, batch in ((1, 0), (0, 11), (0, 2)):
        path = iteration.part("responses", process, batch)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (iteration.responses / ".part-00000-00003.jsonl.0123456789abcdef.tmp").touch()
    assert iteration.parts("responses") == [iteration.part("responses", *at) for at in ((0, 2), (0, 11), (1, 0))]


@pytest.mark.parametrize("module", ["layout", "atomic", "manifest", "lock", "metrics", "preemption"])
def test_no_module_but_checkpoint_imports_jax(module: str):
    code = f"import sys, isrdpo_jax.runs.{module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_importing_checkpoint_starts_no_backend():
    code = "import isrdpo_jax.runs.checkpoint; from jax._src import xla_bridge; assert not xla_bridge._backends"
    subprocess.run([sys.executable, "-c", code], check=True)
