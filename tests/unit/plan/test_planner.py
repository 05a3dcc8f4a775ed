"""The plan: what it says of programs that fit, do not fit, or killed their compiler."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console
from synthetic_plan import COUNTS, NAMES, SUBJECT, compiled, outcome

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.plan import sweep as sweeping
from isrdpo_jax.plan.chips import GIB
from isrdpo_jax.plan.knobs import first_knob
from isrdpo_jax.plan.planner import subject, summarise
from isrdpo_jax.plan.sweep import meshes, rank, sweep
from isrdpo_jax.plan.table import duration, plan_tables, sweep_table
from isrdpo_jax.schema import Config, EvaluationConfig, LoraConfig, MeshConfig, ModelConfig
from isrdpo_jax.stages.hall import Hall

REFUSED = {"fits_compiler": False, "hbm_bytes": 20 * GIB, "argument_bytes": 0, "held_bytes": 0, "temp_bytes": 20 * GIB}
MESH = MeshConfig(data=1, fsdp=16, tensor=1)


def shown(renderable) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def knob(name: str, *, model: dict | None = None, dpo: dict | None = None, collect: dict | None = None, **facts) -> str:
    config = SUBJECT.config.model_copy(
        update={
            "dpo": SUBJECT.config.dpo.model_copy(update=dpo or {}),
            "collect": SUBJECT.config.collect.model_copy(update=collect or {}),
        }
    )
    asked = config.collect
    hall = Hall.of(asked.batch_videos, asked.lanes or 16, asked.slots)
    changed = SUBJECT.model.model_copy(update=model or {})
    return first_knob(compiled(name, **facts), config, changed, MESH, hall, 16 * GIB)


def test_a_plan_is_json_with_what_it_promises():
    plan = json.loads(json.dumps(summarise(SUBJECT, outcome()), allow_nan=False))
    assert {"topology", "devices", "chips", "fits", "programs", "iteration"} <= plan.keys()
    assert (plan["topology"], plan["devices"], plan["chips"], plan["fits"]) == ("v5e:4x4", 16, 16, True)
    promised = "name hbm_bytes argument_bytes temp_bytes flops bytes_accessed collective_bytes seconds bound"
    assert all(set(promised.split()) <= program.keys() for program in plan["programs"])
    assert [program["name"] for program in plan["programs"]] == list(NAMES)


def test_memory_time_and_cost_of_programs_that_fit():
    plan = summarise(SUBJECT, outcome(dpo_step={"hbm_bytes": 12 * GIB, "collective_bytes": {"all-gather": 600e9}}))
    step = plan["programs"][-1]
    assert (step["seconds"], step["bound"], step["calls"], step["knob"]) == (pytest.approx(3.0), "ici", 2, None)
    assert plan["spare"] == pytest.approx(0.25)
    collect, reference, optimize = sum(plan["calls"]["collect"].values()), 2 * 16, 16 + 2 * 3
    assert plan["iteration"]["stages"] == pytest.approx(
        {"collect": collect, "reference": reference, "optimize": optimize}
    )
    hours = (collect + reference + optimize) / 3600
    assert plan["iteration"]["cost"] == pytest.approx(hours * 16 * 1.2)
    assert plan["run"]["cost"] == pytest.approx(9 * hours * 16 * 1.2)


def test_a_price_of_ones_own():
    plan = summarise(replace(SUBJECT, price=0.6), outcome())
    assert plan["iteration"]["cost"] == pytest.approx(summarise(SUBJECT, outcome())["iteration"]["cost"] / 2)
    assert plan["price"] == {"per_chip_hour": 0.6, "currency": "USD", "as_of": "given"}


def test_what_the_compiler_refuses_does_not_fit_and_has_no_time():
    plan = summarise(SUBJECT, outcome(dpo_step=REFUSED))
    step = plan["programs"][-1]
    assert (plan["fits"], step["fits"], step["hbm_bytes"], step["seconds"]) == (False, False, 20 * GIB, None)
    assert plan["spare"] == pytest.approx(1 - 20 / 16)
    assert plan["iteration"]["seconds"] is plan["iteration"]["cost"] is plan["run"]["seconds"] is None
    text = shown(plan_tables(plan))
    assert "It does not fit." in text
    assert f"dpo_step: {step['knob']}" in text


def test_what_a_run_holds_besides_counts():
    plan = summarise(SUBJECT, outcome(dpo_step={"hbm_bytes": 17 * GIB}))
    assert (plan["fits"], plan["programs"][-1]["seconds"]) == (False, pytest.approx(1.0))


def test_a_program_of_which_the_compiler_died_is_told_with_its_last_words():
    crashed = outcome()
    crashed.crashes["judge"] = "the compiler ended with -9: boom"
    crashed.programs = [one for one in crashed.programs if one.name != "judge"]
    plan = json.loads(json.dumps(summarise(SUBJECT, crashed), allow_nan=False))
    assert not plan["fits"]
    assert plan["iteration"]["seconds"] is None
    assert "judge: the compiler ended with -9: boom" in shown(plan_tables(plan))


def test_tables_show_every_program_and_what_bounds_it():
    text = shown(plan_tables(summarise(SUBJECT, outcome(decode={"bytes_accessed": 2000e9}))))
    assert all(text.count(name) >= 3 for name in NAMES)
    assert "compute" in text and "HBM" in text and "all-gather" in text
    assert "Everything fits; 38 % of HBM is spare" in text
    assert "Collect holds 32 videos at a time, a call brings 16; 48 slots." in text
    assert "100 videos, 300 questions, 150 pairs" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.0123, "12.3 ms"), (2.5, "2.5 s"), (600, "10 min"), (36_000, "10.0 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_plan_says_when_fewer_videos_are_held_than_asked_for():
    asked = SUBJECT.config.collect.model_copy(update={"batch_videos": 96})
    more = replace(SUBJECT, config=SUBJECT.config.model_copy(update={"collect": asked}))
    said = [note for note in summarise(more, outcome())["notes"] if "batch_videos=96" in note]
    assert len(said) == 1 and f"room for {outcome().hall.videos}" in said[0]
    same = asked.model_copy(update={"batch_videos": outcome().hall.videos})
    exact = replace(SUBJECT, config=SUBJECT.config.model_copy(update={"collect": same}))
    assert not [note for note in summarise(exact, outcome())["notes"] if "batch_videos" in note]


def test_the_first_knob():
    big = {"argument_bytes": 12 * GIB, "held_bytes": 2 * GIB}
    assert knob("dpo_step", **big).startswith("dpo.lora")
    assert "more chips" in knob("dpo_step", dpo={"lora": LoraConfig()}, **big)
    assert knob("prefill", model={"attention": "xla"}).startswith("compute.attention=splash")
    assert knob("dpo_step", model={"remat": "dots"}).startswith("compute.remat=full")
    assert knob("dpo_step", dpo={"accumulation_steps": 2}).startswith("dpo.accumulation_steps=4")
    assert knob("dpo_step").startswith("mesh.tensor=2")


def test_the_first_knob_of_collect_holds_less_while_there_is_something():
    """16 devices: first the videos, then what slots need not have, then slots; training's own knobs do not help."""
    big = {"argument_bytes": 12 * GIB, "held_bytes": 2 * GIB}
    one_each, short = {"batch_videos": 16}, {"batch_videos": 16, "turn_tokens": 640}
    for name in ("encode", "read", "decode", "judge"):
        assert knob(name, collect={"batch_videos": 96}, **big).startswith("collect.batch_videos=48")
        assert knob(name, collect={"batch_videos": 32, "lanes": 32}).startswith("collect.lanes=16 collect.batch")
        assert knob(name, collect=one_each).startswith("collect.turn_tokens=384")
        assert knob(name, collect=short).startswith("collect.slots=2")
        assert knob(name, collect={**short, "slots": 2}).startswith("mesh.tensor=2")
        assert "more chips" in knob(name, collect={**short, "slots": 2}, **big)


