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
from isrdpo_jax.models.unstacked import abstract_unstacked
from isrdpo_jax.models.video_llava import Params, abstract_params, logical_axes
from isrdpo_jax.ops.sampling import Style, Uses, base_key
from isrdpo_jax.programs.decode import decode
from isrdpo_jax.programs.dpo_step import PairBatch, dpo_step, pair_logprobs
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.read import Prompts, Start, next_token_logprobs, read
from isrdpo_jax.programs.slots import abstract_prefixes, abstract_slots, formats, placing
from isrdpo_jax.programs.unstack import unstacked_decoder
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
PREFIX_TOKENS, TURN_TOKENS, RESPONSE_TOKENS, PROMPTS = 42, 64, 96, 2  # 42: no whole tiles, as in 7B
PLACES, SLOTS, STEPS = 2, 3, 16
GATHER = re.compile(r" = \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(")
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


def start(size: int, rows: Sharding) -> Start:
    def each(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, PROMPTS), dtype, sharding=rows)

    style = Style(*(each(jnp.int32 if name == "top_k" else jnp.float32) for name in Style._fields))
    return Start(each(jnp.int32), each(jnp.int32), each(jnp.uint32), each(jnp.uint32), each(jnp.uint32), style)


def assert_same_layout(found: Any, expected: Any) -> None:
    """What a program returns lies where the next one, and the plan, expect it."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.sharding.is_equivalent_to(other.sharding, len(one.shape)), (one, other)


def bytes_per_chip(tree: Any) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


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
            "output_bytes": memory.output_size_in_bytes,
            "temp_bytes": memory.temp_size_in_bytes,
            "gathered": [list(map(int, shape.split(","))) for shape in GATHER.findall(text) if shape],
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
    length = PREFIX_TOKENS + MODEL.vision.tokens_per_video
    prefixes = abstract_prefixes(MODEL, mesh, size, PLACES, length)
    slots = abstract_slots(MODEL, mesh, size, SLOTS, TURN_TOKENS + RESPONSE_TOKENS, RESPONSE_TOKENS)
    llama = programs.add("unstack", unstacked_decoder, params["llama"], config=MODEL)
    assert_same_layout(llama, abstract_unstacked(MODEL, mesh))
    at = placed(ints(size), rows)
    assert_same_layout(programs.add("place", placing(formats(prefixes)), prefixes, cache, at), prefixes)
    prompts = Prompts(at, *placed((ints(size, PROMPTS, TURN_TOKENS), ints(size, PROMPTS)), rows))
    settings = {"config": MODEL, "eos_id": 2, "uses": Uses(noise=True, top_p=True)}
    base = placed(jax.eval_shape(lambda: base_key(0, 1)), replicated(mesh))
    begun = programs.add("read", read, slots, llama, prefixes, prompts, start(size, rows), base, **settings)
    assert_same_layout(begun, slots)
    decoded = programs.add("decode", decode, slots, llama, prefixes, enough=size, steps=STEPS, **settings)
    assert_same_layout(decoded[0], slots)
    rounded = abstract_prefixes(MODEL, mesh, size, PLACES, length, int8=True)
    assert_same_layout(programs.add("place_int8", placing(formats(rounded)), rounded, cache, at), rounded)
    programs.add("decode_int8", decode, slots, llama, rounded, enough=size, steps=STEPS, **settings)
    programs.add("next_token_logprobs", next_token_logprobs, llama, prefixes, prompts, ints(2), config=MODEL)

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
        "largest_activation": size * SLOTS * max(MODEL.llama.hidden_size, MODEL.llama.vocab_size),
        "cache_lengths": [prefixes.length, slots.own.length],
        "prefixes_bytes": bytes_per_chip(prefixes),
        "slots_bytes": bytes_per_chip(slots),
        "cache_split": {"batch": split(cache.k[0], 0), "kv_heads": split(cache.k[0], 1)},
    }


def main(topology: str, *meshes: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    out = [compile_all(make_mesh(MeshConfig(**json.loads(sizes)), devices)) for sizes in meshes]
    print(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
