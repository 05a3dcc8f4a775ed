"""Sequence log-probs of the pairs under the reference policy: computed once, stored with what they belong to.

They are scored by the training step's own forward, on the same batches, so that a reference that is the policy gives
margins of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.programs.dpo_step import pair_logprobs
from isrdpo_jax.runs.atomic import read_jsonl, write_jsonl
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.runs.manifest import hash_json
from isrdpo_jax.schema import DpoConfig
from isrdpo_jax.sharding import replicated
from isrdpo_jax.stages.engine import Policy
from isrdpo_jax.stages.pair_batches import PairSet, micro_batches, place, updates


def identity(policy_digest: str, policy: Policy, pairs: PairSet, dpo: DpoConfig) -> dict[str, str]:
    """What stored log-probs belong to: policy, tokenizer, prompts, pairs, and the settings that enter them."""
    settings = {"ld_alpha": dpo.ld_alpha, "average": dpo.loss == "ipo", "dtype": policy.config.compute_dtype}
    return {
        "policy": policy_digest,
        "tokenizer": policy.tokenizer.digest,
        "prompts": policy.prompts.digest,
        "pairs": hash_json([[pair["id"], pair["chosen_tokens"], pair["rejected_tokens"]] for pair in pairs.pairs]),
        "settings": hash_json(settings),
    }


def score_pairs(
    policy: Policy,
    source: VideoSource,
    pairs: PairSet,
    order: np.ndarray,
    dpo: DpoConfig,
    layout: IterationLayout,
    *,
    after_part: Callable[[], None],
) -> None:
    """Writes one part per update's worth of pairs; parts that are there already are kept."""
    index_of = {video: i for i, video in enumerate(source.ids)}
    prefix_ids = jax.device_put(np.asarray(policy.prefix_ids, np.int32), replicated(policy.mesh))
    zeros = np.zeros((len(pairs), 2), np.float32)
    for number, (indices, weights) in enumerate(updates(order, dpo)):
        part = layout.part("reference", jax.process_index(), number)
        if part.is_file():
            after_part()
            continue
        batch = place(policy, source, index_of, pairs, indices, weights, zeros, dpo)
        scored = np.concatenate(
            [
                np.asarray(pair_logprobs(policy.params, prefix_ids, micro, config=policy.config, dpo=dpo))
                for micro in micro_batches(batch)
            ]
        )
        real = [(i, row) for i, row, weight in zip(indices, scored, weights, strict=True) if weight]
        write_jsonl(
            part,
            [{"id": pairs.pairs[i]["id"], "chosen": float(row[0]), "rejected": float(row[1])} for i, row in real],
        )
        after_part()


def load_reference(
    layout: IterationLayout, pairs: PairSet, stored: Mapping[str, Any], wanted: Mapping[str, str]
) -> np.ndarray:
    """Stored log-probs in the order of the pairs: float32[pairs, 2].

    Raises:
        CheckpointError: they belong to another policy, tokenizer, prompts, pairs or settings, or a pair lacks them.
    """
    differing = [name for name in wanted if stored.get(name) != wanted[name]]
    if differing:
        raise CheckpointError(
            f"{layout.reference}: these reference log-probs belong to other {', '.join(differing)}. "
            f"Delete {layout.manifest('reference')} and the folder, and run again."
        )
    rows = {row["id"]: row for part in layout.parts("reference") for row in read_jsonl(part)}
    missing = [pair["id"] for pair in pairs.pairs if pair["id"] not in rows]
    if missing:
        raise CheckpointError(
            f"{layout.reference}: no log-probs for {len(missing)} pairs, {missing[0]} among them; delete it."
        )
    return np.array([[rows[p["id"]]["chosen"], rows[p["id"]]["rejected"]] for p in pairs.pairs], np.float32)
