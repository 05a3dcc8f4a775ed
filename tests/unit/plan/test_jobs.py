"""Compiling in other processes: what they say is heard as it comes, and their death is an answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from synthetic_plan import CONFIG, HALL, MODEL, NAMES, SUBJECT, WORK, compiled

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.plan import topologies
from isrdpo_jax.plan.jobs import Job, run_job
from isrdpo_jax.plan.topologies import ABSENT_CHIPS, check_name, describe, named_chips

WORKER = """
import json, os, sys
job, facts, say = json.load(sys.stdin), json.load(open(sys.argv[1])), lambda event: print(json.dumps(event), flush=True)
names = job["names"] or facts["names"]
open(sys.argv[1] + ".log", "a").write(" ".join(names) + "\\n")
if facts.get("error"):
    say({"error": facts["error"]}); sys.exit()
if facts.get("silent"):
    sys.exit("no such file")
say({"slice": facts["slice"], "names": names})
for name in names:
    if name in facts["deadly"]:
        print("the end of " + name, file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    say({"program": {**facts["program"], "name": name}, "host_bytes": 1000 + len(name)})
"""
SLICE = {"device_kind": "TPU v5 lite", "devices": 16, "chips": 16, "mesh": {"data": 1, "fsdp": 8, "tensor": 2}}
SLICE["hall"] = asdict(HALL)


@pytest.fixture
def worker(tmp_path: Path):
    """The command of a worker that behaves as told; what it was asked for is in its log."""

    def made(**facts) -> list[str]:
        script, told = tmp_path / "worker.py", tmp_path / "facts.json"
        script.write_text(WORKER)
        whole = {"slice": SLICE, "names": NAMES, "deadly": [], "program": asdict(compiled("encode")), **facts}
        told.write_text(json.dumps(whole))
        return [sys.executable, str(script), str(told)]

    return made


def asked(tmp_path: Path) -> list[list[str]]:
    return [line.split() for line in (tmp_path / "facts.json.log").read_text().splitlines()]


def test_a_job_survives_the_way_to_its_worker():
    job = Job(CONFIG, MODEL, WORK, "v5e:4x4", ("prefill", "dpo_step"))
    assert Job.from_json(job.to_json()) == job


def test_programs_are_heard_as_they_come(worker):
    heard = []
    outcome = run_job(
        SUBJECT.job, on_program=lambda one, so_far: heard.append((one.name, len(so_far.programs))), command=worker()
    )
    assert heard == [(name, i) for i, name in enumerate(NAMES, 1)]
    assert outcome.programs == [compiled(name) for name in NAMES]
    assert (outcome.chips, outcome.mesh.fsdp, outcome.mesh.tensor, outcome.hall) == (16, 8, 2, HALL)
    assert outcome.host_bytes == 1000 + len("reference")


def test_a_compiler_that_dies_of_programs_does_not_end_the_others(worker, tmp_path):
    outcome = run_job(SUBJECT.job, command=worker(deadly=["read", "judge"]))
    assert [one.name for one in outcome.programs] == [name for name in NAMES if name not in ("read", "judge")]
    assert outcome.crashes.keys() == {"read", "judge"}
    assert "ended with -9: the end of judge" in outcome.crashes["judge"]
    assert asked(tmp_path) == [list(NAMES), list(NAMES[5:]), list(NAMES[8:])]


def test_a_compiler_that_dies_of_the_last_program_is_not_asked_again(worker, tmp_path):
    assert run_job(SUBJECT.job, command=worker(deadly=["dpo_step"])).crashes.keys() == {"dpo_step"}
    assert len(asked(tmp_path)) == 1


def test_what_a_worker_refuses_is_the_users_error(worker):
    with pytest.raises(ConfigError, match="does not divide"):
        run_job(SUBJECT.job, command=worker(error="mesh.fsdp=3 does not divide"))


def test_a_worker_that_does_not_start_is_our_fault(worker):
    with pytest.raises(RuntimeError, match="ended with 1: no such file"):
        run_job(SUBJECT.job, command=worker(silent=True))


def test_the_environment_describes_a_slice_that_is_not_there():
    assert ABSENT_CHIPS["JAX_PLATFORMS"] == "cpu"
    assert named_chips("v5p:2x2x4") == 16


@pytest.mark.parametrize("name", ["v5e", "4x4", "v5e:4", "v5e:4x", "v5e:4x4;ls", ""])
def test_a_topology_has_a_chip_and_an_arrangement(name):
    with pytest.raises(ConfigError, match="such as v5e:4x4"):
        check_name(name)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("JAX TPU support not installed; cannot generate TPU topology.", r"libtpu is not installed.*isrdpo-jax\[tpu\]"),
        (
            'INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible\nmore',
            "--topology v5e:3x3: INVALID.*divisible$",
        ),
    ],
)
def test_why_a_slice_cannot_be_described(message, told, monkeypatch):
    def refuse(**_):
        raise RuntimeError(message)

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match=told) as refused:
        describe("v5e:3x3")
    assert refused.value.exit_code == 2
