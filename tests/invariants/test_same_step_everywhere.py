"""The same stored pairs give the same update, however they are split and wherever they are, by any attention."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import TINY, assert_trees_close
from training import DPO, ONE_DEVICE, Layout, first_moment, stored_reference

from isrdpo_jax.schema import MeshConfig

MIXED = MeshConfig(data=2, fsdp=2, tensor=2)
SPLASH = TINY.model_copy(update={"attention": "splash"})
LAYOUTS = {
    "8 micro-batches of 1": (ONE_DEVICE, 8),
    "fsdp=8": (MeshConfig(data=1, fsdp=8, tensor=1), 1),
    "data=2 fsdp=2 tensor=2": (MIXED, 2),
    "splash": (ONE_DEVICE, 1, SPLASH),
    "splash, data=2 fsdp=2 tensor=2": (MIXED, 2, SPLASH),
    "dots rematerialised, data=2 fsdp=2 tensor=2": (MIXED, 2, TINY.model_copy(update={"remat": "dots"})),
}
pytestmark = pytest.mark.usefixtures("interpreted_splash")


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layout(request, tiny_params) -> Layout:
    return Layout(tiny_params, *request.param)


@pytest.fixture(scope="module")
def expected(one_device):
    return one_device.step(one_device.state(), one_device.batches(reference=stored_reference()))


def test_one_step_is_equal_to_1e_5(layout: Layout, expected):
    state, metrics = layout.step(layout.state(), layout.batches(reference=stored_reference()))
    host, expected_host = jax.device_get((state, expected[0]))
    assert_trees_close(host.params, expected_host.params, 1e-5)
    assert_trees_close(first_moment(host), first_moment(expected_host), 1e-5)
    assert metrics == pytest.approx(expected[1], rel=1e-5)


def test_a_reference_that_is_the_policy_gives_margins_of_zero(layout: Layout):
    reference = layout.score(layout.batches())
    _, metrics = layout.step(layout.state(), layout.batches(reference=reference))
    assert metrics["max_abs_logp"] == pytest.approx(np.abs(reference).max(), rel=1e-6)
    assert metrics["max_abs_margin"] <= DPO.beta * 1e-6 * metrics["max_abs_logp"]
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_parameters_and_moments_are_sharded_over_the_mesh(layout: Layout):
    """From the start, and every array where it was behind a step."""
    before = layout.state()
    shardings = jax.tree.map(lambda x: x.sharding, before)
    for tree in (before.params, first_moment(before)):
        gate = tree["layers"]["gate"]["kernel"]
        ways = layout.mesh.shape["fsdp"] * layout.mesh.shape["tensor"]
        assert gate.addressable_shards[0].data.size == gate.size // ways
    after, _ = layout.step(before, layout.batches())
    assert jax.tree.map(lambda x: x.sharding, after) == shardings
