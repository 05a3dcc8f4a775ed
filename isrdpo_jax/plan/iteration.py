"""How often an iteration calls each program, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from isrdpo_jax.plan.programs import Name
from isrdpo_jax.plan.workload import Workload
from isrdpo_jax.schema import Config

Stage = Literal["collect", "reference", "optimize"]
SECONDS_PER_HOUR = 3600


def calls(config: Config, work: Workload) -> dict[Stage, dict[Name, int]]:
    """Calls of each program, by stage, in one iteration (evaluation is not counted)."""
    batches = -(-work.videos // config.collect.batch_videos)
    updates = -(-work.pairs // config.dpo.batch_size)
    micro = updates * config.dpo.accumulation_steps
    video = config.judge.video
    collect: dict[Name, int] = {
        "encode": batches * (2 if video == "blank" else 1),
        "prefill": batches * (1 if video == "true" else 2),
        "respond": batches,
        "describe": batches if config.judge.context != "none" else 0,
        "judge": batches,
    }
    same_shape = config.dpo.batch_size // config.dpo.accumulation_steps == config.collect.batch_videos
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
