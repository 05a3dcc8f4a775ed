"""Log-probabilities of tokens, computed from hidden states only where they are wanted. Float32 throughout."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_logprobs(hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int = 4096) -> jax.Array:
    """log p(target) at each position; the [positions, v] logits exist for one chunk at a time.

    Args:
        hidden: [..., d] final hidden states. head: [d, v]. targets: int[...].
        chunk: positions per chunk; each chunk is recomputed in the backward pass.

    Returns:
        float32[...].
    """
    d, shape = hidden.shape[-1], targets.shape
    hidden, targets = hidden.reshape(-1, d), targets.reshape(-1)

    def some(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        states, ids = args
        logits = jnp.matmul(states, head, preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    count = targets.shape[0]
    if count <= chunk:
        return some((hidden, targets)).reshape(shape)
    padding = -count % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, d)
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    return jax.lax.map(jax.checkpoint(some), (hidden, targets)).reshape(-1)[:count].reshape(shape)


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
