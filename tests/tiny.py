"""A model of a few thousand parameters, with everything that the large one has, and inputs for it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from isrdpo_jax.data.packing import PairTokens, pack_pairs
from isrdpo_jax.models.video_llava import Params, abstract_params
from isrdpo_jax.programs.dpo_step import PairBatch
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.schema import LlamaConfig, ModelConfig, VisionConfig

TINY = ModelConfig(
    vision=VisionConfig(
        image_size=8, patch_size=4, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=2, num_frames=3
    ),
    llama=LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        max_positions=128,
    ),
)
TINY_WITH_IMAGES = TINY.model_copy(
    update={
        "image": VisionConfig(
            image_size=12,
            patch_size=4,
            hidden_size=16,
            intermediate_size=20,
            num_layers=2,
            num_heads=4,
            num_frames=1,
            temporal_attention=False,
        )
    }
)
PREFIX_IDS = np.array([1, 7, 9], np.int32)
PREFIX_LENGTH = len(PREFIX_IDS) + TINY.vision.tokens_per_video
TURN_LENGTH, RESPONSE_LENGTH = 8, 8  # of packed pairs


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Nothing is at its neutral start: biases are not 0, scales are not 1. Made without compiling anything."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        about = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(about + 0.25 * rng.normal(size=leaf.shape).astype(np.float32))

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def random_pixels(videos: int, config: ModelConfig = TINY, seed: int = 0) -> np.ndarray:
    """Normalised pixels float32[videos, t, S, S, 3]."""
    side = config.vision.image_size
    shape = (videos, config.vision.num_frames, side, side, 3)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_features(videos: int, config: ModelConfig = TINY, seed: int = 0) -> np.ndarray:
    """float32[videos, n, d_vision]."""
    shape = (videos, config.vision.tokens_per_video, config.vision.hidden_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_pairs(count: int, seed: int = 0) -> list[PairTokens]:
    """Pairs of ragged turns and responses that differ."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(3, TINY.llama.vocab_size, rng.integers(low, high + 1)))

    return [PairTokens(ids(2, 6), ids(2, RESPONSE_LENGTH), ids(2, RESPONSE_LENGTH)) for _ in range(count)]


def pair_batch(
    pairs: Sequence[PairTokens],
    features: np.ndarray,
    reference: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> PairBatch:
    """One micro-batch."""
    rows, mask = pack_pairs(pairs, PREFIX_LENGTH, TURN_LENGTH, RESPONSE_LENGTH)
    count = len(pairs)
    reference = np.zeros((count, 2), np.float32) if reference is None else reference
    weights = np.ones(count, np.float32) if weights is None else weights
    return PairBatch(features, PackedRows(*rows), mask, reference, weights)


def assert_trees_close(one, other, tolerance: float, floor: float = 0.0) -> None:
    """Every leaf within `tolerance` of the other, relative to its norm, or to `floor` times the whole tree's norm."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    whole = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(other)))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        difference, size = np.linalg.norm(np.asarray(a) - b), max(np.linalg.norm(b), floor * whole)
        assert difference <= tolerance * size, f"{jax.tree_util.keystr(path)}: {difference / size:.3g} of its norm"


def assert_trees_equal(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)
