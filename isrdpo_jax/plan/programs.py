"""Every device program of an iteration with abstract arguments, laid out as a run lays them out. Allocates nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, Sharding

from isrdpo_jax.data.packing import bucket
from isrdpo_jax.models.kv_cache import KVCache
from isrdpo_jax.models.lora import adapters, without_adapters
from isrdpo_jax.models.video_llava import Params, abstract_params, logical_axes
from isrdpo_jax.plan.useful import Flops, UsefulFlops
from isrdpo_jax.plan.workload import Workload
from isrdpo_jax.programs.dpo_step import PairBatch, dpo_step, pair_logprobs
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.programs.generate import generate
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.score import next_token_logprobs
from isrdpo_jax.programs.update import abstract_state
from isrdpo_jax.schema import Config, ModelConfig
from isrdpo_jax.sharding import batch_sharding, check_batch, check_heads, parameter_shardings, replicated, spec
from isrdpo_jax.stages.collect import RESPONSES
from isrdpo_jax.stages.optimize import make_optimizer

Name = Literal["encode", "prefill", "respond", "describe", "judge", "encode_pairs", "reference", "dpo_step"]
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


def iteration_programs(config: Config, model: ModelConfig, work: Workload, mesh: Mesh) -> list[Program]:
    """The programs of an iteration in the order in which it first calls them.

    Args:
        model: as a run computes with it (`config.compute` applied).

    Raises:
        ConfigError: the mesh does not divide the model or a batch.
    """
    videos, micro = config.collect.batch_videos, config.dpo.batch_size // config.dpo.accumulation_steps
    check_batch(mesh, videos, "collect.batch_videos")
    check_batch(mesh, micro, "dpo.batch_size / dpo.accumulation_steps")
    check_heads(mesh, model)
    flops = UsefulFlops(model, work)
    return [
        *_collect(config, model, work, mesh, flops, videos),
        *_optimize(config, model, work, mesh, flops, micro, encodes=micro != videos),
    ]


def _collect(
    config: Config, model: ModelConfig, work: Workload, mesh: Mesh, flops: UsefulFlops, videos: int
) -> list[Program]:
    params = _params(model, mesh)
    prefix_ids = _placed(_ints(work.prefix_tokens), replicated(mesh))
    pixels, features, cache = (
        _pixels(model, mesh, videos),
        _features(model, mesh, videos),
        _cache(model, work, mesh, videos),
    )

    def asking(name: Name, r: int, turn: int, new: int, temperature: float, top_p: float, top_k: int = 0) -> Program:
        """r prompts of `turn` tokens behind each video, continued by `new` tokens."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (videos, r)))
        asked = _placed((_ints(videos, r, bucket(turn)), _ints(videos, r), keys), batch_sharding(mesh))
        how = {"max_new_tokens": new, "eos_id": EOS, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        return Program(
            name,
            lambda: generate.lower(params, cache, *asked, config=model, **how),
            _bytes_per_device((params, features, cache, asked)),
            flops.generate(videos * r, turn, new),
        )

    def scoring(r: int) -> Program:
        asked = _placed((_ints(videos, r, bucket(work.judge_tokens)), _ints(videos, r)), batch_sharding(mesh))
        return Program(
            "judge",
            lambda: next_token_logprobs.lower(params, cache, *asked, _ints(2), config=model),
            _bytes_per_device((params, features, cache, asked)),
            flops.score_next(videos * r, work.judge_tokens),
        )

    sampling, describing = config.sampling, config.describe
    respond = sampling.temperature, sampling.top_p, sampling.top_k
    programs = [
        Program(
            "encode",
            lambda: encode.lower(params, pixels, config=model),
            _bytes_per_device((params, pixels)),
            flops.encode(videos),
        ),
        Program(
            "prefill",
            lambda: prefill.lower(params, prefix_ids, features, config=model),
            _bytes_per_device((params, prefix_ids, features)),
            flops.prefill(videos),
        ),
        asking("respond", RESPONSES * work.questions, work.turn_tokens, work.response_tokens, *respond),
    ]
    if config.judge.context != "none":
        describe = describing.temperature, describing.top_p
        programs.append(asking("describe", 1, work.describe_tokens, work.description_tokens, *describe))
    if config.judge.mode == "text":
        return [*programs, asking("judge", 2 * work.questions, work.judge_tokens, work.verdict_tokens, 0.0, 1.0)]
    return [*programs, scoring(2 * work.questions)]


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


def _cache(model: ModelConfig, work: Workload, mesh: Mesh, videos: int) -> KVCache:
    """What `prefill` returns."""
    llama = model.llama
    positions = work.prefix_tokens + model.vision.tokens_per_video
    shape = (llama.num_layers, videos, positions, llama.num_kv_heads, llama.head_dim)
    layout = NamedSharding(mesh, spec((None, "batch", None, "kv_heads", None)))
    half = _placed(jax.ShapeDtypeStruct(shape, jnp.dtype(model.compute_dtype)), layout)
    return KVCache(half, half)


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
