"""Log-probs of tokens in chunks, and of whole responses."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops.logprobs import sequence_logprobs, token_logprobs

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(2, 7, 6)).astype(np.float32)
HEAD = RNG.normal(size=(6, 11)).astype(np.float32)
TARGETS = RNG.integers(0, 11, (2, 7))


def project(hidden: jax.Array, head: jax.Array = HEAD) -> jax.Array:
    return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def test_token_logprobs_is_the_targets_entry_of_the_log_softmax():
    logits = HIDDEN.astype(np.float64) @ HEAD
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(expected, TARGETS[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(token_logprobs(HIDDEN, project, TARGETS, chunk=7), expected, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 3, 4, 6])
def test_chunks_change_neither_values_nor_gradients(chunk: int):
    weights = RNG.normal(size=TARGETS.shape).astype(np.float32)

    def total(hidden, head, chunk):
        logprobs = token_logprobs(hidden, lambda states: project(states, head), jnp.asarray(TARGETS), chunk)
        return (logprobs * weights).sum(), logprobs

    def run(chunk):
        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(HIDDEN, jnp.asarray(HEAD), chunk)

    (_, whole), whole_grads = run(7)
    (_, chunked), chunked_grads = run(chunk)
    np.testing.assert_allclose(chunked, whole, rtol=1e-6)
    for one, other in zip(chunked_grads, whole_grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_no_more_logits_than_a_chunk_exist_at_a_time():
    """Neither in the forward nor in the backward pass."""
    total = lambda hidden: token_logprobs(hidden, project, jnp.asarray(TARGETS), chunk=3).sum()  # noqa: E731
    shapes = [int(n) for n in re.findall(r"f32\[2,(\d+),11\]", str(jax.make_jaxpr(jax.grad(total))(HIDDEN)))]
    assert set(shapes) == {3}


def test_bfloat16_states_give_float32_logprobs():
    out = token_logprobs(jnp.asarray(HIDDEN, jnp.bfloat16), project, jnp.asarray(TARGETS), chunk=3)
    assert out.dtype == jnp.float32


# A pair of 2 and 4 tokens; what lies behind the end of a response is poison.
LOGPROBS = jnp.array([[[-1.0, -2.0, jnp.nan, -jnp.inf], [-0.5, -0.25, -4.0, -8.0]]])
MASK = jnp.array([[[True, True, False, False], [True] * 4]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [-3.0, -12.75]),
        ({"average": True}, [-1.5, -12.75 / 4]),
        ({"ld_alpha": 0.5}, [-3.0, -0.75 - 6.0]),  # behind the second token, the longer response counts half
        ({"ld_alpha": 0.0}, [-3.0, -0.75]),
    ],
)
def test_sequence_logprobs_counts_response_tokens_only(options: dict, expected: list[float]):
    np.testing.assert_allclose(sequence_logprobs(LOGPROBS, MASK, **options), [expected], rtol=1e-6)


def test_poison_behind_a_response_does_not_reach_the_gradient():
    grads = jax.grad(lambda x: sequence_logprobs(x, MASK).sum())(LOGPROBS)
    np.testing.assert_array_equal(grads, MASK.astype(jnp.float32))
