"""Every device program of an iteration with abstract arguments, laid out as a run lays them out. Allocates nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from isrdpo_jax.data.packing import bucket
from isrdpo_jax.models.kv_cache import KVPrefix
from isrdpo_jax.models.lora import adapters, without_adapters
from isrdpo_jax.models.unstacked import abstract_unstacked
from isrdpo_jax.models.video_llava import Params, abstract_params, logical_axes
from isrdpo_jax.ops.sampling import Style, base_key
from isrdpo_jax.plan.useful import Flops, UsefulFlops
from isrdpo_jax.plan.workload import SLOT_USE, Workload
from isrdpo_jax.programs.decode import decode
from isrdpo_jax.programs.dpo_step import PairBatch, dpo_step, pair_logprobs
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.read import Prompts, Start, next_token_logprobs, read
from isrdpo_jax.programs.slots import abstract_prefixes, abstract_slots, formats, placing
from isrdpo_jax.programs.unstack import unstacked_decoder
from isrdpo_jax.programs.update import abstract_state
from isrdpo_jax.schema import Config, ModelConfig
from isrdpo_jax.sharding import (
    activation_sharding,
    batch_sharding,
    check_batch,
    check_heads,
    parameter_shardings,
    replicated,
)
from isrdpo_jax.stages.collect import decodings
from isrdpo_jax.stages.engine import PROMPTS, steps_of, uses_of
from isrdpo_jax.stages.hall import (
    Hall,
    hall_asked_for,
    hall_that_fits,
    largest_hall,
    longest_turn,
    memory_left,
    slot_columns,
)
from isrdpo_jax.stages.optimize import make_optimizer

Name = Literal[
    "unstack", "encode", "prefill", "place", "read", "describe", "decode", "judge",
    "encode_pairs", "reference", "dpo_step",
]  # fmt: skip
EOS = 2  # any id does: it decides no shape


@dataclass(frozen=True)
class Program:
    """One program as a run calls it.

    Attributes:
        lower: traces it for its mesh.
        live_bytes: on a device when it starts: its arguments, and all else that the run holds then.
        useful: FLOPs of one call, over all devices.
    """

    name: Name
    lower: Callable[[], jax.stages.Lowered]
    live_bytes: int
    useful: Flops


def iteration_programs(config: Config, model: ModelConfig, work: Workload, mesh: Mesh, hall: Hall) -> list[Program]:
    """The programs of an iteration in the order in which it first calls them.

    Args:
        model: as a run computes with it (`config.compute` applied). hall: see `planned_hall`.

    Raises:
        ConfigError: the mesh does not divide the model or a batch.
    """
    micro = config.dpo.batch_size // config.dpo.accumulation_steps
    check_batch(mesh, micro, "dpo.batch_size / dpo.accumulation_steps")
    check_heads(mesh, model)
    flops = UsefulFlops(model, work)
    return [
        *_collect(config, model, work, mesh, flops, hall),
        *_optimize(config, model, work, mesh, flops, micro, encodes=micro != hall.lanes),
    ]


def planned_hall(config: Config, model: ModelConfig, work: Workload, mesh: Mesh, capacity: int | None = None) -> Hall:
    """How many videos a run holds and how many texts it says at a time, by the rule of the run itself.

    Args:
        capacity: bytes of a device's memory, from which the plan's own figures are taken; the smallest hall where not
            even that fits, so that the plan can say what is missing. None: as much as is asked for.

    Raises:
        ConfigError: the numbers do not divide, or not one video fits into `collect.memory_gib`.
    """
    collect, prefix, columns = config.collect, work.prefix_length, _columns(config, model, work)
    if collect.memory_gib is not None:
        return hall_that_fits(collect, model, mesh, prefix, columns)
    if capacity is None:
        return hall_asked_for(collect, mesh)
    held = _bytes_per_device((_params(model, mesh), abstract_unstacked(model, mesh)))
    left = memory_left(collect, model, mesh, prefix, capacity=capacity, held=held)
    return largest_hall(collect, model, mesh, prefix, columns, left)[0]


def _collect(
    config: Config, model: ModelConfig, work: Workload, mesh: Mesh, flops: UsefulFlops, hall: Hall
) -> list[Program]:
    lanes, bays, said = hall.lanes, hall.lanes * hall.bays, decodings(config)
    most = max(one.max_new_tokens for one in said)
    params, llama = _params(model, mesh), abstract_unstacked(model, mesh)
    prefixes = abstract_prefixes(model, mesh, bays, hall.places, work.prefix_length, config.collect.int8_prefixes)
    slots = abstract_slots(model, mesh, bays, hall.slots, _columns(config, model, work), most)
    held = (params, llama, prefixes, slots)  # through all of collect
    prefix_ids = _placed(_ints(work.prefix_tokens), replicated(mesh))
    pixels, features, cache = (
        _pixels(model, mesh, lanes),
        _features(model, mesh, lanes),
        _cache(model, work, mesh, lanes),
    )
    at = _placed(_ints(lanes), batch_sharding(mesh))
    base = _placed(jax.eval_shape(lambda: base_key(0, 1)), replicated(mesh))
    how: dict[str, Any] = {"config": model, "eos_id": EOS, "uses": uses_of(said)}

    def prompts(turn: int) -> Prompts:
        tokens = _ints(lanes, PROMPTS, bucket(turn)), _ints(lanes, PROMPTS)
        return Prompts(at, *_placed(tokens, batch_sharding(mesh)))

    def reading(name: Name, turn: int, rows: int) -> Program:
        """Turns of `turn` tokens, `rows` in a lane, are read into slots."""
        asked, start = prompts(turn), _start(mesh, lanes)
        return Program(
            name,
            lambda: read.lower(slots, llama, prefixes, asked, start, base, **how),
            _bytes_per_device((held, asked, start)),
            flops.read(lanes * rows, turn),
        )

    def weighing() -> Program:
        asked, letters = prompts(work.judge_tokens), _placed(_ints(2), replicated(mesh))
        return Program(
            "judge",
            lambda: next_token_logprobs.lower(llama, prefixes, asked, letters, config=model),
            _bytes_per_device((held, asked)),
            flops.read(lanes * PROMPTS, work.judge_tokens),
        )

    steps = steps_of(said)
    programs = [
        Program(
            "unstack",
            lambda: unstacked_decoder.lower(params["llama"], config=model),
            _bytes_per_device((params, prefixes, slots)),
            Flops(0.0, 0.0),
        ),
        Program(
            "encode",
            lambda: encode.lower(params, pixels, config=model),
            _bytes_per_device((held, pixels)),
            flops.encode(lanes),
        ),
        Program(
            "prefill",
            lambda: prefill.lower(params, prefix_ids, features, config=model),
            _bytes_per_device((held, prefix_ids, features)),
            flops.prefill(lanes),
        ),
        Program(
            "place",
            lambda: placing(formats(prefixes)).lower(prefixes, cache, at),
            _bytes_per_device((held, cache, at)),
            Flops(0.0, 0.0),
        ),
        reading("read", work.turn_tokens, PROMPTS),
    ]
    if work.describes_apart:
        programs.append(reading("describe", work.describe_tokens, 1))
    programs.append(
        Program(
            "decode",
            lambda: decode.lower(slots, llama, prefixes, enough=hall.enough, steps=steps, **how),
            _bytes_per_device(held),
            flops.decode(SLOT_USE * steps * hall.all_slots),
        )
    )
    text = config.judge.mode == "text"
    return [*programs, reading("judge", work.judge_tokens, PROMPTS) if text else weighing()]


def _columns(config: Config, model: ModelConfig, work: Workload) -> int:
    """Positions of a slot."""
    turn = longest_turn(config.collect, model.llama.max_positions - work.prefix_length)
    return slot_columns(turn, max(one.max_new_tokens for one in decodings(config)))


def _optimize(
    config: Config, model: ModelConfig, work: Workload, mesh: Mesh, flops: UsefulFlops, micro: int, *, encodes: bool
) -> list[Program]:
    dpo = config.dpo
    prefix_ids = _placed(_ints(work.prefix_tokens), replicated(mesh))
    plain = _params(model, mesh)
    model = model.model_copy(update={"lora": dpo.lora})
    params = _params(model, mesh)
    trained = adapters(params["llama"]) if dpo.lora else params["llama"]
    frozen = {name: value for name, value in params.items() if name != "llama"}
    if dpo.lora:
        frozen["llama"] = without_adapters(params["llama"])
    optimizer = make_optimizer(dpo)
    state = abstract_state(trained, optimizer)
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    one, update = _pairs(model, work, mesh, micro), _pairs(model, work, mesh, dpo.accumulation_steps, micro)
    # A run holds the policy that it trains a copy of, and π_1 where that is the reference.
    held = (params, plain) if dpo.reference == "initial" else (params,)
    programs = [
        Program(
            "reference",
            lambda: pair_logprobs.lower(params, prefix_ids, one, config=model, dpo=dpo),
            _bytes_per_device((held, update)),
            flops.pair_forward(micro),
        ),
        Program(
            "dpo_step",
            lambda: dpo_step.lower(state, frozen, prefix_ids, update, rate, config=model, dpo=dpo, optimizer=optimizer),
            _bytes_per_device((held, state, update)),
            flops.preference_step(dpo.batch_size, adapters=dpo.lora is not None),
        ),
    ]
    if not encodes:
        return programs
    pixels = _pixels(model, mesh, micro)
    encoding = Program(
        "encode_pairs",
        lambda: encode.lower(plain, pixels, config=model),
        _bytes_per_device((held, state, update, pixels)),
        flops.encode(micro),
    )
    return [encoding, *programs]


def _params(model: ModelConfig, mesh: Mesh) -> Params:
    abstract = abstract_params(model)
    return _placed(abstract, parameter_shardings(mesh, logical_axes(model), abstract))


def _pixels(model: ModelConfig, mesh: Mesh, videos: int) -> jax.ShapeDtypeStruct:
    """Frames of `videos` videos, preprocessed: float32[b, t, S, S, 3]."""
    side = model.vision.image_size
    shape = (videos, model.vision.num_frames, side, side, 3)
    return _placed(jax.ShapeDtypeStruct(shape, jnp.float32), batch_sharding(mesh))


def _features(model: ModelConfig, mesh: Mesh, *batch: int) -> jax.ShapeDtypeStruct:
    """What `encode` returns, [..., b, n, d_vision]."""
    shape = (*batch, model.vision.tokens_per_video, model.vision.hidden_size)
    dtype = jnp.dtype(model.compute_dtype)
    return _placed(jax.ShapeDtypeStruct(shape, dtype), batch_sharding(mesh, axis=len(batch) - 1))


def _cache(model: ModelConfig, work: Workload, mesh: Mesh, videos: int) -> KVPrefix:
    """What `prefill` returns."""
    llama = model.llama

    def layer(*head: int) -> Any:
        shape = (videos, llama.num_kv_heads, *head)
        layout = activation_sharding(mesh, ("batch", "kv_heads", None, None), shape)
        return _placed(jax.ShapeDtypeStruct(shape, jnp.dtype(model.compute_dtype)), layout)

    k, v = layer(llama.head_dim, work.prefix_length), layer(work.prefix_length, llama.head_dim)
    return KVPrefix((k,) * llama.num_layers, (v,) * llama.num_layers)


def _start(mesh: Mesh, lanes: int) -> Start:
    """Where and how the prompts of a call are continued."""

    def rows(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((lanes, PROMPTS), dtype, sharding=batch_sharding(mesh))

    style = Style(*(rows(jnp.int32 if name == "top_k" else jnp.float32) for name in Style._fields))
    whose = [rows(jnp.uint32) for _ in range(3)]
    return Start(rows(jnp.int32), rows(jnp.int32), whose[0], whose[1], whose[2], style)


def _pairs(model: ModelConfig, work: Workload, mesh: Mesh, *batch: int) -> PairBatch:
    """Packed pairs as `stages.pair_batches` places them: batch axes [b], or [accumulation_steps, b]."""
    turn, response = bucket(work.turn_tokens, 16), bucket(work.response_tokens, 16)
    tokens, targets = _ints(*batch, turn + 2 * response), _ints(*batch, 2, response)
    mask = jax.ShapeDtypeStruct(targets.shape, jnp.bool_)
    reference, weights = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*batch, 2), batch))
    host = (PackedRows(tokens, tokens, tokens, targets, targets), mask, reference, weights)
    return PairBatch(_features(model, mesh, *batch), *_placed(host, batch_sharding(mesh, axis=len(batch) - 1)))


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _placed(abstract: Any, shardings: Any) -> Any:
    """A tree of shapes with their shardings: one for all, or a tree of them."""
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings), abstract)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)


def _bytes_per_device(tree: Any) -> int:
    """Of placed shapes, on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
