"""Which mesh and which remat policy: all that divide, compiled and ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.plan.jobs import Outcome, run_job
from isrdpo_jax.plan.planner import Subject, summarise
from isrdpo_jax.plan.programs import Name
from isrdpo_jax.plan.topologies import named_chips
from isrdpo_jax.schema import MeshConfig, Remat

Plan = dict[str, Any]


def meshes(chips: int) -> Iterator[MeshConfig]:
    """All ways to spread the parameters over a slice: fsdp (what is left) x tensor."""
    for tensor in range(1, chips + 1):
        if chips % tensor == 0:
            yield MeshConfig(data=1, fsdp=-1, tensor=tensor)


def sweep(planned: Subject, *, on_plan: Callable[[Plan], None], skip: Callable[[str], None]) -> list[Plan]:
    """Plans of all meshes with all remat policies, best first.

    Only the preference step is compiled for each policy: no other program has a backward pass.

    Args:
        on_plan: is told of each plan as it comes. skip: is told why a mesh is left out.
    """
    plans: list[Plan] = []
    for mesh in meshes(named_chips(planned.topology)):
        here = replace(planned, config=planned.config.model_copy(update={"mesh": mesh}))
        try:
            first = run_job(here.job)
        except ConfigError as error:
            skip(str(error))
            continue
        for remat in (here.model.remat, *(one for one in get_args(Remat) if one != here.model.remat)):
            one = replace(here, model=here.model.model_copy(update={"remat": remat}))
            outcome = first if one == here else _with_other_step(first, one)
            plans.append(summarise(one, outcome))
            on_plan(plans[-1])
    return sorted(plans, key=rank)


def rank(plan: Plan) -> tuple[bool, bool, float]:
    """What fits comes first, then what takes less time, then what leaves more room."""
    seconds = plan["iteration"]["seconds"]
    return (not plan["fits"], seconds is None, seconds if seconds is not None else -(plan["spare"] or 0.0))


def _with_other_step(first: Outcome, planned: Subject) -> Outcome:
    step = run_job(replace(planned.job, names=("dpo_step",)))
    others = [one for one in first.programs if one.name != "dpo_step"]
    crashes: dict[Name, str] = {name: words for name, words in first.crashes.items() if name != "dpo_step"}
    crashes.update(step.crashes)
    return replace(step, names=first.names, programs=others + step.programs, crashes=crashes)
