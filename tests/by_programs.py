"""Greedy texts straight from the programs, without an engine: what docs/engine.md shows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from isrdpo_jax.models.kv_cache import KVPrefix
from isrdpo_jax.models.unstacked import build_unstacked
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.ops.sampling import Style, Uses, base_key
from isrdpo_jax.programs.decode import decode
from isrdpo_jax.programs.prefill import prefill
from isrdpo_jax.programs.read import Prompts, Start, read, read_prompts
from isrdpo_jax.programs.slots import abstract_prefixes, abstract_slots, empty, place_prefixes
from isrdpo_jax.programs.unstack import unstacked_decoder
from isrdpo_jax.schema import MeshConfig, ModelConfig
from isrdpo_jax.sharding import make_mesh


def say_greedily(
    params: Params,
    prefix_ids: np.ndarray,
    features: np.ndarray,
    prompts: np.ndarray,
    lengths: np.ndarray,
    new: int,
    *,
    config: ModelConfig,
    eos_id: int,
) -> np.ndarray:
    """One prompt about each video, continued by up to `new` tokens: int32[b, new], 0 behind a text's end.

    Args:
        features: [b, n, d_vision]. prompts: int32[b, m], left-aligned. lengths: int32[b].
    """
    videos, width = prompts.shape
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    llama = unstacked_decoder(params["llama"], config=config)
    prefix = prefill(params, prefix_ids, features, config=config)
    prefixes = empty(abstract_prefixes(config, mesh, videos, 1, prefix.length))
    prefixes = place_prefixes(prefixes, prefix, np.zeros(videos, np.int32))
    slots = empty(abstract_slots(config, mesh, videos, 1, width + new, new))
    each = (videos, 1)
    greedy = Style(*(np.zeros(each, np.int32 if name == "top_k" else np.float32) for name in Style._fields))
    nobody = np.zeros(each, np.uint32)
    start = Start(np.zeros(each, np.int32), np.full(each, new, np.int32), nobody, nobody, nobody, greedy)
    asked = Prompts(np.zeros(videos, np.int32), prompts[:, None], lengths[:, None])
    how = {"config": config, "eos_id": eos_id, "uses": Uses()}
    slots = read(slots, llama, prefixes, asked, start, base_key(0, 0), **how)
    slots, _ = decode(slots, llama, prefixes, enough=videos, steps=new, **how)
    assert not np.asarray(slots.live).any()
    return np.asarray(slots.tokens)[:, 0]


def logits_behind(
    params: Params, prefix: KVPrefix, prompts: np.ndarray, lengths: np.ndarray, *, config: ModelConfig
) -> jax.Array:
    """float32[b, r, v] behind the last token of each prompt int32[b, r, m]."""
    beside = jax.tree.map(lambda x: x[:, None], prefix)
    llama = unstacked_decoder(params["llama"], config=config)

    def run(llama: Params, prefix: KVPrefix, prompts: jax.Array, lengths: jax.Array) -> jax.Array:
        own = Prompts(jnp.zeros(len(prompts), jnp.int32), prompts, lengths)
        return read_prompts(build_unstacked(config, llama), prefix, own)[0]

    return jax.jit(run)(llama, beside, jnp.asarray(prompts), jnp.asarray(lengths))
