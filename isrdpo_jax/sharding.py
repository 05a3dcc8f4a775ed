"""The only file that names mesh axes: the mesh, the rules from logical axes to mesh axes, and their checks.

Mesh axes: `data` (replicas of the parameters, across slices), `fsdp` (parameters and batch), `tensor` (heads, MLP,
vocabulary).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.schema import MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that split a batch
RULES: Mapping[str | None, str | None] = {
    None: None,
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; one axis of size -1 takes what is left.

    Raises:
        ConfigError: when the sizes do not multiply to the number of devices; names both numbers.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    named = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or 0 in sizes:
        raise ConfigError(f"mesh: {named}: give every axis a positive size, and at most one of them -1.")
    known = 1
    for size in sizes:
        known *= 1 if size == -1 else size
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    elif -1 in sizes or known != len(devices):
        raise ConfigError(
            f"mesh: {named} needs a multiple of {known} devices and there are {len(devices)}. "
            f"Choose sizes whose product is {len(devices)}, or leave one axis at -1."
        )
    # Auto: the compiler propagates shardings. JAX's default, Explicit, refuses contractions over sharded axes.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes of one array to its partition.

    Raises:
        ConfigError: when two logical axes fall on one mesh axis.
    """
    physical = [RULES[axis] for axis in axes]
    used = [axis for axis in physical if axis is not None]
    if len(set(used)) != len(used):
        raise ConfigError(f"logical axes {tuple(axes)} put one mesh axis on two dimensions: {physical}.")
    return PartitionSpec(*physical)


def parameter_shardings(mesh: Mesh, axes: Any, abstract: Any) -> Any:
    """`NamedSharding` for every parameter.

    Args:
        axes: tree of tuples of logical names. abstract: the same tree of shapes.

    Raises:
        ConfigError: when a mesh axis does not divide a dimension; names parameter, both numbers and legal sizes.
    """

    def one(path: tuple, names: tuple, array: jax.ShapeDtypeStruct) -> NamedSharding:
        partition = spec(names)
        for size, axis in zip(array.shape, partition, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                legal = [n for n in range(1, size + 1) if size % n == 0 and n <= len(mesh.devices.flat)]
                raise ConfigError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide dimension {size} of parameter "
                    f"{jax.tree_util.keystr(path, simple=True, separator='.')} {array.shape}. Sizes that do: {legal}."
                )
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(one, axes, abstract, is_leaf=lambda x: isinstance(x, tuple))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Dimension `axis` (the batch) split over the data-parallel devices."""
    return NamedSharding(mesh, PartitionSpec(*([None] * axis), BATCH))


def check_batch(mesh: Mesh, size: int, field: str) -> None:
    """Raises:
    ConfigError: when the data-parallel devices do not divide a batch of `size` (set by the config's `field`).
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % ways:
        raise ConfigError(f"{field}={size} does not split over data x fsdp = {ways} devices. Use a multiple of {ways}.")
