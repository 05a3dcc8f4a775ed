"""Sampling a token per row, with keys that belong to the record and not to its place in a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_BISECTIONS = 30  # halvings of [0, 1] that find the nucleus' threshold: below float32 resolution of a probability


def record_keys(seed: int, iteration: int, purpose: int, record: jax.Array, sample: jax.Array) -> jax.Array:
    """One key per row: fold_in(seed, iteration, purpose, record, sample).

    Args:
        purpose: what is sampled (responses, descriptions, verdicts), so that they do not share noise.
        record: uint32[...], a hash of the record's id. sample: uint32[...], which of the record's samples.

    Returns:
        key[...].
    """
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), iteration), purpose)
    flat = jax.vmap(lambda r, s: jax.random.fold_in(jax.random.fold_in(base, r), s))(record.ravel(), sample.ravel())
    return flat.reshape(record.shape)


def keep_top_p(logits: jax.Array, top_p: float) -> jax.Array:
    """Mask all but the nucleus: the smallest set of likeliest tokens with mass >= top_p (arXiv 1904.09751).

    The threshold probability is found by bisection, which vectorises where a sort over v does not.
    """
    probs = jax.nn.softmax(logits, axis=-1)

    def halve(_, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.where(probs >= middle, probs, 0.0).sum(-1, keepdims=True) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    top = probs.max(-1, keepdims=True)
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(top), top))
    return jnp.where((probs >= low) | (probs == top), logits, -jnp.inf)


def keep_top_k(logits: jax.Array, top_k: int) -> jax.Array:
    """Mask all but the k likeliest tokens (ties with the k-th are kept)."""
    threshold = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def sample(logits: jax.Array, keys: jax.Array, *, temperature: float, top_p: float = 1.0, top_k: int = 0) -> jax.Array:
    """One token per row: argmax at temperature 0, else Gumbel-max over the kept tokens.

    Args:
        logits: float32[..., v]. keys: key[...].

    Returns:
        int32[...].
    """
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    vocabulary = logits.shape[-1]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (vocabulary,), jnp.float32))(keys.ravel())
    return (logits + noise.reshape(logits.shape)).argmax(-1).astype(jnp.int32)
