"""Costs are read off compiled programs with their loops counted, on this machine's compiler and as TPU writes them."""

from __future__ import annotations

import hlo_samples
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from isrdpo_jax.plan.hlo_cost import Cost, count
from isrdpo_jax.schema import MeshConfig
from isrdpo_jax.sharding import batch_sharding, make_mesh, replicated

ROWS, WIDTH, LAYERS = 64, 128, 7


def cost(function, *args) -> Cost:
    return count(jax.jit(function).lower(*args).compile().as_text())


def zeros(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def through_layers(x, stack):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    counted = cost(through_layers, zeros(ROWS, WIDTH), zeros(LAYERS, WIDTH, WIDTH))
    assert counted.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH
    assert counted.unknown_loops == 0


def test_loops_in_loops_multiply():
    def twice(x, stack):
        return jax.lax.scan(lambda x, _: (through_layers(x, stack), None), x, None, length=3)[0]

    counted = cost(twice, zeros(ROWS, WIDTH), zeros(LAYERS, WIDTH, WIDTH))
    assert counted.flops == 3 * LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_gradient_with_rematerialisation_counts_four_products_for_one():
    def loss(stack, x):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(layer, x, stack)[0].sum()

    counted = cost(jax.grad(loss), zeros(LAYERS, WIDTH, WIDTH), zeros(ROWS, WIDTH))
    assert counted.flops == 4 * LAYERS * 2 * ROWS * WIDTH * WIDTH


def test_a_loop_that_may_end_early_counts_to_its_bound():
    def decode(x, w):
        def running(state):
            return (state[0] < 9) & (state[1].sum() < 1e6)

        return jax.lax.while_loop(running, lambda state: (state[0] + 1, jnp.tanh(state[1] @ w)), (0, x))

    counted = cost(decode, zeros(ROWS, WIDTH), zeros(WIDTH, WIDTH))
    assert counted.flops == 9 * 2 * ROWS * WIDTH * WIDTH
    assert counted.unknown_loops == 0


def test_a_loop_without_a_bound_is_said_to_be_unknown():
    def settle(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 1e6, lambda x: jnp.tanh(x @ w), x)

    counted = cost(settle, zeros(ROWS, WIDTH), zeros(WIDTH, WIDTH))
    assert counted.unknown_loops == 1
    assert counted.flops == 2 * ROWS * WIDTH * WIDTH


def test_a_batched_product():
    counted = cost(lambda a, b: jnp.einsum("bnd,bmd->bnm", a, b), zeros(3, ROWS, WIDTH), zeros(3, 5, WIDTH))
    assert counted.flops == 2 * 3 * ROWS * 5 * WIDTH


def test_a_real_convolution_does_not_count_its_padding():
    def smooth(x, kernel):
        return jax.lax.conv(x, kernel, (1,), "SAME")

    counted = cost(smooth, zeros(2, 4, 10), zeros(6, 4, 3))
    assert counted.flops == 2 * 2 * 4 * 6 * (10 * 3 - 2)


def test_a_scan_reads_each_layer_once():
    """Not all layers in every round, though they are one array."""
    stack = zeros(50, WIDTH, WIDTH)
    whole = 50 * WIDTH * WIDTH * 4
    assert whole < cost(through_layers, zeros(ROWS, WIDTH), stack).bytes < 10 * whole


def test_a_result_that_is_updated_in_place_is_written_once():
    def fill(x):
        return jax.lax.scan(lambda _, row: (None, jnp.tanh(row)), None, x)[1]

    x = zeros(512, 256)
    assert cost(fill, x).bytes < 6 * 512 * 256 * 4


def test_collectives_with_the_bytes_that_a_device_receives():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices()[:8])
    rows = jax.ShapeDtypeStruct((64, WIDTH), jnp.float32, sharding=batch_sharding(mesh))

    def gather(x):
        return jax.lax.with_sharding_constraint(x + 1, replicated(mesh))

    assert dict(cost(gather, rows).collectives) == {"all-gather": 7 * 8 * WIDTH * 4}
    summed = dict(cost(lambda x: x.sum(0), rows).collectives)
    assert summed == {"all-reduce": 2 * 7 / 8 * WIDTH * 4}


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices()[:8])
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    stack = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=batch_sharding(mesh))

    def gathered(x, stack):
        def layer(x, w):
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), batch_sharding(mesh)), None

        return jax.lax.scan(layer, x, stack)[0]

    received = sum(cost(gathered, x, stack).collectives.values())
    assert received == pytest.approx(LAYERS * 7 / 8 * WIDTH * WIDTH * 4)


def test_a_loop_as_tpu_writes_it():
    counted = count(hlo_samples.SCAN_WITHOUT_TRIP_COUNT)
    assert counted.flops == 4 * 2 * 8 * 128 * 8
    assert counted.unknown_loops == 0


def test_a_collective_beside_fusions_counts_once():
    counted = count(hlo_samples.ASYNC_ALL_GATHER)
    assert dict(counted.collectives) == {"all-gather": 15 * 256 * 4096 * 2}


def test_a_reduce_scatter_as_tpu_writes_it():
    sliced = hlo_samples.REDUCE_SCATTER_AS_ALL_REDUCE
    assert dict(count(sliced).collectives) == {"all-reduce": 15 / 16 * 4096 * 256 * 4}
    listed = sliced.replace("[1,16]<=[16]", "{{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}")
    assert dict(count(listed).collectives) == {"all-reduce": 3 / 4 * 4096 * 256 * 4}


def test_of_two_branches_the_dearer_counts():
    def either(flag, x, w):
        return jax.lax.cond(flag, lambda: (x @ w) @ w, lambda: x @ w)

    counted = cost(either, jax.ShapeDtypeStruct((), jnp.bool_), zeros(ROWS, WIDTH), zeros(WIDTH, WIDTH))
    assert counted.flops == 2 * 2 * ROWS * WIDTH * WIDTH


def test_a_batched_product_as_tpu_writes_it():
    assert count(hlo_samples.BATCHED_PRODUCT_AS_CONVOLUTION).flops == 2 * 32 * 2666 * 2666 * 128


def test_on_chip_memory_is_no_traffic():
    here = hlo_samples.BATCHED_PRODUCT_AS_CONVOLUTION
    there = here.replace("%w = f32[32,2666,2666]{2,1,0}", "%w = f32[32,2666,2666]{2,1,0:T(8,128)S(1)}")
    assert count(here).bytes - count(there).bytes == 32 * 2666 * 2666 * 4


def test_kernels_say_what_they_do_or_are_said_not_to():
    known = count(hlo_samples.KERNELS.format(estimate=',"cost_estimate":{"flops":1000,"bytes_accessed":5}'))
    assert (known.flops, known.unsaid_kernels) == (1000, 0)
    unknown = count(hlo_samples.KERNELS.format(estimate=""))
    assert (unknown.flops, unknown.unsaid_kernels) == (0, 1)
    assert unknown.bytes == known.bytes == np.prod((8, 512, 128)) * 2 * 3


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        count("HloModule empty\n")
