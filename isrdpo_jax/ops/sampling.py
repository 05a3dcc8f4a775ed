"""Sampling a token per row, with keys that belong to the record and not to its place in a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_BISECTIONS = 30  # halvings of [0, 1] that find the nucleus' threshold: below float32 resolution of a probability


def record_keys(base: jax.Array, purpose: jax.Array, record: jax.Array, sample: jax.Array) -> jax.Array:
    """One key per row, fold_in(base, purpose, record, sample), as data: uint32[..., 2].

    Args:
        base: key[], of a run's seed and iteration (`base_key`).
        purpose: uint32[...], what is sampled (responses, descriptions, verdicts), so that they do not share noise.
        record: uint32[...], a hash of the record's id. sample: uint32[...], which of the record's samples.
    """

    def one(*numbers: jax.Array) -> jax.Array:
        key = base
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return jax.random.key_data(key)

    return jax.vmap(one)(purpose.ravel(), record.ravel(), sample.ravel()).reshape(*record.shape, -1)


def base_key(seed: int, iteration: int) -> jax.Array:
    """key[] of everything that an iteration of a run draws."""
    return jax.random.fold_in(jax.random.key(seed), iteration)


def step_keys(keys: jax.Array, step: jax.Array) -> jax.Array:
    """The key of each row's token number `step`: uint32[..., 2] (`jax.random.key_data`), int[...] -> key[...]."""
    rows = jax.random.wrap_key_data(keys.reshape(-1, 2))
    return jax.vmap(jax.random.fold_in)(rows, step.ravel()).reshape(step.shape)


class Style(NamedTuple):
    """How each row's token is chosen; every array has the rows' shape.

    Attributes:
        temperature: 0 takes the likeliest token. top_p: 1 keeps all. top_k: int32, 0 keeps all. min_p: 0 keeps all.
        repetition_penalty: 1 is none.
    """

    temperature: Any
    top_p: Any
    top_k: Any
    min_p: Any
    repetition_penalty: Any


@dataclass(frozen=True)
class Uses:
    """What any row's style needs, so that nothing else is computed.

    Attributes:
        most_top_k: the largest top_k.
    """

    noise: bool = False
    top_p: bool = False
    most_top_k: int = 0
    min_p: bool = False
    repetition_penalty: bool = False


def keep_top_p(logits: jax.Array, top_p: jax.Array) -> jax.Array:
    """Mask all but the nucleus: the smallest set of likeliest tokens with mass >= top_p (arXiv 1904.09751).

    The threshold probability is found by bisection, which vectorises where a sort over v does not.

    Args:
        logits: float32[..., v]. top_p: float32[...].
    """
    probs = jax.nn.softmax(logits, axis=-1)
    wanted = top_p[..., None]

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.where(probs >= middle, probs, 0.0).sum(-1, keepdims=True) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = probs.max(-1, keepdims=True)
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(top), top))
    return jnp.where((probs >= low) | (probs == top) | (wanted >= 1), logits, -jnp.inf)


def keep_top_k(logits: jax.Array, top_k: jax.Array, most: int) -> jax.Array:
    """Mask all but the k likeliest tokens (ties with the k-th are kept).

    Args:
        logits: float32[..., v]. top_k: int[...], at most `most`; 0 keeps all.
    """
    likeliest = jax.lax.top_k(logits, min(most, logits.shape[-1]))[0]
    at = jnp.clip(top_k - 1, 0, likeliest.shape[-1] - 1)[..., None]
    return jnp.where((logits >= jnp.take_along_axis(likeliest, at, -1)) | (top_k == 0)[..., None], logits, -jnp.inf)


def keep_min_p(logits: jax.Array, min_p: jax.Array) -> jax.Array:
    """Mask tokens less likely than min_p times the likeliest (arXiv 2407.01082): float32[..., v], float32[...]."""
    # Of probabilities p >= min_p max p; the likeliest itself stays whatever rounding does.
    return jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(min_p)[..., None], logits, -jnp.inf)


def penalise_repetition(logits: jax.Array, said: jax.Array, penalty: jax.Array) -> jax.Array:
    """Logits of tokens that the row has said: divided by the penalty where positive, else times it (arXiv 1909.05858).

    Args:
        logits: float32[b, r, v]. said: int[b, r, m], -1 where nothing is. penalty: float32[b, r].
    """
    v = logits.shape[-1]
    rows = jnp.arange(said[..., 0].size).reshape(said.shape[:-1])[..., None]
    flat = jnp.zeros((rows.size, v), bool).at[rows, jnp.where(said < 0, v, said)].set(True, mode="drop")
    penalty = penalty[..., None]
    lower = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(flat.reshape(logits.shape), lower, logits)


def sample(logits: jax.Array, keys: jax.Array, style: Style, said: jax.Array | None, uses: Uses) -> jax.Array:
    """One token per row: argmax at temperature 0, else Gumbel-max over the kept tokens.

    Args:
        logits: float32[b, r, v]. keys: key[b, r]. said: int[b, r, m], the row's earlier tokens, -1 where there are
            none; None when no row has any.
        uses: what any of the styles needs.

    Returns:
        int32[b, r].
    """
    if uses.repetition_penalty and said is not None:
        logits = penalise_repetition(logits, said, style.repetition_penalty)
    likeliest = logits.argmax(-1).astype(jnp.int32)
    if not uses.noise:
        return likeliest
    greedy = style.temperature == 0
    logits = logits / jnp.where(greedy, 1.0, style.temperature)[..., None]
    if uses.most_top_k:
        logits = keep_top_k(logits, style.top_k, uses.most_top_k)
    if uses.top_p:
        logits = keep_top_p(logits, style.top_p)
    if uses.min_p:
        logits = keep_min_p(logits, style.min_p)
    vocabulary = logits.shape[-1]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocabulary,), jnp.float32))(keys.ravel())
    drawn = (logits + noise.reshape(logits.shape)).argmax(-1).astype(jnp.int32)
    return jnp.where(greedy, likeliest, drawn)
