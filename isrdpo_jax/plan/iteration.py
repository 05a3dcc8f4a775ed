"""How often an iteration calls each program, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from isrdpo_jax.plan.programs import Name
from isrdpo_jax.plan.workload import SLOT_USE, Workload
from isrdpo_jax.schema import Config
from isrdpo_jax.stages.collect import RESPONSES, decodings
from isrdpo_jax.stages.engine import PROMPTS, steps_of
from isrdpo_jax.stages.hall import Hall

Stage = Literal["collect", "reference", "optimize"]
SECONDS_PER_HOUR = 3600


def calls(config: Config, work: Workload, hall: Hall) -> dict[Stage, dict[Name, int]]:
    """Calls of each program, by stage, in one iteration (evaluation is not counted): every place of a call is taken,
    but for slots, of which `SLOT_USE` are."""
    updates = -(-work.pairs // config.dpo.batch_size)
    micro = updates * config.dpo.accumulation_steps
    visits = -(-work.videos // hall.lanes)
    looks = visits * (1 if config.judge.video == "true" else 2)
    answers = RESPONSES * work.videos * work.questions
    descriptions = work.videos if work.describes and not work.describes_apart else 0
    collect: dict[Name, int] = {
        "unstack": 1,
        "encode": looks,
        "prefill": looks,
        "place": looks,
        "read": -(-(answers + descriptions) // (hall.lanes * PROMPTS)),
        "describe": visits if work.describes_apart else 0,
        "decode": math.ceil(work.decoded / (hall.all_slots * SLOT_USE * steps_of(decodings(config)))),
        "judge": -(-2 * work.videos * work.questions // (hall.lanes * PROMPTS)),
    }
    same_shape = config.dpo.batch_size // config.dpo.accumulation_steps == hall.lanes
    encode: Name = "encode" if same_shape else "encode_pairs"
    return {
        "collect": collect,
        "reference": {encode: micro, "reference": micro},
        "optimize": {encode: config.dpo.epochs * micro, "dpo_step": config.dpo.epochs * updates},
    }


def stage_seconds(
    per_call: Mapping[str, float | None], often: Mapping[Stage, Mapping[Name, int]]
) -> dict[Stage, float] | None:
    """Seconds of each stage from those of each program; None when one that is called has none (it does not fit)."""
    needed = {name for programs in often.values() for name, count in programs.items() if count}
    if any(per_call.get(name) is None for name in needed):
        return None
    return {
        stage: sum(count * (per_call[name] or 0.0) for name, count in programs.items() if count)
        for stage, programs in often.items()
    }


def cost(seconds: float, chips: int, price: float | None) -> float | None:
    """US dollars, at `price` per chip and hour."""
    return None if price is None else seconds / SECONDS_PER_HOUR * chips * price
