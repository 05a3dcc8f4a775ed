"""The video tower: its layer order, and what time does in it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, random_params, random_pixels
from written_out import float64, video_tower

from isrdpo_jax.models.video_llava import Params, abstract_params
from isrdpo_jax.programs.encode import encode
from isrdpo_jax.schema import ModelConfig, VisionConfig

PIXELS = random_pixels(2)
PERMUTATION = np.array([2, 0, 1])


def with_vision(**changes) -> ModelConfig:
    return TINY.model_copy(update={"vision": TINY.vision.model_copy(update=changes)})


@functools.cache
def params_of(config: ModelConfig) -> Params:
    return random_params(config)


def by_frame(features: jax.Array, config: ModelConfig = TINY) -> np.ndarray:
    """[b, n, d] -> [b, t, n / t, d]."""
    return np.asarray(features).reshape(len(features), config.vision.num_frames, -1, features.shape[-1])


def changed(params: Params, change) -> Params:
    """The parameters with a change to the (stacked) temporal part."""
    tower = params["video_tower"]
    temporal = change(tower["layers"]["temporal"])
    return {**params, "video_tower": {**tower, "layers": {**tower["layers"], "temporal": temporal}}}


def no_embedding(temporal: Params) -> Params:
    return {**temporal, "embedding": jnp.zeros_like(temporal["embedding"])}


def no_output(temporal: Params) -> Params:
    out = jax.tree.map(jnp.zeros_like, temporal["attention"]["out"])
    return {**temporal, "attention": {**temporal["attention"], "out": out}}


@pytest.mark.parametrize(
    "config",
    [TINY, with_vision(temporal_attention=False), with_vision(keep_cls=True)],
    ids=["temporal", "spatial", "cls"],
)
def test_the_tower_is_what_its_description_says(config: ModelConfig):
    params = params_of(config)
    expected = [video_tower(one, float64(params["video_tower"]), config.vision) for one in PIXELS]
    np.testing.assert_allclose(encode(params, PIXELS, config=config), expected, atol=2e-5)


def test_without_its_temporal_parts_it_is_the_per_frame_tower():
    spatial_config = with_vision(temporal_attention=False)
    params = changed(params_of(TINY), lambda temporal: no_output(no_embedding(temporal)))
    tower = dict(params["video_tower"])
    tower["layers"] = {name: part for name, part in tower["layers"].items() if name != "temporal"}
    spatial = encode({**params, "video_tower": tower}, PIXELS, config=spatial_config)
    np.testing.assert_allclose(encode(params, PIXELS, config=TINY), spatial, atol=1e-6)


def test_without_temporal_embeddings_permuted_frames_give_permuted_features():
    params = changed(params_of(TINY), no_embedding)
    straight = by_frame(encode(params, PIXELS, config=TINY))
    permuted = by_frame(encode(params, PIXELS[:, PERMUTATION], config=TINY))
    np.testing.assert_allclose(permuted, straight[:, PERMUTATION], atol=1e-5)


def test_with_them_the_order_of_frames_matters():
    straight = by_frame(encode(params_of(TINY), PIXELS, config=TINY))
    permuted = by_frame(encode(params_of(TINY), PIXELS[:, PERMUTATION], config=TINY))
    assert np.abs(permuted - straight[:, PERMUTATION]).max() > 0.1


def test_frames_see_each_other():
    other = PIXELS.copy()
    other[:, 2] += 1
    difference = by_frame(encode(params_of(TINY), other, config=TINY)) - by_frame(
        encode(params_of(TINY), PIXELS, config=TINY)
    )
    assert (np.abs(difference).max(axis=(2, 3)) > 1e-3).all()


def test_the_temporal_embedding_stays_in_the_residual_stream():
    """With the attention silent, a frame differs from its twin by what was added to it."""
    params = changed(params_of(TINY), no_output)
    still = np.repeat(PIXELS[:, :1], TINY.vision.num_frames, axis=1)
    frames = by_frame(encode(params, still, config=TINY))
    assert np.abs(frames[:, 1] - frames[:, 0]).max() > 0.1


def test_the_tapped_layer_decides_how_many_are_built():
    assert VisionConfig().layers_built == 23
    for feature_layer, built in ((-1, 3), (-2, 2), (1, 1), (3, 3)):
        vision = TINY.vision.model_validate({**TINY.vision.model_dump(), "feature_layer": feature_layer})
        assert vision.layers_built == built
        stacked = abstract_params(TINY.model_copy(update={"vision": vision}))["video_tower"]["layers"]
        assert {leaf.shape[0] for leaf in jax.tree.leaves(stacked)} == {built}


def test_the_class_token_is_dropped_unless_kept():
    assert VisionConfig().tokens_per_video == 2048
    assert VisionConfig(keep_cls=True).tokens_per_video == 2056
    kept_config = with_vision(keep_cls=True)
    kept = by_frame(encode(params_of(TINY), PIXELS, config=kept_config), kept_config)
    assert kept.shape[2] == 5
    np.testing.assert_allclose(kept[:, :, 1:], by_frame(encode(params_of(TINY), PIXELS, config=TINY)), atol=1e-6)


def test_another_number_of_frames_is_refused():
    with pytest.raises(ValueError, match="takes 3 frames per video, not 2"):
        encode(params_of(TINY), PIXELS[:, :2], config=TINY)
