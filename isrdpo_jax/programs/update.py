"""The optimizer and the guarded update that supervised and preference training share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from isrdpo_jax.sharding import replicated


class TrainState(NamedTuple):
    """params: float32 masters of what is trained. bad_updates: int32, updates refused in a row (not finite)."""

    params: Any
    opt_state: Any
    step: Any
    bad_updates: Any


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    update = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return update if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), update)


def muon(
    learning_rate: optax.Schedule, *, ratio: float, b1: float, b2: float, weight_decay: float, clip_norm: float | None
) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the layers' matrices, AdamW for all else: embeddings, head, scales and biases.

    From nothing, it leaves the plateau on which shapes and directions are not told apart long before AdamW does.

    Args:
        learning_rate: AdamW's schedule; the matrices move at `ratio` times it.
        b1, b2, weight_decay: AdamW's; the decay is the matrices' too, Muon's momentum is optax's 0.95.
        clip_norm: of the whole gradient; None = off.
    """

    def matrices(params: Any) -> Any:
        def numbers(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            inner = path[-1].key == "kernel" and path[-2].key != "patch_embedding"
            return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if inner else None

        return jax.tree.map_with_path(numbers, params)

    update = optax.contrib.muon(
        lambda count: ratio * learning_rate(count),
        adam_learning_rate=learning_rate,
        adam_b1=b1,
        adam_b2=b2,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=matrices,
    )
    return update if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), update)


def abstract_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and shardings of a fresh state: each moment lies where its parameter lies. Allocates nothing.

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`s with their shardings.
    """
    shardings = {path: leaf.sharding for path, leaf in jax.tree.leaves_with_path(params)}
    whole = replicated(next(iter(shardings.values())).mesh)

    def placed(path: tuple, array: Any) -> jax.ShapeDtypeStruct:
        # A moment's path ends with its parameter's. (`optax.tree.map_params` fails on moments that one of several
        # optimizers leaves out.)
        ends = (path[start:] for start in range(len(path)))
        sharding = next((shardings[end] for end in ends if end in shardings), whole)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    moments = jax.tree.map_with_path(placed, jax.eval_shape(optimizer.init, params))
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(jax.tree.map_with_path(placed, params), moments, count, count)


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state, laid out as in `abstract_state`. The parameters are not copied; a step donates them."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer))
    # Zeros depend on nothing, so the compiler would replicate the moments if it were left to choose.
    moments = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    step, bad = (jax.device_put(jnp.int32(0), shardings.step) for _ in range(2))
    return TrainState(params, moments, step, bad)


class UpdateProgram:
    """A jitted step `(state, …) -> (state, metrics)`: donates the state; the new one lies where the old one lay.

    Left to itself the compiler chooses other shardings for the new state, and the next step would be compiled anew.
    It is called, or lowered from shapes and shardings alone, like what `jax.jit` returns.
    """

    def __init__(self, step: Callable, static: tuple[str, ...]):
        @functools.cache
        def program(tree: Any, shardings: tuple) -> Any:
            out = (tree.unflatten(shardings), None)
            return jax.jit(step, static_argnames=static, donate_argnames="state", out_shardings=out)

        self._program = program
        functools.update_wrapper(self, step)

    def _for(self, state: TrainState) -> Any:
        shardings, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
        return self._program(tree, tuple(shardings))

    def __call__(self, state: TrainState, *args: Any, **settings: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        return self._for(state)(state, *args, **settings)

    def lower(self, state: TrainState, *args: Any, **settings: Any) -> jax.stages.Lowered:
        return self._for(state).lower(state, *args, **settings)


def update_program(*static: str) -> Callable[[Callable], UpdateProgram]:
    """Makes an `UpdateProgram` of the step that it decorates; `static` names the step's static arguments."""
    return lambda step: UpdateProgram(step, static)


def guarded_update(
    state: TrainState,
    grads: Any,
    loss: jax.Array,
    optimizer: optax.GradientTransformation,
    rate: jax.Array | float = 1.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Apply the update, times `rate`, when loss and gradients are finite; else keep parameters and moments and count.

    (`optax.apply_if_finite` applies the bad update after enough of them in a row.)
    """
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, jax.tree.map(lambda u: rate * u, updates))
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(good, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    bad = jnp.where(good, 0, state.bad_updates + 1).astype(jnp.int32)
    return TrainState(params, opt_state, state.step + 1, bad), {"grad_norm": norm, "update_applied": good}
