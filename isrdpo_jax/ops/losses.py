"""Preference losses on sequence log-probs, one value per pair. Float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def preference_loss(
    policy: jax.Array, reference: jax.Array, *, loss: str, beta: float, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The loss of each pair and the implicit rewards of its responses.

    With m = (π_chosen - π_rejected) - (ref_chosen - ref_rejected) in nats:
    sigmoid: -log σ(βm), DPO (arXiv 2305.18290), conservative with label smoothing ε; robust: the unbiased form under a
    known flip rate ε (arXiv 2403.00409); hinge: max(0, 1 - βm), SLiC (arXiv 2305.10425); ipo: (m - 1/2β)²
    (arXiv 2310.12036), whose log-probs are token means.

    Args:
        policy, reference: float32[b, 2] log-probs of (chosen, rejected).

    Returns:
        losses float32[b], rewards float32[b, 2] = β (policy - reference).
    """
    rewards = beta * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    right, wrong = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    if loss == "sigmoid":
        losses = (1 - label_smoothing) * right + label_smoothing * wrong
    elif loss == "robust":
        losses = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    elif loss == "hinge":
        losses = jax.nn.relu(1 - margin)
    elif loss == "ipo":
        losses = (margin / beta - 1 / (2 * beta)) ** 2
    else:
        raise ValueError(f"unknown preference loss {loss!r}")
    return losses, rewards


def loss_at_zero_margin(loss: str, beta: float, label_smoothing: float = 0.0) -> float:
    """What a pair costs while policy and reference are the same: log 2 for sigmoid."""
    zero = jnp.zeros((1, 2), jnp.float32)
    return float(preference_loss(zero, zero, loss=loss, beta=beta, label_smoothing=label_smoothing)[0][0])
