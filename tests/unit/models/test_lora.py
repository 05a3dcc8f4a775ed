"""Adapters: they begin as nothing, compute what the merged decoder computes, and are all that is trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import PREFIX_IDS, TINY, assert_trees_close, pair_batch, random_features, random_pairs

from isrdpo_jax.models.lora import (
    abstract_adapters,
    adapter_axes,
    adapters,
    combine,
    init_adapters,
    merge,
    without_adapters,
)
from isrdpo_jax.programs.dpo_step import pair_loss, response_logprobs
from isrdpo_jax.schema import DpoConfig, LoraConfig

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "v", "out", "down"))
ADAPTED = TINY.model_copy(update={"lora": LORA})
BATCH = pair_batch(random_pairs(2), random_features(2))


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(init_adapters, static_argnums=0)(ADAPTED, jax.random.key(0))


@pytest.fixture(scope="module")
def trained(fresh):
    """As after some steps: b is not 0 any more."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), fresh)


def test_each_target_has_adapters_of_its_shape(fresh):
    layers, d, c = TINY.llama.num_layers, TINY.llama.hidden_size, TINY.llama.head_dim
    shapes = jax.tree.map(jnp.shape, fresh)["layers"]
    assert shapes == {
        "q": {"lora_a": (layers, d, 3), "lora_b": (layers, 3, TINY.llama.num_heads * c)},
        "v": {"lora_a": (layers, d, 3), "lora_b": (layers, 3, TINY.llama.num_kv_heads * c)},
        "out": {"lora_a": (layers, TINY.llama.num_heads * c, 3), "lora_b": (layers, 3, d)},
        "down": {"lora_a": (layers, TINY.llama.intermediate_size, 3), "lora_b": (layers, 3, d)},
    }
    assert jax.tree.map(lambda x: x.shape, abstract_adapters(ADAPTED)) == {"layers": shapes}
    assert adapter_axes(ADAPTED)["layers"]["q"] == {
        "lora_a": ("layers", "embed", None),
        "lora_b": ("layers", None, "heads"),
    }


def test_a_tree_is_its_adapters_and_the_rest(tiny_params, trained):
    both = combine(tiny_params["llama"], trained)
    assert jax.tree.all(jax.tree.map(np.array_equal, adapters(both), trained))
    assert jax.tree.all(jax.tree.map(np.array_equal, without_adapters(both), tiny_params["llama"]))
    assert adapters(tiny_params) == {}


def logprobs(params, config):
    return response_logprobs(params, PREFIX_IDS, BATCH, config=config)


def test_fresh_adapters_change_nothing(tiny_params, fresh):
    assert all(not b.any() for path, b in jax.tree_util.tree_leaves_with_path(fresh) if path[-1].key == "lora_b")
    adapted = {**tiny_params, "llama": combine(tiny_params["llama"], fresh)}
    np.testing.assert_allclose(logprobs(adapted, ADAPTED), logprobs(tiny_params, TINY), rtol=0, atol=1e-6)


def test_the_merged_decoder_computes_the_same(tiny_params, trained):
    adapted = {**tiny_params, "llama": combine(tiny_params["llama"], trained)}
    merged = {**tiny_params, "llama": merge(tiny_params["llama"], trained, LORA)}
    assert jax.tree.structure(merged) == jax.tree.structure(tiny_params)
    ours, plain = logprobs(merged, TINY), logprobs(tiny_params, TINY)
    np.testing.assert_allclose(logprobs(adapted, ADAPTED), ours, rtol=0, atol=2e-5)
    assert np.abs(ours - plain).max() > 0.01


def test_gradients_are_those_through_the_merged_decoder(tiny_params, trained):
    """d loss / d a and d loss / d b, beside the kernel and inside it."""
    llama = tiny_params["llama"]
    others = {name: value for name, value in tiny_params.items() if name != "llama"}
    totals, dpo = jnp.array([2.0, 9.0]), DpoConfig(sft_weight=0.1)

    def beside(tree):
        return pair_loss(tree, {**others, "llama": llama}, PREFIX_IDS, BATCH, totals, ADAPTED, dpo)[0]

    def inside(tree):
        return pair_loss(merge(llama, tree, LORA), others, PREFIX_IDS, BATCH, totals, TINY, dpo)[0]

    assert_trees_close(jax.jit(jax.grad(beside))(trained), jax.jit(jax.grad(inside))(trained), 1e-4)
