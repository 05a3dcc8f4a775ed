"""The nucleus against a sort, frequencies against probabilities, and keys that belong to records."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops.sampling import (
    Style,
    Uses,
    base_key,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    record_keys,
    sample,
    step_keys,
)


def nucleus(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Which tokens the smallest set of likeliest tokens with mass >= top_p holds, by sorting in float64."""
    probs = np.exp(logits.astype(np.float64) - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs)
    size = int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1
    kept = np.zeros(logits.shape, bool)
    kept[order[:size]] = True
    return kept


def styles(rows: int, **settings) -> Style:
    """The same style for all rows [1, rows]; by default the distribution as it is."""
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0} | settings
    return Style(*(jnp.full((1, rows), plain[name]) for name in Style._fields))


ALL = Uses(noise=True, top_p=True, most_top_k=3, min_p=True, repetition_penalty=True)


def draw(logits, keys, said=None, uses: Uses = ALL, **settings) -> np.ndarray:
    """One token for each row of logits [rows, v]."""
    said = None if said is None else jnp.asarray(said)[None]
    return np.asarray(sample(jnp.asarray(logits)[None], keys[None], styles(len(logits), **settings), said, uses))[0]


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize(("size", "spread"), [(7, 1.0), (300, 3.0), (4000, 8.0)])
def test_top_p_keeps_the_smallest_nucleus(top_p: float, size: int, spread: float):
    logits = np.random.default_rng(size).normal(0, spread, (20, size)).astype(np.float32)
    kept = np.isfinite(jax.jit(keep_top_p)(logits, jnp.full(20, top_p)))
    np.testing.assert_array_equal(kept, np.stack([nucleus(row, top_p) for row in logits]))


def test_top_p_leaves_the_kept_logits_alone_and_is_each_rows_own():
    logits = jnp.array([[3.0, 1.0, 2.0, -5.0]] * 2)
    kept = keep_top_p(logits, jnp.array([0.8, 1.0]))
    np.testing.assert_array_equal(kept, [[3.0, -np.inf, 2.0, -np.inf], logits[1]])


def test_top_k_keeps_each_rows_k_tokens():
    logits = jnp.array([[3.0, 1.0, 2.0, -5.0], [0.0, 0.1, 0.2, 0.3], [1.0, 2.0, 3.0, 4.0]])
    kept = np.isfinite(keep_top_k(logits, jnp.array([2, 1, 0]), 2))
    np.testing.assert_array_equal(kept, [[True, False, True, False], [False, False, False, True], [True] * 4])
    assert np.isfinite(keep_top_k(logits, jnp.array([9, 9, 9]), 9)).all()


def test_min_p_keeps_what_is_likely_beside_the_likeliest():
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.1]] * 3))
    kept = np.isfinite(keep_min_p(logits, jnp.array([0.4, 0.6, 0.0])))
    np.testing.assert_array_equal(kept, [[True, True, False], [True, False, False], [True] * 3])


def test_repetition_is_penalised_as_its_paper_says():
    """Positive logits are divided and negative ones multiplied; a token that was not said stays, and -1 is none."""
    logits = jnp.array([[[2.0, -2.0, 3.0, 4.0]]])
    lower = penalise_repetition(logits, jnp.array([[[1, 0, 0, -1]]]), jnp.array([[2.0]]))
    np.testing.assert_array_equal(lower, [[[1.0, -4.0, 3.0, 4.0]]])
    assert draw(logits[0], jax.random.split(jax.random.key(0), 1), [[3, -1]], temperature=0, repetition_penalty=2) == 2


def test_temperature_zero_is_greedy_whatever_the_key_and_beside_rows_that_are_drawn():
    logits = jnp.array([[0.0, 0.01, -1.0], [5.0, 4.9, 4.99]])
    style = styles(2)._replace(temperature=jnp.array([[0.0, 1.0]]))
    beside = jax.jit(lambda keys: sample(logits[None], keys[None], style, None, ALL)[0])
    drawn = set()
    for seed in range(30):
        first, second = np.asarray(beside(jax.random.split(jax.random.key(seed), 2)))
        assert first == 1
        drawn.add(int(second))
    assert drawn == {0, 1, 2}
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(draw(logits, keys, temperature=0, top_p=0.9), [1, 0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, [0.6, 0.3, 0.1]),
        ({"temperature": 0.5}, np.array([0.36, 0.09, 0.01]) / 0.46),
        ({"temperature": 1.0, "top_p": 0.85}, [2 / 3, 1 / 3, 0]),
        ({"temperature": 1.0, "top_k": 1}, [1, 0, 0]),
        ({"temperature": 1.0, "min_p": 0.4}, [2 / 3, 1 / 3, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(options: dict, expected: list[float]):
    draws = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.6, 0.3, 0.1])), (draws, 3))
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = draw(logits, keys, **options)
    frequencies = np.bincount(tokens, minlength=3) / draws
    np.testing.assert_allclose(frequencies, expected, atol=4 * 0.5 / np.sqrt(draws))  # four standard deviations
    assert (frequencies[np.asarray(expected) == 0] == 0).all()
    needed = Uses(True, "top_p" in options, options.get("top_k", 0), "min_p" in options)
    np.testing.assert_array_equal(draw(logits, keys, uses=needed, **options), tokens)  # what is not used is nothing


def key_data(seed=0, iteration=1, purpose=0, record=(11, 12, 13), number=(0, 0, 0)) -> list[tuple[int, ...]]:
    records, numbers = jnp.array(record, jnp.uint32), jnp.array(number, jnp.uint32)
    keys = record_keys(base_key(seed, iteration), jnp.full_like(records, purpose), records, numbers)
    return [tuple(key) for key in np.asarray(keys)]


def test_a_record_keeps_its_key_in_any_place():
    assert key_data(record=(13, 99, 11)) == [key_data()[2], key_data(record=(99,), number=(0,))[0], key_data()[0]]
    zeros = jnp.zeros((2, 1), jnp.uint32)
    in_rows = record_keys(base_key(0, 1), zeros, jnp.array([[11], [12]], jnp.uint32), zeros)
    assert in_rows.shape == (2, 1, 2)
    assert [tuple(key) for key in np.asarray(in_rows)[:, 0]] == key_data()[:2]


def test_each_token_of_a_row_has_a_key_of_its_own():
    keys = jnp.asarray(np.array(key_data(), np.uint32))
    steps = [np.asarray(jax.random.key_data(step_keys(keys, jnp.full(3, step)))) for step in range(4)]
    assert len({tuple(key) for step in steps for key in step}) == 12
    mixed = np.asarray(jax.random.key_data(step_keys(keys, jnp.array([3, 0, 2]))))
    np.testing.assert_array_equal(mixed, [steps[3][0], steps[0][1], steps[2][2]])


def test_seed_iteration_purpose_record_and_sample_each_give_another_key():
    keys = [
        key_data(seed, iteration, purpose, record=(record,), number=(number,))[0]
        for seed, iteration, purpose, record, number in itertools.product((0, 1), repeat=5)
    ]
    assert len(set(keys)) == 32


def test_hashes_use_all_32_bits():
    high, low = key_data(record=(2**31 + 5, 5), number=(0, 0))
    assert high != low
