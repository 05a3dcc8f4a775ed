"""The mesh and the rules from logical axes to it: refusals name the numbers that do not fit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from tiny import TINY

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.models.video_llava import abstract_params, logical_axes
from isrdpo_jax.schema import MeshConfig, VisionConfig
from isrdpo_jax.sharding import (
    batch_sharding,
    check_batch,
    check_heads,
    constrain,
    make_mesh,
    parameter_shardings,
    replicated,
    spec,
)


def mesh(data: int = 1, fsdp: int = -1, tensor: int = 1):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1, -1, 1), (1, 8, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((-1, 2, 1), (4, 2, 1)),
        ((1, 4, -1), (1, 4, 2)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes: tuple, expected: tuple):
    made = mesh(*sizes)
    assert tuple(made.shape.values()) == expected
    assert tuple(made.shape) == ("data", "fsdp", "tensor")
    assert set(made.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "numbers"),
    [
        ((1, 3, 1), ("multiple of 3", "are 8")),
        ((3, -1, 1), ("multiple of 3", "are 8")),
        ((4, -1, 4), ("multiple of 16", "are 8")),
    ],
)
def test_sizes_that_do_not_fit_name_both_numbers(sizes: tuple, numbers: tuple):
    with pytest.raises(ConfigError) as error:
        mesh(*sizes)
    assert all(number in str(error.value) for number in numbers)


@pytest.mark.parametrize("sizes", [(1, -1, -1), (0, -1, 1)])
def test_at_most_one_size_is_left_open_and_none_is_zero(sizes: tuple):
    with pytest.raises(ConfigError, match="at most one"):
        mesh(*sizes)


def test_some_of_the_devices_can_be_named():
    assert make_mesh(MeshConfig(), jax.devices()[:2]).shape["fsdp"] == 2


def test_logical_axes_become_mesh_axes():
    assert spec(("layers", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")
    assert spec(("vocab", "embed")) == PartitionSpec("tensor", "fsdp")
    assert spec(("batch", None, "vocab")) == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert spec((None,)) == PartitionSpec(None)


def test_two_logical_axes_on_one_mesh_axis_are_refused():
    with pytest.raises(ConfigError, match="'heads', 'mlp'"):
        spec(("heads", "mlp"))
    with pytest.raises(ConfigError, match="'batch', None, 'embed'"):
        spec(("batch", None, "embed"))


def test_every_device_holds_its_share_of_every_matrix():
    shardings = parameter_shardings(mesh(2, 2, 2), logical_axes(TINY), abstract_params(TINY))["llama"]
    kernel = abstract_params(TINY)["llama"]["layers"]["gate"]["kernel"].shape
    assert shardings["layers"]["gate"]["kernel"].shard_shape(kernel) == (kernel[0], kernel[1] // 2, kernel[2] // 2)
    norm = abstract_params(TINY)["llama"]["norm"]["scale"].shape
    assert shardings["norm"]["scale"].shard_shape(norm) == norm


def test_a_dimension_that_does_not_divide_names_parameter_and_legal_sizes():
    vocabulary = TINY.llama.model_copy(update={"vocab_size": 41})
    config = TINY.model_copy(update={"llama": vocabulary})
    with pytest.raises(ConfigError) as error:
        parameter_shardings(mesh(1, 4, 2), logical_axes(config), abstract_params(config))
    told = str(error.value)
    assert "mesh.tensor=2 does not divide dimension 41 of parameter llama.embedding (41, 16)" in told
    assert "Sizes that do: [1]." in told


def test_a_batch_is_split_over_data_and_fsdp():
    array = jax.device_put(np.zeros((3, 8, 5)), batch_sharding(mesh(2, 2, 2), axis=1))
    assert array.sharding.shard_shape(array.shape) == (3, 2, 5)
    assert replicated(mesh()).shard_shape((3, 8)) == (3, 8)


def test_a_batch_that_does_not_split_names_the_field_and_both_numbers():
    check_batch(mesh(2, 2, 2), 12, "dpo.batch_size")
    with pytest.raises(
        ConfigError, match=r"dpo\.batch_size=6 does not split over data x fsdp = 4 devices.*multiple of 4"
    ):
        check_batch(mesh(2, 2, 2), 6, "dpo.batch_size")


def product(x, parameter):
    """[b, n, d] @ [d, f] -> [b, n, f], laid out as an activation."""
    return constrain(x @ parameter, ("batch", ..., "mlp"), parameter)


def test_activations_are_split_along_their_batch_whatever_the_parameters_layout():
    placed = jax.device_put(np.ones((8, 6)), parameter_shardings(mesh(2, 2, 2), ("embed", "mlp"), np.ones((8, 6))))
    out = jax.jit(product)(np.ones((4, 3, 8)), placed)
    assert out.sharding.shard_shape(out.shape) == (1, 3, 3)
    gradient = jax.jit(jax.grad(lambda x: product(x, placed).sum()))(np.ones((4, 3, 8)))
    np.testing.assert_array_equal(gradient, 6.0)


@pytest.mark.parametrize("devices", [0, 1], ids=["no mesh", "one device"])
def test_where_nothing_is_split_a_program_is_not_changed(devices: int):
    parameter = jax.numpy.ones((8, 6))
    if devices:
        parameter = jax.device_put(parameter, replicated(make_mesh(MeshConfig(), jax.devices()[:1])))
    assert "sharding_constraint" not in str(jax.make_jaxpr(product)(np.ones((4, 3, 8)), parameter))


def test_an_activation_that_does_not_divide_is_refused_before_compiling():
    whole = jax.device_put(np.ones((8, 6)), replicated(mesh(1, 4, 2)))
    with pytest.raises(ConfigError, match=r"mesh\.data x fsdp=4 does not divide dimension 6 .*Sizes that do: \[1, 2\]"):
        jax.eval_shape(product, np.ones((6, 3, 8)), whole)


def test_tensor_must_divide_the_heads_of_every_attention():
    check_heads(mesh(1, 4, 2), TINY)  # two key-value heads
    with pytest.raises(ConfigError, match=r"mesh\.tensor=4 .* 2 of model\.llama\.num_kv_heads.*do: \[1, 2\]"):
        check_heads(mesh(1, 2, 4), TINY.model_copy(update={"vision": VisionConfig()}))
    with pytest.raises(ConfigError, match=r"mesh\.tensor=4 .* 2 of model\.vision\.num_heads"):
        check_heads(mesh(1, 2, 4), TINY)
