"""DPO on one iteration's pairs: a fresh optimizer, exact resume, and a check that training starts where it should."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax

from isrdpo_jax.data.feature_cache import FeatureCache
from isrdpo_jax.data.loader import VideoSource
from isrdpo_jax.errors import DivergedError
from isrdpo_jax.models.video_llava import Params
from isrdpo_jax.ops.losses import loss_at_zero_margin
from isrdpo_jax.programs.dpo_step import dpo_step
from isrdpo_jax.programs.update import TrainState, adamw, create_state
from isrdpo_jax.runs.checkpoint import PendingSave, newest_verified, prune, restore_tree, start_save
from isrdpo_jax.runs.layout import IterationLayout
from isrdpo_jax.runs.metrics import MetricsWriter
from isrdpo_jax.runs.preemption import StopSignal
from isrdpo_jax.runs.processes import first_says, is_first
from isrdpo_jax.runs.wandb_log import WandbRun
from isrdpo_jax.schema import Config, DpoConfig
from isrdpo_jax.stages.adapters import plain_params, trained_and_frozen, with_adapters
from isrdpo_jax.stages.pair_batches import PairSet, epoch_order, place, updates
from isrdpo_jax.stages.policy import Policy
from isrdpo_jax.stages.shares import put_whole

log = logging.getLogger(__name__)

# Of max |log-prob|: rounding of the same sum in two compilations. A token's rounding follows its logits, which do not
# vanish when a confident policy's log-probs do, so a response counts for at least one nat per token.
FLOAT32_TOLERANCE = 1e-6
BFLOAT16_WARN, BFLOAT16_STOP = 1.0, 2.0  # nats


def update_count(pairs: int, dpo: DpoConfig) -> int:
    return dpo.epochs * -(-pairs // dpo.batch_size)


def learning_rate(update: int, total: int, dpo: DpoConfig) -> float:
    """The rate of update 0 … total - 1: a linear warm-up and a linear decay; none is wasted on a rate of zero."""
    warmup = int(np.ceil(dpo.warmup_fraction * total))
    if update < warmup:
        return dpo.learning_rate * (update + 1) / warmup
    return dpo.learning_rate * (total - update) / (total - warmup + (warmup > 0))


@functools.cache  # a static argument of the step: one object for all iterations
def make_optimizer(dpo: DpoConfig) -> optax.GradientTransformation:
    return adamw(1.0, b1=dpo.b1, b2=dpo.b2, eps=dpo.eps, weight_decay=dpo.weight_decay, clip_norm=dpo.clip_norm)


def start_check(metrics: dict[str, float], dpo: DpoConfig, dtype: str) -> str:
    """Where the reference is the policy, the first batch's margins are zero and the loss is that of margin zero.

    Returns:
        A sentence for the user.

    Raises:
        DivergedError: they are not.
    """
    margin, logp = metrics["max_abs_margin"], max(metrics["max_abs_logp"], metrics["max_tokens"])
    expected = loss_at_zero_margin(dpo.loss, dpo.beta, dpo.label_smoothing)
    expects = f"margin 0 gives {expected:.6f} plus the SFT term"
    told = f"first batch: max |margin| {margin:.3g}, loss {metrics['loss']:.6f} ({expects})"
    limit = dpo.beta * (FLOAT32_TOLERANCE * logp if dtype == "float32" else BFLOAT16_STOP)
    if not margin <= limit:
        raise DivergedError(
            f"{told}: above {limit:.3g}, so the stored reference is not this policy. Delete this iteration's reference."
        )
    if dtype != "float32" and margin > dpo.beta * BFLOAT16_WARN:
        log.warning("%s: above %.3g, large even for %s", told, dpo.beta * BFLOAT16_WARN, dtype)
    return told


def optimize(
    policy: Policy,
    source: VideoSource,
    pairs: PairSet,
    reference: np.ndarray,
    config: Config,
    layout: IterationLayout,
    *,
    starts_at_reference: bool,
    stop: StopSignal,
    after_update: Callable[[dict[str, float]], None],
    kept: FeatureCache | None = None,
    say: Callable[[str], None],
) -> Params:
    """Trains the decoder, or adapters of it, from π_t to π_{t+1}; goes on from the newest training state on disk.

    Args:
        kept: features of videos that were seen before.

    Returns:
        All parameters of π_{t+1}.

    Raises:
        DivergedError: `dpo.max_bad_updates` updates in a row were not finite, or the start check failed.
        StoppedError: on request, behind a saved training state.
    """
    dpo, iteration = config.dpo, layout.index
    total = update_count(len(pairs), dpo)
    optimizer = make_optimizer(dpo)
    policy = with_adapters(policy, dpo.lora, config.run.seed)
    trained, frozen = trained_and_frozen(policy)
    state = create_state(jax.tree.map(jnp.copy, trained), optimizer)  # the step donates it
    found = first_says(lambda: newest_verified(layout.train, verify=config.checkpoint.verify))
    for problem in found.refused:
        say(problem)
    if found.path is not None:
        state = restore_tree(found.path, state, verify=config.checkpoint.verify)
        say(f"going on behind update {found.step} of {total}")
    index_of = {video: i for i, video in enumerate(source.ids)}
    prefix_ids = put_whole(policy.mesh, np.asarray(policy.prefix_ids, np.int32))
    pending: PendingSave | None = None
    step = 0
    with _metrics(layout, config, resumed_step=found.step) as write:
        for epoch in range(dpo.epochs):
            for indices, weights in updates(epoch_order(len(pairs), config.run.seed, iteration, epoch), dpo):
                step += 1
                if step <= found.step:
                    continue
                batch = place(policy, source, index_of, pairs, indices, weights, reference, dpo, kept)
                rate = learning_rate(step - 1, total, dpo)
                state, measured = dpo_step(
                    state,
                    frozen,
                    prefix_ids,
                    batch,
                    np.float32(rate),
                    config=policy.config,
                    dpo=dpo,
                    optimizer=optimizer,
                )
                metrics = {name: float(value) for name, value in jax.device_get(measured).items()}
                metrics["learning_rate"] = rate
                if step == 1 and starts_at_reference:
                    say(start_check(metrics, dpo, policy.config.compute_dtype))
                write(step, metrics)
                _check_bad(int(state.bad_updates), step, dpo, layout)
                after_update(metrics)
                asked = stop.requested
                if step < total and (step % config.checkpoint.every_steps == 0 or asked):
                    pending = _save(layout, state, step, pending)
                    if asked:
                        pending.wait()
                        stop.check()
    if pending:
        pending.wait()
    return plain_params(state.params, frozen, dpo.lora)


@contextmanager
def _metrics(
    layout: IterationLayout, config: Config, *, resumed_step: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Writes the metrics of an update, in process 0."""
    if not is_first():
        yield lambda step, metrics: None
        return
    project = config.tracking.wandb
    wandb = WandbRun(project, layout.root, config.model_dump(mode="json")) if project else None
    with MetricsWriter(
        layout.metrics, resumed_step=resumed_step, tensorboard=layout.tensorboard, wandb=wandb
    ) as writer:
        yield writer.write


def _save(layout: IterationLayout, state: TrainState, step: int, pending: PendingSave | None) -> PendingSave:
    """Begins to save; the former save is waited for, and only then are older states removed."""
    if pending:
        pending.wait()
        if is_first():
            prune([layout.train_step(n) for n in layout.train_steps()], [pending.path])
    return start_save(layout.train_step(step), state, iteration=layout.index, facts={"step": step})


def _check_bad(bad: int, step: int, dpo: DpoConfig, layout: IterationLayout) -> None:
    if bad:
        log.warning("update %d is not finite and was not applied (%d in a row)", step, bad)
    if bad >= dpo.max_bad_updates:
        found = newest_verified(layout.train)
        good = found.path or layout.root.parent / f"iter_{layout.index - 1:02d}" / "checkpoint"
        raise DivergedError(
            f"iteration {layout.index}: {bad} updates in a row, up to {step}, were not finite. The last good "
            f"checkpoint is {good}. Lower dpo.learning_rate, or set dpo.clip_norm."
        )
