"""`benchmarks/effect.py` and `benchmarks/judge_agreement.py` in small: start policies, experiments, tables."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from tiny_run import MODEL, SETTINGS, Lab, on_one_device

from isrdpo_jax.runs.atomic import read_json, read_jsonl
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.runs.manifest import load_manifest
from isrdpo_jax.runs.shared_stages import shared_from

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEEDS = (0, 1)


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(lab: Lab, tmp_path_factory) -> Path:
    """Runs of two seeds and two experiments, one of which goes on for a second iteration."""
    root = tmp_path_factory.mktemp("effect")
    phase = {"steps": 2, "learning_rate": 1e-3, "batch_videos": 4, "mixture": {"describe": 1.0}}
    data = {"dir": str(root / "data"), "sft_videos": 6, "train_videos": 6, "eval_videos": 4}
    small = {name: SETTINGS[name] for name in ("describe", "evaluation", "checkpoint")}
    sft = {"data": data, "model": json.loads(MODEL.model_dump_json()), "sft": {"phases": [phase]}, **small}
    (root / "sft.yaml").write_text(yaml.safe_dump(sft))
    (root / "run.yaml").write_text(yaml.safe_dump({**SETTINGS, "data": data}))
    effect = program("effect")
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        patch.setattr(effect, "METHODS", {"isr_dpo": 2, "self_rewarding": 1, "no_retrospection": 2})
        patch.setattr(effect, "SHORT", 1)
        patch.setattr(effect, "LONG", 2)
        places = ["--config", root / "run.yaml", "--sft", root / "sft.yaml", "--runs", root / "runs", "--out", root]
        seeds = map(str, SEEDS)
        patch.setattr(sys, "argv", list(map(str, ["effect.py", *places, "--seeds", *seeds])))
        effect.main()
    return root


def test_the_table_holds_what_the_runs_measured(folder: Path):
    rows = read_json(folder / "effect.json")["rows"]
    assert [(row["case"], row["iterations"], row["seeds"]) for row in rows] == [
        ("start", 0, [0, 1]),
        ("isr_dpo", 1, [0, 1]),
        ("self_rewarding", 1, [0, 1]),
        ("no_retrospection", 1, [0, 1]),
        ("isr_dpo", 2, [0, 1]),
        ("no_retrospection", 2, [0, 1]),
    ]
    for row in rows:
        method = "isr_dpo" if row["case"] == "start" else row["case"]
        for seed in SEEDS:
            one = RunLayout(folder / "runs" / f"seed_{seed}" / method).iteration(row["iterations"])
            told = read_json(one.evaluation / "summary.json")
            for name, figure in row["by_seed"][str(seed)].items():
                assert (figure["value"], figure["count"]) == (pytest.approx(told[name]["value"]), told[name]["count"])
    _, ours, theirs, *_ = rows
    gain = ours["accuracy"]["value"] - theirs["accuracy"]["value"]
    assert ours["accuracy_gain"]["value"] == pytest.approx(gain) and "accuracy_gain" not in theirs
    first, second, third = (part.splitlines() for part in (folder / "effect.md").read_text().split("\n\n"))
    assert len(first) == len(second) == len(rows) + 2
    assert len(third) == 2 + (2 + 1) + (1 + 1), "ISR-DPO's and self-rewarding's iterations, their starts included"
    assert all(len({line.count("|") for line in part}) == 1 for part in (first, second, third))


def test_curves_are_those_of_the_runs(folder: Path):
    told = read_json(folder / "effect.json")
    curves = told["curves"]
    for row in told["rows"][1:]:
        means = program("effect").pooled(curves[row["case"]]["false_share"], row["iterations"])
        assert means == (pytest.approx(row["false_share"]["value"]), len(SEEDS)), "one figure in both tables"
    for method, iterations in {"isr_dpo": 2, "self_rewarding": 1, "no_retrospection": 2}.items():
        for seed in SEEDS:
            one = RunLayout(folder / "runs" / f"seed_{seed}" / method)
            done = [read_json(layout.evaluation / "summary.json") for layout in one.iterations()]
            assert len(done) == iterations + 1
            for key in ("accuracy", "words"):
                here = curves[method][key][seed]
                assert [one["value"] for one in here] == [summary[key]["value"] for summary in done]
            assert len(curves[method]["length_ratio"][seed]) == iterations, "the start has no pairs"
    assert (folder / "effect.svg").read_text().count("Words per answer") == 1


def test_every_seed_has_a_start_policy_of_its_own(folder: Path):
    digests = {read_json(folder / f"runs/seed_{seed}/start/policy/card.json")["policy"] for seed in SEEDS}
    assert len(digests) == len(SEEDS)


def test_what_the_experiments_of_a_seed_have_in_common_is_made_once(folder: Path):
    start = load_manifest(RunLayout(folder / "runs/seed_0/no_retrospection").iteration(0).manifest("evaluate"))
    assert shared_from(start) == "isr_dpo/iter_00"


def test_the_judges_are_asked_again_on_the_same_pairs(folder: Path, monkeypatch, capsys):
    agreement = program("judge_agreement")
    places = ["--runs", folder / "runs", "--out", folder, "--seeds", *SEEDS, "--iterations", 1, 2]
    monkeypatch.setattr(sys, "argv", list(map(str, ["judge_agreement.py", *places])))
    on_one_device(monkeypatch)
    agreement.main()
    assert capsys.readouterr().out.strip() == (folder / "judge_agreement.md").read_text().strip()
    result = read_json(folder / "judge_agreement.json")
    first, second, both = result["judges"]
    for name in (agreement.STORED, *agreement.SETTINGS):
        counts = [part["all"][name]["agreement"]["count"] for part in (first, second, both)]
        assert counts[2] == counts[0] + counts[1]
    kept = folder / "runs/seed_1/isr_dpo/iter_02/rejudged"
    assert len(list(kept.glob("*.jsonl"))) == len(agreement.SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in kept.glob("*")}
    agreement.main()
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*")} == before, "nothing is judged twice"
    true = read_jsonl(kept / "context-truth.jsonl")
    assert {row["context"] for row in true if row["verdict"] is not None} <= {
        row["context"] for row in true if row["context"].endswith(".")
    }
    one, two = result["contexts"]
    assert one["isr_dpo"] == one["no_retrospection"] and sum(two["isr_dpo"]["became"].values()) > 0
