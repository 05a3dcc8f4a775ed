"""What to change first when a program does not fit."""

from __future__ import annotations

from isrdpo_jax.data.packing import bucket
from isrdpo_jax.plan.compiling import Compiled
from isrdpo_jax.schema import Config, MeshConfig, ModelConfig
from isrdpo_jax.stages.hall import Hall

TRAINING = ("reference", "dpo_step", "encode_pairs")
SPLASH = "compute.attention=splash (no matrix of all queries by all keys)"
_WORDS = 128  # tokens of a turn around the description in it, generously


def first_knob(
    compiled: Compiled, config: Config, model: ModelConfig, mesh: MeshConfig, hall: Hall, capacity: float
) -> str:
    """The setting that costs least for what it gives, as KEY=VALUE with what it does.

    Args:
        mesh: with all sizes known. hall: what collect holds. capacity: bytes of HBM of a device.
    """
    ways = mesh.data * mesh.fsdp
    if compiled.name == "prefill" and _could_splash(model):
        return SPLASH
    if compiled.name not in TRAINING and (knob := _of_collect(config, ways, hall.videos)):
        return knob
    state = compiled.argument_bytes + compiled.held_bytes
    if compiled.fits_compiler and state > 0.75 * capacity:
        if compiled.name == "dpo_step" and config.dpo.lora is None:
            return (
                "dpo.lora={} (train adapters), or a slice with more chips: parameters and moments alone take too much"
            )
        return "a slice with more chips: parameters and caches alone take too much"
    if compiled.name in ("reference", "dpo_step") and _could_splash(model):
        return SPLASH
    if compiled.name == "dpo_step" and model.remat != "full":
        return "compute.remat=full (keep one activation per layer)"
    pairs = config.dpo.batch_size // config.dpo.accumulation_steps
    if compiled.name in TRAINING and pairs > ways:
        return f"dpo.accumulation_steps={2 * config.dpo.accumulation_steps} (fewer pairs at a time)"
    return f"mesh.tensor={2 * mesh.tensor} (split heads and MLP over more chips), or a slice with more chips"


def _could_splash(model: ModelConfig) -> bool:
    return model.attention == "xla" and model.llama.head_dim % 128 == 0


def _of_collect(config: Config, ways: int, videos: int) -> str | None:
    """What lets collect hold less, as long as there is something.

    Args:
        ways: devices over which videos are spread. videos: that are held.
    """
    collect = config.collect
    lanes = collect.lanes or ways
    if videos > lanes:
        return f"collect.batch_videos={max(lanes, videos // 2 // lanes * lanes)} (fewer videos at a time)"
    if lanes > ways:
        return f"collect.lanes={ways} collect.batch_videos={ways} (fewer videos at a time)"
    if collect.turn_tokens is None:
        tokens = bucket(config.describe.max_new_tokens + _WORDS)
        return f"collect.turn_tokens={tokens} (slots without room for turns that fill the context window)"
    if collect.slots > 2:  # of two, a bay of one video has one
        return "collect.slots=2 (fewer texts at a time)"
    return None
