"""`isrdpo plan` on the command line, with the compiler's part played."""

from __future__ import annotations

import json
import sys

import pytest
from synthetic_plan import NAMES, outcome

from isrdpo_jax import cli
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.plan import planner, sweep
from isrdpo_jax.runs.atomic import write_json, write_jsonl
from isrdpo_jax.runs.layout import RunLayout
from isrdpo_jax.schema import CollectConfig


@pytest.fixture
def isrdpo(tmp_path, monkeypatch, capsys):
    """Runs the command; returns exit code, stdout and stderr."""
    path = tmp_path / "config.yaml"
    path.write_text("{start: gone, evaluation: {enabled: false}}")

    def run_job(job, on_program=lambda one, so_far: None):
        played = outcome()
        for one in played.programs:
            on_program(one, played)
        return played

    monkeypatch.setattr(planner, "run_job", run_job)
    monkeypatch.setattr(sweep, "run_job", run_job)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["isrdpo", "plan", str(path), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


def test_json_is_one_object_and_programs_are_told_on_stderr(isrdpo):
    code, out, err = isrdpo("--topology", "v5e:4x4", "--videos", "100", "--questions", "3", "--price", "2", "--json")
    plan = json.loads(out)
    assert code == 0
    assert [program["name"] for program in plan["programs"]] == list(NAMES)
    assert (plan["assumed"]["videos"], plan["iteration"]["pairs"], plan["price"]["per_chip_hour"]) == (100, 300, 2)
    assert all(f"  {name}: 10.00 GiB of HBM" in err for name in NAMES)


def test_tables_for_people(isrdpo):
    code, out, _ = isrdpo("--topology", "v5e:4x4")
    assert code == 0
    assert all(name in out for name in NAMES)
    assert "Everything fits" in out and "Video-LLaVA 7B" in out


def test_a_sweep_is_told_as_it_goes_and_ranked(isrdpo):
    code, out, err = isrdpo("--topology", "v5e:2x2", "--sweep-mesh", "--json")
    assert code == 0
    assert len(json.loads(out)["plans"]) == 9
    assert err.count("iteration at least") == 9


def test_measured_times_stand_beside_the_planned_ones(isrdpo, tmp_path):
    run = RunLayout(tmp_path / "run")
    write_json(run.run_json, {})
    for number in range(3):
        write_jsonl(run.iteration(1).part("judgements", 0, number), [])
    code, out, _ = isrdpo("--topology", "v5e:4x4", "--run", str(run.root), "--json")
    assert code == 0
    assert json.loads(out)["measured"]["collect"]["of"] == 2
    plan = json.loads(out)
    collect = sum(plan["calls"]["collect"].values())  # every call takes a second
    a_batch = CollectConfig().batch_videos / plan["assumed"]["videos"]
    assert plan["measured"]["collect"]["planned_seconds"] == pytest.approx(a_batch * collect)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--topology", "v5e"), "such as v5e:4x4"),
        (("--topology", "v5e:4x4", "--run", "nowhere"), "there is no run"),
        (("dpo.betta=1", "--topology", "v5e:4x4"), "dpo.beta"),
    ],
)
def test_the_users_mistakes(isrdpo, words, told):
    code, out, err = isrdpo(*words)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())


def test_without_libtpu_it_says_what_to_install(isrdpo, monkeypatch):
    def run_job(job, **_):
        raise ConfigError("libtpu is not installed here: pip install 'isrdpo-jax[tpu]'")

    monkeypatch.setattr(planner, "run_job", run_job)
    code, _, err = isrdpo("--topology", "v5e:4x4")
    assert code == 2
    assert "isrdpo-jax[tpu]" in " ".join(err.split())
