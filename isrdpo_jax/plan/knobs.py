"""What to change first when a program does not fit."""

from __future__ import annotations

from isrdpo_jax.plan.compiling import Compiled
from isrdpo_jax.schema import Config, MeshConfig, ModelConfig

TRAINING = ("reference", "dpo_step")


def first_knob(compiled: Compiled, config: Config, model: ModelConfig, mesh: MeshConfig, capacity: float) -> str:
    """The setting that costs least for what it gives, as KEY=VALUE with what it does.

    Args:
        mesh: with all sizes known. capacity: bytes of HBM of a device.
    """
    ways = mesh.data * mesh.fsdp
    state = compiled.argument_bytes + compiled.held_bytes
    if compiled.fits_compiler and state > 0.75 * capacity:
        if compiled.name == "dpo_step" and config.dpo.lora is None:
            return (
                "dpo.lora={} (train adapters), or a slice with more chips: parameters and moments alone take too much"
            )
        return "a slice with more chips: parameters and caches alone take too much"
    if compiled.name in (*TRAINING, "prefill") and model.attention == "xla" and model.llama.head_dim % 128 == 0:
        return "compute.attention=splash (no matrix of all queries by all keys)"
    if compiled.name == "dpo_step" and model.remat != "full":
        return "compute.remat=full (keep one activation per layer)"
    pairs = config.dpo.batch_size // config.dpo.accumulation_steps
    if compiled.name in TRAINING and pairs > ways:
        return f"dpo.accumulation_steps={2 * config.dpo.accumulation_steps} (fewer pairs at a time)"
    videos = config.collect.batch_videos
    if compiled.name not in TRAINING and videos > ways:
        return f"collect.batch_videos={max(ways, videos // 2 // ways * ways)} (fewer videos at a time)"
    return f"mesh.tensor={2 * mesh.tensor} (split heads and MLP over more chips), or a slice with more chips"
