"""Log-probabilities of tokens, computed from hidden states only where they are wanted. Float32 throughout."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def token_logprobs(
    hidden: jax.Array, project: Callable[[jax.Array], jax.Array], targets: jax.Array, chunk: int
) -> jax.Array:
    """log p(target) at each position; the logits [b, n, v] exist for one chunk of positions at a time.

    Args:
        hidden: [b, n, d] final hidden states. project: [b, ..., d] -> float32 logits [b, ..., v]. targets: int[b, n].
        chunk: most positions of a row at a time; each chunk is computed again in the backward pass.

    Returns:
        float32[b, n].
    """

    def some(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, ids = args
        logits = project(states)
        # A sum over v, not an index into it: v may lie on several devices.
        is_target = ids[..., None] == jnp.arange(logits.shape[-1])
        return jnp.where(is_target, logits, 0.0).sum(-1) - jax.nn.logsumexp(logits, axis=-1)

    (b, n), d = targets.shape, hidden.shape[-1]
    if n <= chunk:
        return some((hidden, targets))
    chunks = -(-n // chunk)
    size = -(-n // chunks)  # as even as can be
    padding = chunks * size - n
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(b, chunks, size, d)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(b, chunks, size)
    out = jax.lax.map(jax.checkpoint(some), (hidden.swapaxes(0, 1), targets.swapaxes(0, 1)))
    return out.swapaxes(0, 1).reshape(b, -1)[:, :n]


def sequence_logprobs(logprobs: jax.Array, mask: jax.Array, ld_alpha: float = 1.0, average: bool = False) -> jax.Array:
    """Log-probs of the two responses of each pair from those of their tokens.

    Args:
        logprobs: float32[b, 2, n] of chosen and rejected tokens, EOS included. mask: bool[b, 2, n], left-aligned.
        ld_alpha: weight of the tokens behind the shorter response's length (LD-DPO, arXiv 2409.06411); 1 sums all.
        average: divide by the number of tokens (IPO).

    Returns:
        float32[b, 2].
    """
    lengths = mask.sum(-1)
    shared = jnp.arange(mask.shape[-1]) < lengths.min(-1)[:, None, None]
    weights = jnp.where(shared, 1.0, ld_alpha) * mask
    total = jnp.where(mask, logprobs * weights, 0.0).sum(-1)
    return total / jnp.maximum(lengths, 1) if average else total
