"""Compiles in processes of their own: the compiler needs an environment, takes gigabytes, and may die.

A job goes to a worker as JSON on its stdin; on its stdout the worker says what it begins and what it has, line by line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.plan.compiling import Compiled
from isrdpo_jax.plan.programs import Name
from isrdpo_jax.plan.topologies import ABSENT_CHIPS
from isrdpo_jax.plan.workload import Workload
from isrdpo_jax.schema import Config, MeshConfig, ModelConfig
from isrdpo_jax.stages.hall import Hall

WORKER = (sys.executable, "-m", "isrdpo_jax.plan.worker")
LAST_WORDS = 1000  # characters of a dead compiler's stderr that are shown


@dataclass(frozen=True)
class Job:
    """What to compile, for which slice. names: some of the programs; none = all."""

    config: Config
    model: ModelConfig
    work: Workload
    topology: str
    names: tuple[Name, ...] = ()

    def to_json(self) -> str:
        return json.dumps(
            {
                "config": self.config.model_dump(mode="json"),
                "model": self.model.model_dump(mode="json"),
                "work": asdict(self.work),
                "topology": self.topology,
                "names": self.names,
            }
        )

    @staticmethod
    def from_json(text: str) -> Job:
        raw = json.loads(text)
        return Job(
            Config.model_validate_json(json.dumps(raw["config"])),
            ModelConfig.model_validate_json(json.dumps(raw["model"])),
            Workload(**raw["work"]),
            raw["topology"],
            tuple(raw["names"]),
        )


@dataclass
class Outcome:
    """What came of a job.

    Attributes:
        mesh: with all sizes known.
        hall: what collect holds.
        names: what the job is to compile.
        crashes: programs of which the compiler died, with its last words.
        host_bytes: the most memory that a worker took.
    """

    device_kind: str
    devices: int
    chips: int
    mesh: MeshConfig
    hall: Hall
    names: tuple[Name, ...]
    programs: list[Compiled] = field(default_factory=list)
    crashes: dict[Name, str] = field(default_factory=dict)
    host_bytes: int = 0

    @property
    def left(self) -> tuple[Name, ...]:
        known = {*self.crashes, *(one.name for one in self.programs)}
        return tuple(name for name in self.names if name not in known)


def run_job(
    job: Job,
    *,
    on_program: Callable[[Compiled, Outcome], None] = lambda compiled, outcome: None,
    command: Sequence[str] = WORKER,
) -> Outcome:
    """Compiles all programs of a job; goes on with the others, in a new process, when the compiler dies of one.

    Args:
        on_program: is told of each program as soon as it is compiled.
        command: starts a worker.

    Raises:
        ConfigError: libtpu is missing, or the mesh does not divide.
    """
    outcome, died = _work(job, None, on_program, command)
    while outcome.left:
        outcome.crashes[outcome.left[0]] = died  # they are compiled in order
        if outcome.left:
            outcome, died = _work(replace(job, names=outcome.left), outcome, on_program, command)
    return outcome


def _work(
    job: Job, outcome: Outcome | None, on_program: Callable[[Compiled, Outcome], None], command: Sequence[str]
) -> tuple[Outcome, str]:
    """One worker from start to end: what is known behind it, and how it ended."""
    with tempfile.TemporaryFile("w+") as errors:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(command, env={**os.environ, **ABSENT_CHIPS}, **pipes) as worker:
            assert worker.stdin is not None and worker.stdout is not None
            try:
                with suppress(BrokenPipeError), worker.stdin:  # it may have died already
                    worker.stdin.write(job.to_json())
                for line in worker.stdout:
                    match json.loads(line):
                        case {"error": message}:
                            raise ConfigError(message)
                        case {"slice": facts, "names": names} if outcome is None:
                            known = {"mesh": MeshConfig(**facts["mesh"]), "hall": Hall(**facts["hall"])}
                            outcome = Outcome(**{**facts, **known, "names": tuple(names)})
                        case {"program": fields, "host_bytes": host_bytes} if outcome is not None:
                            outcome.programs.append(Compiled(**fields))
                            outcome.host_bytes = max(outcome.host_bytes, host_bytes)
                            on_program(outcome.programs[-1], outcome)
            except BaseException:
                worker.kill()
                raise
        errors.seek(0)
        died = f"the compiler ended with {worker.returncode}: {errors.read()[-LAST_WORDS:].strip()}"
    if outcome is None:
        raise RuntimeError(died)
    return outcome, died


def say(event: dict[str, Any]) -> None:
    """From the worker to who started it."""
    print(json.dumps(event), flush=True)
