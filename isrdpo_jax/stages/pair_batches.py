"""Preference pairs as batches of packed rows on the mesh; the same batches for the reference and for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.data.packing import PairTokens, bucket, pack_pairs
from isrdpo_jax.programs.dpo_step import PairBatch
from isrdpo_jax.programs.packed import PackedRows
from isrdpo_jax.schema import DpoConfig
from isrdpo_jax.sharding import check_batch
from isrdpo_jax.stages.features import features_of
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.stages.shares import put_batch, share_of

Row = dict[str, Any]


@dataclass(frozen=True)
class PairSet:
    """All pairs of an iteration with their tokens; every batch has the shapes of the widest."""

    pairs: Sequence[Row]
    tokens: Sequence[PairTokens]
    turn_length: int
    response_length: int

    @staticmethod
    def of(pairs: Sequence[Row], policy: Policy) -> PairSet:
        """Tokenises the questions; the responses keep the tokens that were sampled."""
        turns = [policy.tokenizer.encode_turn(policy.prompts.answer(pair["question"])) for pair in pairs]
        tokens = [
            PairTokens(tuple(turn), tuple(pair["chosen_tokens"]), tuple(pair["rejected_tokens"]))
            for turn, pair in zip(turns, pairs, strict=True)
        ]
        turn = max(len(one.turn) for one in tokens)
        longest = max(max(len(one.chosen), len(one.rejected)) for one in tokens)
        policy.check_fits(policy.prefix_length, turn + longest, "prompt and response")
        return PairSet(pairs, tokens, bucket(turn, 16), bucket(longest, 16))

    def __len__(self) -> int:
        return len(self.pairs)


def epoch_order(count: int, seed: int, iteration: int, epoch: int) -> np.ndarray:
    """The pairs' order in an epoch, int[count]: a function of its arguments alone."""
    return np.random.default_rng([seed, iteration, epoch]).permutation(count)


def updates(order: np.ndarray, dpo: DpoConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices int[batch_size] and weights float32[batch_size] of each update; the last one is padded with weight 0."""
    for start in range(0, len(order), dpo.batch_size):
        chosen = order[start : start + dpo.batch_size]
        padding = dpo.batch_size - len(chosen)
        indices = np.concatenate([chosen, np.full(padding, order[0])])
        yield indices, np.concatenate([np.ones(len(chosen), np.float32), np.zeros(padding, np.float32)])


def place(
    policy: Policy,
    source: VideoSource,
    index_of: dict[str, int],
    pairs: PairSet,
    indices: np.ndarray,
    weights: np.ndarray,
    reference: np.ndarray,
    dpo: DpoConfig,
    kept: FeatureCache | None = None,
) -> PairBatch:
    """One update's micro-batches on the mesh: leading axes [accumulation_steps, batch_size / accumulation_steps].

    Args:
        index_of: place of each video id in the source.
        reference: float32[pairs, 2]. kept: features of videos that were seen before.
    """
    steps = dpo.accumulation_steps
    size = dpo.batch_size // steps
    check_batch(policy.mesh, size, "dpo.batch_size / dpo.accumulation_steps")
    rows_here = share_of(policy.mesh, size).rows
    here = (size * np.arange(steps)[:, None] + rows_here).ravel()  # the places that this process fills
    indices = indices[here]
    videos = [source[index_of[pairs.pairs[i]["video"]]] for i in indices]
    own = len(rows_here)
    features = jnp.stack([features_of(policy, videos[k * own : (k + 1) * own], kept) for k in range(steps)])
    prefix = policy.prefix_length
    rows, mask = pack_pairs([pairs.tokens[i] for i in indices], prefix, pairs.turn_length, pairs.response_length)
    host = (PackedRows(*rows), mask, reference[indices], weights[here])
    split = jax.tree.map(lambda x: x.reshape(steps, own, *x.shape[1:]), host)
    return PairBatch(features, *jax.tree.map(lambda x: put_batch(policy.mesh, x, axis=1), split))


def micro_batches(batch: PairBatch) -> Iterator[PairBatch]:
    for k in range(batch.weights.shape[0]):
        yield jax.tree.map(lambda x, k=k: x[k], batch)
