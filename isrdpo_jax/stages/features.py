"""The features that the frozen tower makes of videos: from the cache, or computed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.records import Video
from isrdpo_jax.runs.checkpoint import tree_digest
from isrdpo_jax.runs.processes import any_says
from isrdpo_jax.schema import DataConfig
from isrdpo_jax.sharding import batch_ways
from isrdpo_jax.stages.policy import Policy, encode_frames
from isrdpo_jax.stages.shares import put_batch, share_of

log = logging.getLogger(__name__)
GIB = 2**30


@contextmanager
def open_features(policy: Policy, source: VideoSource, data: DataConfig) -> Iterator[FeatureCache | None]:
    """The cache of a split's features under this policy's tower; None where the configuration has none.

    Raises:
        CheckpointError: what is kept belongs to another tower or other data.
    """
    if data.feature_cache is None:
        yield None
        return
    if any_says(not share_of(policy.mesh, batch_ways(policy.mesh)).writes.all()):
        log.warning("data.feature_cache is not used: mesh.tensor spans processes, which may not keep the same videos.")
        yield None
        return
    vision, dtype = policy.config.vision, jnp.dtype(policy.config.compute_dtype)
    identity = {
        "tower": tree_digest(policy.params["video_tower"]),
        "data": source.digest,
        "model": vision.model_dump(mode="json"),
        "dtype": dtype.name,
    }
    shape = (vision.tokens_per_video, vision.hidden_size)
    limit = round(data.feature_cache * GIB)
    folder = Path(data.dir) / "features"
    with FeatureCache(folder, identity, shape, dtype, limit=limit, writers=jax.process_count()) as cache:
        yield cache


def features_of(policy: Policy, videos: Sequence[Video], cache: FeatureCache | None) -> jax.Array:
    """Features [b, n, d_vision] of the batch of which these are the videos of this process."""
    kept = [] if cache is None else [cache.get(video.id) for video in videos]
    if any_says(not kept or any(one is None for one in kept)):
        return encode_frames(policy, [video.frames for video in videos])
    return put_batch(policy.mesh, np.stack([one for one in kept if one is not None]))
