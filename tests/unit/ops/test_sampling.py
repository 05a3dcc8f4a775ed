"""The nucleus against a sort, frequencies against probabilities, and keys that belong to records."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops.sampling import keep_top_k, keep_top_p, record_keys, sample


def nucleus(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Which tokens the smallest set of likeliest tokens with mass >= top_p holds, by sorting in float64."""
    probs = np.exp(logits.astype(np.float64) - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    size = int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1
    kept = np.zeros(logits.shape, bool)
    kept[order[:size]] = True
    return kept


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize(("size", "spread"), [(7, 1.0), (300, 3.0), (4000, 8.0)])
def test_top_p_keeps_the_smallest_nucleus(top_p: float, size: int, spread: float):
    logits = np.random.default_rng(size).normal(0, spread, (20, size)).astype(np.float32)
    kept = np.isfinite(jax.jit(keep_top_p, static_argnums=1)(logits, top_p))
    np.testing.assert_array_equal(kept, np.stack([nucleus(row, top_p) for row in logits]))


def test_top_p_leaves_the_kept_logits_alone():
    logits = jnp.array([3.0, 1.0, 2.0, -5.0])
    np.testing.assert_array_equal(keep_top_p(logits, 0.8), [3.0, -np.inf, 2.0, -np.inf])


def test_top_k_keeps_k_tokens():
    logits = jnp.array([[3.0, 1.0, 2.0, -5.0], [0.0, 0.1, 0.2, 0.3]])
    kept = np.isfinite(keep_top_k(logits, 2))
    np.testing.assert_array_equal(kept, [[True, False, True, False], [False, False, True, True]])
    assert np.isfinite(keep_top_k(logits, 9)).all()


def test_temperature_zero_is_greedy_whatever_the_key():
    logits = jnp.array([[0.0, 0.01, -1.0], [5.0, 4.9, 4.99]])
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed), 2)
        np.testing.assert_array_equal(sample(logits, keys, temperature=0, top_p=0.9), [1, 0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.6, 0.3, 0.1]),
        ({"temperature": 0.5}, np.array([0.36, 0.09, 0.01]) / 0.46),
        ({"temperature": 1.0, "top_p": 0.85}, [2 / 3, 1 / 3, 0]),
        ({"temperature": 1.0, "top_k": 1}, [1, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(options: dict, expected: list[float]):
    draws = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.6, 0.3, 0.1])), (draws, 3))
    tokens = np.asarray(sample(logits, jax.random.split(jax.random.key(0), draws), **options))
    frequencies = np.bincount(tokens, minlength=3) / draws
    np.testing.assert_allclose(frequencies, expected, atol=4 * 0.5 / np.sqrt(draws))  # four standard deviations
    assert (frequencies[np.asarray(expected) == 0] == 0).all()


def key_data(seed=0, iteration=1, purpose=0, record=(11, 12, 13), number=(0, 0, 0)) -> list[tuple[int, ...]]:
    records, numbers = jnp.array(record, jnp.uint32), jnp.array(number, jnp.uint32)
    return [
        tuple(key) for key in np.asarray(jax.random.key_data(record_keys(seed, iteration, purpose, records, numbers)))
    ]


def test_a_record_keeps_its_key_in_any_place():
    assert key_data(record=(13, 99, 11)) == [key_data()[2], key_data(record=(99,), number=(0,))[0], key_data()[0]]
    in_rows = record_keys(0, 1, 0, jnp.array([[11], [12]], jnp.uint32), jnp.zeros((2, 1), jnp.uint32))
    assert in_rows.shape == (2, 1)
    assert [tuple(key) for key in np.asarray(jax.random.key_data(in_rows))[:, 0]] == key_data()[:2]


def test_seed_iteration_purpose_record_and_sample_each_give_another_key():
    keys = [
        key_data(seed, iteration, purpose, record=(record,), number=(number,))[0]
        for seed, iteration, purpose, record, number in itertools.product((0, 1), repeat=5)
    ]
    assert len(set(keys)) == 32


def test_hashes_use_all_32_bits():
    high, low = key_data(record=(2**31 + 5, 5), number=(0, 0))
    assert high != low
