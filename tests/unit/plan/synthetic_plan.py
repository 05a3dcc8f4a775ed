"""A subject to plan and outcomes of compiling it, without a compiler."""

from __future__ import annotations

from isrdpo_jax.data.prompts import load_prompts
from isrdpo_jax.plan.chips import GIB
from isrdpo_jax.plan.compiling import Compiled
from isrdpo_jax.plan.jobs import Outcome
from isrdpo_jax.plan.planner import Subject
from isrdpo_jax.plan.workload import Counts, estimated_tokens, make_workload
from isrdpo_jax.schema import CollectConfig, ComputeConfig, Config, DpoConfig, MeshConfig, ModelConfig
from isrdpo_jax.stages.hall import Hall

CONFIG = Config(
    collect=CollectConfig(batch_videos=32),
    dpo=DpoConfig(batch_size=128, accumulation_steps=8),
    compute=ComputeConfig(attention="splash", remat="full"),
)
MODEL = CONFIG.compute.applied_to(ModelConfig())
COUNTS = Counts(videos=100, questions=3, kept=0.5)
WORK = make_workload(CONFIG, MODEL, load_prompts(), COUNTS, estimated_tokens)
SUBJECT = Subject(CONFIG, MODEL, WORK, "v5e:4x4", None, ())
HALL = Hall(lanes=16, bays=1, places=2, slots=3)
NAMES = (
    "unstack", "encode", "prefill", "place", "read", "describe", "decode", "judge", "reference", "dpo_step",
)  # fmt: skip


def compiled(name: str, **changes) -> Compiled:
    """Takes 10 GiB, of which 1 is held besides, and 197 TFLOP: one second of a v5e chip's matrix units."""
    facts = {
        "fits_compiler": True,
        "hbm_bytes": 10 * GIB,
        "argument_bytes": 5 * GIB,
        "held_bytes": GIB,
        "temp_bytes": 4 * GIB,
        "flops": 150e12,
        "compile_seconds": 2.0,
        "executed_flops": 197e12,
        "bytes_accessed": 100e9,
        "collective_bytes": {"all-gather": 10e9, "all-reduce": 5e9},
        "fingerprint": "0123456789abcdef",
    }
    return Compiled(name=name, **(facts | changes))  # type: ignore[arg-type]


def outcome(**changes: dict) -> Outcome:
    """All programs alike, but for the changes of those that are named."""
    programs = [compiled(name, **changes.get(name, {})) for name in NAMES]
    mesh = MeshConfig(data=1, fsdp=16, tensor=1)
    return Outcome("TPU v5 lite", 16, 16, mesh, HALL, NAMES, programs, host_bytes=3 * GIB)