def test_a_start_that_is_not_here_is_planned_for_the_model_that_the_config_names_or_7b(tmp_path):
    gone = Config(start=str(tmp_path / "gone"), evaluation=EvaluationConfig(enabled=False))
    whole = subject(gone, "v5e:4x4", COUNTS)
    assert whole.model == ModelConfig().on("tpu")
    assert "Video-LLaVA 7B" in whole.notes[0]
    own = ModelConfig(compute_dtype="bfloat16")
    named = subject(gone.model_copy(update={"model": own}), "v5e:4x4", COUNTS)
    assert named.model == own.on("tpu")
    assert "`model:` of the config" in named.notes[0]


def test_a_start_that_is_here_is_planned_with_its_own_model_and_tokenizer():
    here = subject(Config(), "v5e:4x4", COUNTS)
    assert here.model.llama.hidden_size < 1024
    assert here.notes == ("Evaluation is not counted.",)
    assert here.work.prefix_tokens != subject(Config(start="gone"), "v5e:4x4", COUNTS).work.prefix_tokens


def test_a_sweep_tries_every_mesh_with_every_policy_and_ranks_them(monkeypatch):
    """tensor=4 is refused; remat=none does not fit; remat=dots is faster."""
    jobs = []

    def run_job(job):
        jobs.append((job.config.mesh.tensor, job.model.remat, job.names))
        if job.config.mesh.tensor == 4:
            raise ConfigError("mesh.tensor=4 does not divide")
        changes = {"full": {}, "dots": {"executed_flops": 100e12}, "none": REFUSED}[job.model.remat]
        found = outcome(dpo_step=changes)
        found.mesh = MeshConfig(data=1, fsdp=4 // job.config.mesh.tensor, tensor=job.config.mesh.tensor)
        found.programs = [one for one in found.programs if not job.names or one.name in job.names]
        return found

    monkeypatch.setattr(sweeping, "run_job", run_job)
    told, skipped = [], []
    plans = sweep(replace(SUBJECT, topology="v5e:2x2"), on_plan=told.append, skip=skipped.append)
    assert [(plan["mesh"]["tensor"], plan["remat"]) for plan in told] == [
        (tensor, remat) for tensor in (1, 2) for remat in ("full", "none", "dots")
    ]
    assert [plan["remat"] for plan in plans] == ["dots", "dots", "full", "full", "none", "none"]
    assert all(len(plan["programs"]) == len(NAMES) for plan in plans)
    assert skipped == ["mesh.tensor=4 does not divide"]
    assert [names for _, remat, names in jobs if remat != "full"] == [("dpo_step",)] * 4
    assert "dots" in shown(sweep_table(plans))


def test_meshes_use_the_whole_slice():
    assert [mesh.tensor for mesh in meshes(16)] == [1, 2, 4, 8, 16]
    assert {mesh.fsdp for mesh in meshes(16)} == {-1}


def test_what_fits_ranks_before_what_is_faster():
    fits, faster = summarise(SUBJECT, outcome()), summarise(SUBJECT, outcome(dpo_step={"hbm_bytes": 17 * GIB}))
    faster["iteration"]["seconds"] = 1.0
    assert rank(fits) < rank(faster)
