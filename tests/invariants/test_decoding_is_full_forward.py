"""Decoding with a cache gives what the whole row gives, computed at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from isrdpo_jax.programs.generate import generate, read_prompts
from isrdpo_jax.programs.score import next_token_logprobs
from tiny import PREFIX_IDS, PREFIX_LENGTH, TINY, random_features

from isrdpo_jax.models.video_llava import build
from isrdpo_jax.ops.sampling import record_keys
from isrdpo_jax.programs.prefill import prefill

VIDEOS, ROWS, WIDTH, NEW = 2, 3, 7, 9
LENGTHS = np.array([[7, 1, 4], [2, 0, 5]], np.int32)  # one row is empty
PROMPTS = np.random.default_rng(0).integers(3, TINY.llama.vocab_size, (VIDEOS, ROWS, WIDTH)).astype(np.int32)
PROMPTS[np.arange(WIDTH) >= LENGTHS[..., None]] = 0
FEATURES = random_features(VIDEOS)
KEYS = record_keys(0, 1, 0, jnp.arange(6, dtype=jnp.uint32).reshape(2, 3), jnp.zeros((2, 3), jnp.uint32))
NEVER = -1  # an EOS that no model says


@pytest.fixture(scope="module")
def prefix(tiny_params):
    return prefill(tiny_params, PREFIX_IDS, FEATURES, config=TINY)


@jax.jit
def full_logits(params, ids):
    """Logits at every position behind the prefix, of ids [videos, rows, n], in one forward over whole rows."""
    model = build(TINY, params)
    videos, rows, n = ids.shape
    x = jnp.repeat(model.embed_prefix(PREFIX_IDS, FEATURES), rows, axis=0)
    x = jnp.concatenate([x, model.llama.embed(ids.reshape(-1, n), x.dtype)], axis=1)
    b, total = x.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(total), (b, total))
    hidden = model.llama(x, positions, jnp.zeros((b, total), jnp.int32))
    return model.llama.logits(hidden[:, PREFIX_LENGTH:]).reshape(videos, rows, n, -1)


def whole_rows(tokens: np.ndarray) -> np.ndarray:
    """Prompt and continuation of each row, side by side: int32[videos, rows, WIDTH + NEW]."""
    ids = np.zeros((VIDEOS, ROWS, WIDTH + NEW), np.int32)
    for i, j in np.ndindex(VIDEOS, ROWS):
        n = LENGTHS[i, j]
        ids[i, j, :n], ids[i, j, n : n + NEW] = PROMPTS[i, j, :n], tokens[i, j]
    return ids


def continuation_logits(params, tokens: np.ndarray) -> np.ndarray:
    """What predicts each continuation token: float32[videos, rows, NEW, v]; rows of empty prompts are meaningless."""
    at = np.maximum(LENGTHS - 1, 0)[..., None] + np.arange(NEW)
    return np.take_along_axis(np.asarray(full_logits(params, whole_rows(tokens))), at[..., None], axis=2)


def decode(params, prefix, temperature: float, eos_id: int, top_p: float = 1.0):
    options = {"max_new_tokens": NEW, "eos_id": eos_id, "temperature": temperature, "top_p": top_p}
    return jax.device_get(generate(params, prefix, PROMPTS, LENGTHS, KEYS, config=TINY, **options))


@functools.cache
def noise() -> np.ndarray:
    """The Gumbel noise of each continuation token: float32[videos, rows, NEW, v]."""
    draw = lambda key, step: jax.random.gumbel(jax.random.fold_in(key, step), (TINY.llama.vocab_size,))  # noqa: E731
    return np.asarray(jax.vmap(jax.vmap(lambda key: jax.vmap(lambda step: draw(key, step))(jnp.arange(NEW))))(KEYS))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_the_full_forward(tiny_params, prefix, temperature: float):
    out = decode(tiny_params, prefix, temperature, NEVER)
    logits = continuation_logits(tiny_params, out.tokens)
    expected = (logits + noise() if temperature else logits).argmax(-1)
    asked = LENGTHS > 0
    np.testing.assert_array_equal(out.tokens[asked], expected[asked])
    assert len(np.unique(out.tokens[asked])) > 5  # not one token over and over
    np.testing.assert_array_equal(out.lengths, NEW * asked)
    assert not out.finished.any()


def test_rows_end_at_their_first_eos_and_the_others_go_on(tiny_params, prefix):
    free = decode(tiny_params, prefix, 1.0, NEVER)
    eos = int(free.tokens[0, 0, 3])  # ends at least one row early
    out = decode(tiny_params, prefix, 1.0, eos)
    ends = []
    for i, j in np.argwhere(LENGTHS > 0):
        at = np.flatnonzero(free.tokens[i, j] == eos)
        end = int(at[0]) + 1 if len(at) else NEW
        np.testing.assert_array_equal(out.tokens[i, j], np.where(np.arange(NEW) < end, free.tokens[i, j], 0))
        assert (out.lengths[i, j], out.finished[i, j]) == (end, len(at) > 0)
        ends.append(end)
    assert min(ends) < max(ends) == NEW
    assert (out.lengths[1, 1], out.finished[1, 1]) == (0, False)
    assert not out.tokens[1, 1].any()


def test_logprobs_behind_prompts_are_those_of_the_full_forward(tiny_params, prefix):
    candidates = jnp.arange(TINY.llama.vocab_size)
    out = next_token_logprobs(tiny_params, prefix, PROMPTS, LENGTHS, candidates, config=TINY)
    logits = continuation_logits(tiny_params, np.zeros((VIDEOS, ROWS, NEW), np.int32))[:, :, 0]
    expected = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(out[LENGTHS > 0], expected[LENGTHS > 0], atol=5e-6)
    two = next_token_logprobs(tiny_params, prefix, PROMPTS, LENGTHS, jnp.array([9, 4]), config=TINY)
    np.testing.assert_allclose(two, out[..., [9, 4]], atol=5e-6)


def test_logprobs_of_each_cached_step_are_those_of_the_full_forward(tiny_params, prefix):
    """Each continuation token is fed through the cache, one step at a time."""
    tokens = np.random.default_rng(1).integers(3, TINY.llama.vocab_size, (VIDEOS, ROWS, NEW)).astype(np.int32)

    @jax.jit
    def cached(params):
        model = build(TINY, params)
        logits, own = read_prompts(model, prefix, PROMPTS, LENGTHS, NEW)
        column = jnp.arange(WIDTH + NEW)

        def step(own, at):
            mask = (column < LENGTHS[..., None]) | ((column >= WIDTH) & (column <= WIDTH + at))
            x = model.llama.embed(jnp.asarray(tokens)[:, :, at, None], model.dtype)
            positions = (PREFIX_LENGTH + LENGTHS + at)[..., None]
            hidden, own = model.llama.extend(x, positions, prefix, own, WIDTH + at, mask[:, :, None])
            return own, model.llama.logits(hidden[:, :, 0])

        _, more = jax.lax.scan(step, own, jnp.arange(NEW - 1))
        return jnp.concatenate([logits[:, :, None], jnp.moveaxis(more, 0, 2)], axis=2)

    expected = jax.nn.log_softmax(continuation_logits(tiny_params, tokens))
    out = jax.nn.log_softmax(cached(tiny_params))
    np.testing.assert_allclose(out[LENGTHS > 0], expected[LENGTHS > 0], atol=5e-6)
