"""Splash attention, interpreted on the CPU, against the dense form: values and gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isrdpo_jax.ops import splash
from isrdpo_jax.ops.attention import PADDING, attend, packed_mask

pytestmark = pytest.mark.usefixtures("interpreted_splash")
RNG = np.random.default_rng(0)


def ragged(sections: tuple[int, ...], rows: int) -> np.ndarray:
    """Segment ids int32[rows, n] with some padding at the end of every section but in the first row."""
    segments = np.repeat(np.arange(len(sections), dtype=np.int32), sections)[None].repeat(rows, 0)
    ends = np.cumsum(sections)
    for row in segments[1:]:
        for size, end in zip(sections, ends, strict=True):
            row[end - RNG.integers(1, max(2, size // 2)) : end] = PADDING
    return segments


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("sections", [(3, 2, 2), (5,), (4, 1, 3, 2)])
def test_full_rows_have_the_mask_of_packed_rows(sections: tuple[int, ...]):
    segments = np.repeat(np.arange(len(sections)), sections)
    np.testing.assert_array_equal(splash.section_mask(sections), packed_mask(jnp.asarray(segments)))


@pytest.mark.parametrize(
    ("sections", "block"),
    [((70, 30, 30), 512), ((200, 90, 90), 128), ((128, 64, 64), 128), ((40,), 512)],
    ids=["one block", "blocks that nobody sees", "no empty columns", "a prefix alone"],
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_it_is_dense_attention_in_value_and_gradient(monkeypatch, sections, block: int, kv_heads: int):
    monkeypatch.setattr(splash, "_BLOCK", block)
    n, segments = sum(sections), ragged(sections, rows=2)
    real = jnp.asarray(segments != PADDING)[..., None, None]
    q, k, v, weights = normal(2, n, 4, 16), normal(2, n, kv_heads, 16), normal(2, n, kv_heads, 16), normal(2, n, 4, 16)

    def total(attention, q, k, v):
        out = jnp.where(real, attention(q, k, v), 0.0)
        return (out * weights).sum(), out

    def run(attention):
        return jax.jit(jax.value_and_grad(functools.partial(total, attention), (0, 1, 2), has_aux=True))(q, k, v)

    kernel = functools.partial(splash.splash_attend, padding=~real[..., 0, 0], sections=sections)
    (_, out), gradients = run(kernel)
    (_, expected), expected_gradients = run(functools.partial(attend, mask=packed_mask(jnp.asarray(segments))))
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_padding_gets_no_nan():
    padding = jnp.arange(20)[None] >= 13
    q = normal(1, 20, 2, 8)
    assert np.isfinite(splash.splash_attend(q, q, q, padding, sections=(10, 5, 5))).all()


def test_sections_that_are_not_the_rows_columns_are_refused():
    q = normal(1, 20, 2, 8)
    with pytest.raises(ValueError, match=r"\(10, 5\) make 15 columns, and there are 20"):
        splash.splash_attend(q, q, q, jnp.zeros((1, 20), bool), sections=(10, 5))
