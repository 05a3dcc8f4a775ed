"""The decoder and its parts, against the formulas."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny import TINY
from written_out import erf_gelu, float64, linear, llama, rms_norm, rotate_half

from isrdpo_jax.models.layers import RmsNorm, activation
from isrdpo_jax.models.llama import rope_tables, rotate
from isrdpo_jax.models.video_llava import build

RNG = np.random.default_rng(0)


@functools.partial(jax.jit, static_argnames="config")
def forward(params, x, positions, segments, *, config):
    return build(config, params).llama(x, positions, segments)


@functools.partial(jax.jit, static_argnames="config")
def project(params, features, *, config):
    return build(config, params).projector(features)


def test_the_decoder_is_what_its_description_says(tiny_params):
    x = RNG.normal(size=(2, 9, TINY.llama.hidden_size)).astype(np.float32)
    positions = np.broadcast_to(np.arange(9), (2, 9))
    hidden = forward(tiny_params, x, positions, np.zeros((2, 9), np.int32), config=TINY)
    expected = [llama(one.astype(np.float64), float64(tiny_params["llama"]), TINY.llama) for one in x]
    np.testing.assert_allclose(hidden, expected, atol=2e-5)


def test_keys_and_values_are_shared_by_groups_of_queries(tiny_params):
    heads, kv_heads, c = TINY.llama.num_heads, TINY.llama.num_kv_heads, TINY.llama.head_dim
    layers = tiny_params["llama"]["layers"]
    assert layers["q"]["kernel"].shape[-1] == heads * c
    assert layers["k"]["kernel"].shape[-1] == layers["v"]["kernel"].shape[-1] == kv_heads * c < heads * c


def rotated(x: np.ndarray, position: int, theta: float = 10000.0) -> np.ndarray:
    """One head x [c] at a position."""
    return np.asarray(rotate(jnp.asarray(x)[None, None], rope_tables(jnp.array([position]), x.shape[-1], theta)))[0, 0]


def test_rope_rotates_halves():
    x = RNG.normal(size=(5, 8)).astype(np.float32)
    expected = rotate_half(x.astype(np.float64), np.arange(5), 10000.0)
    np.testing.assert_allclose([rotated(row, i) for i, row in enumerate(x)], expected, atol=1e-6)


def test_rope_products_depend_on_the_distance_alone():
    q, k = RNG.normal(size=(2, 8)).astype(np.float32)
    near, far = (rotated(q, 7 + shift) @ rotated(k, 3 + shift) for shift in (0, 90))
    other = rotated(q, 8) @ rotated(k, 3)
    np.testing.assert_allclose(far, near, rtol=1e-4)
    assert abs(other - near) > 1e-2


def test_rope_at_position_zero_changes_nothing():
    x = RNG.normal(size=8).astype(np.float32)
    np.testing.assert_array_equal(rotated(x, 0), x)


def test_rms_norm_adds_eps_inside_the_root():
    x = np.array([[1e-3, -1e-3], [3.0, 4.0]], np.float32)
    for eps in (1e-6, 1e-2):
        out = RmsNorm(2, eps)(jnp.asarray(x))
        np.testing.assert_allclose(out, rms_norm(x.astype(np.float64), {"scale": np.ones(2)}, eps), rtol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.full((1, 4096), 256.0, jnp.bfloat16).at[0, 0].set(257.0)
    out = RmsNorm(4096, 1e-5)(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, rtol=1e-2)


def test_activations():
    x = np.linspace(-4, 4, 41)
    np.testing.assert_allclose(activation("gelu")(jnp.asarray(x)), erf_gelu(x), atol=1e-6)
    np.testing.assert_allclose(activation("quick_gelu")(jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), atol=1e-6)


def test_the_projector_is_linear_erf_gelu_linear(tiny_params):
    features = RNG.normal(size=(2, 5, TINY.vision.hidden_size)).astype(np.float32)
    p = float64(tiny_params["projector"])
    expected = linear(erf_gelu(linear(features.astype(np.float64), p["linear1"])), p["linear2"])
    np.testing.assert_allclose(project(tiny_params, features, config=TINY), expected, atol=1e-5)
