"""From a config and a topology to the plan of a run: one dictionary, which is also what `--json` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from isrdpo_jax.config import evaluates
from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.data.tokens import load_tokenizer
from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.plan import iteration
from isrdpo_jax.plan.chips import PRICES, PRICES_AS_OF, chip_of
from isrdpo_jax.plan.compiling import Compiled
from isrdpo_jax.plan.jobs import Job, Outcome, run_job
from isrdpo_jax.plan.knobs import first_knob
from isrdpo_jax.plan.roofline import roofline
from isrdpo_jax.plan.topologies import check_name
from isrdpo_jax.plan.workload import Counts, Workload, estimated_tokens, make_workload
from isrdpo_jax.schema import Config, ModelConfig
from isrdpo_jax.stages.hall import Hall
from isrdpo_jax.weights.policy_folder import find_policy

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is planned, before anything is compiled. notes: what was assumed, in sentences."""

    config: Config
    model: ModelConfig
    work: Workload
    topology: str
    price: float | None
    notes: tuple[str, ...]

    @property
    def job(self) -> Job:
        return Job(self.config, self.model, self.work, self.topology)


def subject(config: Config, topology: str, counts: Counts, price: float | None = None) -> Subject:
    """The model is that of `start`, if it is there; else that of `model:`, else Video-LLaVA 7B.

    Raises:
        ConfigError: `topology` is no name of a slice.
    """
    check_name(topology)
    notes, tokens_of = [], estimated_tokens
    try:
        folder = find_policy(config.start)
        model = folder.config
        tokenizer = load_tokenizer(folder.tokenizer_folder)
        tokens_of = lambda text: len(tokenizer.encode_response(text)) - 1  # noqa: E731
    except CheckpointError:
        model = config.model or ModelConfig()
        told = "`model:` of the config" if config.model else "Video-LLaVA 7B with temporal attention"
        notes.append(f"start: {config.start} is not here; planned for {told}, prompts at four characters per token.")
    if evaluates(config):
        notes.append("Evaluation is not counted.")
    model = config.compute.applied_to(model).on("tpu")
    work = make_workload(config, model, load_prompts(config.prompts.dir), counts, tokens_of)
    return Subject(config, model, work, topology, price, tuple(notes))


def make_plan(planned: Subject, *, on_program: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
    """Compiles every program and says what a run would take.

    Args:
        on_program: is told of each program as soon as it is compiled.

    Raises:
        ConfigError: libtpu is missing, or the mesh does not divide.
    """
    outcome = run_job(planned.job, on_program=lambda one, so_far: on_program(program_row(one, planned, so_far)))
    return summarise(planned, outcome)


def summarise(planned: Subject, outcome: Outcome) -> dict[str, Any]:
    """The plan of a run from what its programs need."""
    chip = chip_of(outcome.device_kind)
    known = {one.name: program_row(one, planned, outcome) for one in outcome.programs}
    known |= {name: _crashed(name, words) for name, words in outcome.crashes.items()}
    rows = [known[name] for name in outcome.names]
    often = iteration.calls(planned.config, planned.work, outcome.hall)
    for row in rows:
        row["calls"] = sum(programs.get(row["name"], 0) for programs in often.values())
    stages = iteration.stage_seconds({row["name"]: row["seconds"] for row in rows}, often)
    seconds = sum(stages.values()) if stages else None
    price = PRICES.get(chip.name) if planned.price is None else planned.price
    once = None if seconds is None else iteration.cost(seconds, outcome.chips, price)
    times = planned.config.run.iterations
    largest = max((row["hbm_share"] for row in rows if row["hbm_share"] is not None), default=None)
    return {
        "topology": planned.topology,
        "chip": chip.name,
        "devices": outcome.devices,
        "chips": outcome.chips,
        "mesh": outcome.mesh.model_dump(),
        "hall": asdict(outcome.hall) | {"videos": outcome.hall.videos, "all_slots": outcome.hall.all_slots},
        "remat": planned.model.remat,
        "hbm_capacity_bytes": chip.hbm_bytes * outcome.chips // outcome.devices,
        "fits": all(row["fits"] for row in rows),
        "spare": None if largest is None else 1 - largest,
        "programs": rows,
        "calls": often,
        "iteration": {"seconds": seconds, "cost": once, "stages": stages, "pairs": planned.work.pairs},
        "run": {
            "iterations": times,
            "seconds": None if seconds is None else times * seconds,
            "cost": None if once is None else times * once,
        },
        "price": {
            "per_chip_hour": price,
            "currency": "USD",
            "as_of": PRICES_AS_OF if planned.price is None else "given",
        },
        "assumed": asdict(planned.work),
        "notes": [*planned.notes, *_held(planned.config, outcome.hall)],
        "compile_seconds": sum(one.compile_seconds for one in outcome.programs),
        "host_bytes": outcome.host_bytes,
    }


def _held(config: Config, hall: Hall) -> list[str]:
    """What is to be said of a hall that is not the one that was asked for."""
    if hall.videos == (asked := config.collect.batch_videos):
        return []
    return [f"collect.batch_videos={asked}: memory has room for {hall.videos}, which a run then holds."]


def program_row(one: Compiled, planned: Subject, outcome: Outcome) -> Row:
    """What the plan says of a program. All figures are of one device; seconds are those of one call."""
    chip = chip_of(outcome.device_kind)
    per_chip = outcome.devices // outcome.chips
    capacity = chip.hbm_bytes / per_chip
    fits = one.fits_compiler and one.hbm_bytes <= capacity
    done: Row = {
        "executed_flops": None,
        "bytes_accessed": None,
        "collective_bytes": None,
        "seconds": None,
        "bound": None,
    }
    if one.fits_compiler:
        received = sum(one.collective_bytes.values())
        seconds, bound = roofline(chip, one.executed_flops, one.bytes_accessed, received, devices_per_chip=per_chip)
        done = {
            "executed_flops": one.executed_flops,
            "bytes_accessed": one.bytes_accessed,
            "collective_bytes": received,
            "seconds": seconds,
            "bound": bound,
        }
    return {
        "name": one.name,
        "fits": fits,
        "hbm_bytes": one.hbm_bytes,
        "hbm_share": one.hbm_bytes / capacity,
        "argument_bytes": one.argument_bytes,
        "held_bytes": one.held_bytes,
        "temp_bytes": one.temp_bytes,
        "flops": one.flops,
        **done,
        "collectives": one.collective_bytes,
        "knob": None if fits else first_knob(one, planned.config, planned.model, outcome.mesh, outcome.hall, capacity),
        "compile_seconds": one.compile_seconds,
        "fingerprint": one.fingerprint,
        "unknown_loops": one.unknown_loops,
        "problem": None,
    }


def _crashed(name: str, words: str) -> Row:
    """A program of which nothing is known, since its compiler died."""
    unknown = dict.fromkeys(
        [
            "hbm_bytes", "hbm_share", "argument_bytes", "held_bytes", "temp_bytes", "flops", "executed_flops",
            "bytes_accessed", "collective_bytes", "seconds", "bound", "knob", "compile_seconds", "fingerprint",
        ]
    )  # fmt: skip
    return {"name": name, "fits": False, **unknown, "collectives": {}, "unknown_loops": 0, "problem": words}
