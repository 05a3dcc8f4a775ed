"""Sequence log-probs of the pairs under the reference policy: computed once, stored with what they belong to.

They are scored by the training step's own forward, on the same batches, so that a reference that is the policy gives
margins of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.errors import CheckpointError
from isrdpo_jax.programs.dpo_step import pair_logprobs
from isrdpo_jax.runs.atomic import read_jsonl, write_jsonl
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.runs.manifest import hash_json
from isrdpo_jax.runs.processes import first_says, meet
from isrdpo_jax.schema import DpoConfig
from isrdpo_jax.stages.adapters import with_adapters
from isrdpo_jax.stages.pair_batches import PairSet, micro_batches, place, updates
from isrdpo_jax.stages.parts import discard_unfinished, finished, wait_for_all
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.stages.shares import fetch, put_whole, share_of


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
    kept: FeatureCache | None = None,
    after_part: Callable[[], None],
) -> None:
    """Writes one part per process and update's worth of pairs; what is there already is kept.

    Args:
        kept: features of videos that were seen before.
    """
    policy = with_adapters(policy, dpo.lora, seed=0)  # the step's own forward: adapters that change nothing
    index_of = {video: i for i, video in enumerate(source.ids)}
    prefix_ids = put_whole(policy.mesh, np.asarray(policy.prefix_ids, np.int32))
    zeros = np.zeros((len(pairs), 2), np.float32)
    steps, size = dpo.accumulation_steps, dpo.batch_size // dpo.accumulation_steps
    share = share_of(policy.mesh, size)
    written = (size * np.arange(steps)[:, None] + share.rows[share.writes]).ravel()
    done = first_says(lambda: begin_parts(layout, pairs, order, dpo))
    for number, (indices, weights) in enumerate(updates(order, dpo)):
        if not done[number]:
            batch = place(policy, source, index_of, pairs, indices, weights, zeros, dpo, kept)
            scored = np.concatenate(
                [
                    fetch(pair_logprobs(policy.params, prefix_ids, micro, config=policy.config, dpo=dpo))
                    for micro in micro_batches(batch)
                ]
            )
            write_jsonl(
                layout.part("reference", jax.process_index(), number),
                [
                    {
                        "id": pairs.pairs[indices[k]]["id"],
                        "chosen": float(scored[k, 0]),
                        "rejected": float(scored[k, 1]),
                    }
                    for k in written
                    if weights[k]
                ],
            )
        after_part()
    meet()
    first_says(lambda: wait_for_all(lambda: parts_done(layout, pairs, order, dpo), layout.reference))


def begin_parts(layout: IterationLayout, pairs: PairSet, order: np.ndarray, dpo: DpoConfig) -> list[bool]:
    """Which parts are done, after what is left of the others has been removed."""
    done = parts_done(layout, pairs, order, dpo)
    discard_unfinished(layout, ["reference"], done)
    return done


def parts_done(layout: IterationLayout, pairs: PairSet, order: np.ndarray, dpo: DpoConfig) -> list[bool]:
    """Whether all pairs of each update have been scored."""
    wanted = [
        [pairs.pairs[i]["id"] for i, weight in zip(*update, strict=True) if weight] for update in updates(order, dpo)
    ]
    return finished(layout, "reference", "id", wanted)


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
