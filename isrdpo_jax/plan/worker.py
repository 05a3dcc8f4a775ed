"""The process that compiles: `python -m isrdpo_jax.plan.worker`, in the environment `topologies.ABSENT_CHIPS`."""

from __future__ import annotations

import dataclasses
import resource
import sys

from isrdpo_jax.errors import IsrdpoError
from isrdpo_jax.plan.chips import chip_of
from isrdpo_jax.plan.compiling import compile_program
from isrdpo_jax.plan.jobs import Job, say
from isrdpo_jax.plan.programs import iteration_programs, planned_hall
from isrdpo_jax.plan.topologies import chip_count, describe
from isrdpo_jax.sharding import make_mesh


def main() -> None:
    """Reads a job and works it off; what the user can mend goes to who started this process."""
    try:
        work_off(Job.from_json(sys.stdin.read()))
    except IsrdpoError as error:
        say({"error": str(error)})


def work_off(job: Job) -> None:
    """Compiles the programs of a job one after another, and says each as it is done.

    Raises:
        ConfigError: there is no such slice, or no libtpu, or the mesh does not divide.
    """
    devices = describe(job.topology)
    chip = chip_of(devices[0].device_kind)
    mesh = make_mesh(job.config.mesh, devices)
    capacity = chip.hbm_bytes * chip_count(devices) // len(devices)
    hall = planned_hall(job.config, job.model, job.work, mesh, capacity)
    programs = {one.name: one for one in iteration_programs(job.config, job.model, job.work, mesh, hall)}
    facts = {
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "chips": chip_count(devices),
        "mesh": dict(mesh.shape),
        "hall": dataclasses.asdict(hall),
    }
    names = [name for name in programs if not job.names or name in job.names]
    say({"slice": facts, "names": names})
    for name in names:
        compiled = compile_program(programs[name], len(devices))
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
        say({"program": dataclasses.asdict(compiled), "host_bytes": used})


if __name__ == "__main__":
    main()
