"""Compiles every device program of an iteration for a TPU slice that is not there, and prints what came out as JSON.

    python compile_programs.py v5e:4x4 '{"fsdp": 8, "tensor": 2}' ...

Needs libtpu and the environment of `test_compile.py`; allocates no parameter and runs nothing.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, Sharding

from isrdpo_jax.data.packing import PairTokens, pack_pairs
from isrdpo_jax.models.video_llava import Params, abstract_params, logical_axes
from isrdpo_jax.programs.dpo_step import PairBatch, dpo_step, pair_logprobs
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.programs.generate import generate
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.score import next_token_logprobs
from isrdpo_jax.programs.update import TrainState, abstract_state
from isrdpo_jax.schema import DpoConfig, LlamaConfig, MeshConfig, ModelConfig, VisionConfig
from isrdpo_jax.sharding import batch_sharding, check_batch, make_mesh, parameter_shardings, replicated
from isrdpo_jax.stages.optimize import make_optimizer

# Few and narrow layers, but every part of the large model: temporal attention, grouped queries, heads of 128.
MODEL = ModelConfig(
    vision=VisionConfig(
        image_size=112, hidden_size=256, intermediate_size=1024, num_layers=4, num_heads=4, num_frames=8
    ),
    llama=LlamaConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=2816, num_layers=4, num_heads=8, num_kv_heads=4
    ),
    compute_dtype="bfloat16",
    remat="full",
    attention="splash",
)
DPO = DpoConfig(batch_size=32, accumulation_steps=2, clip_norm=1.0)
PREFIX_TOKENS, TURN_TOKENS, RESPONSE_TOKENS, SAMPLES = 32, 64, 96, 2
GATHER = re.compile(r" = \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(.*while/body/while/body")
COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def placed(abstract: Any, shardings: Any) -> Any:
    """A tree of arrays or shapes as shapes with shardings: one for all, or a tree of them."""
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, abstract)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def pair_rows(count: int) -> tuple[PackedRows, np.ndarray]:
    """Packed pairs as training packs them."""
    pairs = [PairTokens((1,), (2,), (2,))] * count
    prefix = PREFIX_TOKENS + MODEL.vision.tokens_per_video
    rows, mask = pack_pairs(pairs, prefix, TURN_TOKENS, RESPONSE_TOKENS)
    return PackedRows(*rows), mask


class Compiled:
    """The programs compiled so far for one mesh, and what is reported of each."""

    def __init__(self) -> None:
        self.report: dict[str, dict[str, Any]] = {}

    def add(self, name: str, program: Any, *args: Any, **settings: Any) -> Any:
        """Compiles; returns the outputs as shapes with the shardings that the compiler gave them."""
        began = time.monotonic()
        lowered = program.lower(*args, **settings)
        compiled = lowered.compile()
        memory, text = compiled.memory_analysis(), compiled.as_text()
        self.report[name] = {
            "seconds": round(time.monotonic() - began, 1),
            "argument_bytes": memory.argument_size_in_bytes,
            "donated_bytes": memory.alias_size_in_bytes,
            "peak_bytes": memory.peak_memory_in_bytes,
            "kernels": text.count('custom_call_target="tpu_custom_call"'),
            "gathered_while_decoding": [math.prod(map(int, shape.split(","))) for shape in GATHER.findall(text)],
            "collectives": Counter(COLLECTIVE.findall(text)),
        }
        return placed(lowered.out_info, compiled.output_shardings)


def compile_all(mesh: Mesh) -> dict[str, Any]:
    """The data flow of an iteration: what a program returns is the next one's argument, where the compiler left it."""
    programs = Compiled()
    size = DPO.batch_size // DPO.accumulation_steps
    check_batch(mesh, size, "batch")
    rows = batch_sharding(mesh)
    params: Params = placed(
        abstract_params(MODEL), parameter_shardings(mesh, logical_axes(MODEL), abstract_params(MODEL))
    )
    prefix_ids = placed(ints(PREFIX_TOKENS), replicated(mesh))
    side = MODEL.vision.image_size
    pixels = jax.ShapeDtypeStruct((size, MODEL.vision.num_frames, side, side, 3), jnp.float32, sharding=rows)

    features = programs.add("encode", encode, params, pixels, config=MODEL)
    cache = programs.add("prefill", prefill, params, prefix_ids, features, config=MODEL)
    prompts = placed((ints(size, SAMPLES, TURN_TOKENS), ints(size, SAMPLES)), rows)
    keys = placed(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (size, SAMPLES))), rows)
    sampling = {"max_new_tokens": RESPONSE_TOKENS, "eos_id": 2, "temperature": 1.0, "top_p": 0.95}
    programs.add("generate", generate, params, cache, *prompts, keys, config=MODEL, **sampling)
    programs.add("next_token_logprobs", next_token_logprobs, params, cache, *prompts, ints(2), config=MODEL)

    packed, mask = pair_rows(size)
    pairs = (packed, mask, np.zeros((size, 2), np.float32), np.zeros(size, np.float32))
    batch = PairBatch(features, *placed(pairs, rows))
    programs.add("pair_logprobs", pair_logprobs, params, prefix_ids, batch, config=MODEL, dpo=DPO)

    stacked = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((DPO.accumulation_steps, *x.shape), x.dtype, sharding=batch_sharding(mesh, 1)),
        batch,
    )
    optimizer = make_optimizer(DPO)
    state: TrainState = abstract_state(params["llama"], optimizer)
    frozen = {name: value for name, value in params.items() if name != "llama"}
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    settings = {"config": MODEL, "dpo": DPO, "optimizer": optimizer}
    programs.add("dpo_step", dpo_step, state, frozen, prefix_ids, stacked, rate, **settings)

    def split(array: jax.ShapeDtypeStruct, axis: int) -> int:
        """Over how many chips an axis is spread."""
        return array.shape[axis] // array.sharding.shard_shape(array.shape)[axis]

    return {
        "programs": programs.report,
        "state_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        "features_split": split(features, 0),
        "largest_activation": size * SAMPLES * MODEL.llama.hidden_size,
        "cache_split": {"batch": split(cache.k, 1), "kv_heads": split(cache.k, 3)},
    }


def main(topology: str, *meshes: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    out = [compile_all(make_mesh(MeshConfig(**json.loads(sizes)), devices)) for sizes in meshes]
    print(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
