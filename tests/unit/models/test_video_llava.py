"""The parameter tree: its size at 7B, its logical axes, and its one initialisation."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import PREFIX_IDS, TINY, random_features

from isrdpo_jax.models.video_llava import abstract_params, build, init, logical_axes
from isrdpo_jax.schema import ModelConfig
from isrdpo_jax.sharding import RULES


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_the_default_is_the_7b_model_to_the_parameter():
    params = abstract_params(ModelConfig())
    assert count(params["llama"]) == 6_738_415_616
    assert count(params["projector"]) == 20_979_712
    temporal_of_24 = 101_007_360
    temporal = params["video_tower"]["layers"]["temporal"]
    assert count(temporal) == temporal_of_24 // 24 * 23
    # The published tower, less its last layer and the norm behind it, which no feature depends on.
    d, mlp = 1024, 4096
    last_layer = 4 * (d * d + d) + 2 * d * mlp + mlp + d + 4 * d + temporal_of_24 // 24
    assert count(params["video_tower"]) == 404_187_136 - last_layer - 2 * d


@pytest.mark.parametrize("config", [TINY, ModelConfig()], ids=["tiny", "7b"])
def test_logical_axes_name_every_dimension_of_every_parameter(config: ModelConfig):
    axes, abstract = logical_axes(config), abstract_params(config)
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(abstract)
    for (path, names), leaf in zip(
        jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes), jax.tree.leaves(abstract), strict=True
    ):
        assert len(names) == len(leaf.shape), path
        assert (names[0] == "layers") == ("layers" in jax.tree_util.keystr(path)), path
        assert set(names) <= RULES.keys(), path


def test_every_matrix_of_the_decoder_is_sharded_over_both_axes():
    for path, names in jax.tree_util.tree_leaves_with_path(
        logical_axes(TINY)["llama"], is_leaf=lambda x: isinstance(x, tuple)
    ):
        physical = {RULES[name] for name in names} - {None}
        assert physical == ({"fsdp", "tensor"} if "norm" not in jax.tree_util.keystr(path) else set()), path


def test_initialisation_is_a_function_of_the_key():
    make = jax.jit(init, static_argnums=0)
    one, same, other = (make(TINY, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one["llama"]["head"], other["llama"]["head"])
    assert {leaf.dtype for leaf in jax.tree.leaves(one)} == {np.dtype("float32")}


def test_stacked_layers_differ():
    kernel = jax.jit(init, static_argnums=0)(TINY, jax.random.key(0))["llama"]["layers"]["q"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1


def test_the_prefix_is_text_then_video(tiny_params):
    features = random_features(2)
    model = build(TINY, tiny_params)
    prefix = model.embed_prefix(PREFIX_IDS, features)
    assert prefix.shape == (2, len(PREFIX_IDS) + TINY.vision.tokens_per_video, TINY.llama.hidden_size)
    np.testing.assert_array_equal(prefix[0, :3], tiny_params["llama"]["embedding"][PREFIX_IDS])
    np.testing.assert_allclose(prefix[:, 3:], model.projector(features), rtol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_masters(tiny_params):
    config = TINY.model_copy(update={"compute_dtype": "bfloat16"})
    assert build(config, tiny_params).embed_prefix(PREFIX_IDS, random_features(1)).dtype == jax.numpy.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract_params(config))} == {np.dtype("float32")}
