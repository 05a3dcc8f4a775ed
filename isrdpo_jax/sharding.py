"""The only file that names mesh axes: the mesh, the rules from logical axes to mesh axes, and their checks.

Mesh axes: `data` (replicas of the parameters, across slices), `fsdp` (parameters and batch), `tensor` (heads, MLP,
vocabulary). Logical axes name the dimensions of parameters and of activations: on `fsdp` a parameter is split along
`embed`, and an activation along its batch, so that a program gathers one layer's parameters at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from isrdpo_jax.errors import ConfigError
from isrdpo_jax.schema import MeshConfig, ModelConfig

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that split a batch
RULES: Mapping[str | None, str | tuple[str, ...] | None] = {
    None: None,
    "batch": BATCH,
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
    # Splitting a torus axis lets fsdp=128 x tensor=2 lie on 16 x 16 chips.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Auto: the compiler propagates shardings. JAX's default, Explicit, refuses contractions over sharded axes.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes of one array to its partition.

    Raises:
        ConfigError: when two logical axes fall on one mesh axis.
    """
    physical = [RULES[axis] for axis in axes]
    used = [name for axis in physical if axis is not None for name in ((axis,) if isinstance(axis, str) else axis)]
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
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        _check_divides(mesh, partition, array.shape, f"parameter {name}")
        return NamedSharding(mesh, partition)

    return jax.tree_util.tree_map_with_path(one, axes, abstract, is_leaf=lambda x: isinstance(x, tuple))


def constrain(x: jax.Array, axes: Sequence[str | EllipsisType | None], like: jax.Array) -> jax.Array:
    """An activation, laid out by its logical axes on the mesh of the parameter `like`; as it is where there is none.

    Left to itself the compiler lets activations follow the parameters, and every device computes the whole batch.

    Args:
        axes: logical names of the dimensions of x; `...` stands for all dimensions between that are not split.

    Raises:
        ConfigError: when a mesh axis does not divide a dimension, or would split two.
    """
    mesh = mesh_of(like)
    if mesh is None:
        return x
    between: list[None] = [None] * (x.ndim - len(axes) + 1)
    names = [name for axis in axes for name in (between if axis is ... else [axis])]
    return jax.lax.with_sharding_constraint(x, activation_sharding(mesh, names, x.shape))


def on_shards(function: Callable, axes: Sequence[Sequence[str | None]], like: jax.Array) -> Callable:
    """A function of activations, called by every device on its own shards: for kernels that no compiler can split.

    Args:
        axes: logical names of the dimensions of each argument; the result is laid out as the first one.
    """
    mesh = mesh_of(like)
    if mesh is None:
        return function
    specs = tuple(spec(names) for names in axes)
    # A kernel does not say over which axes its result varies, so there is nothing to check.
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)


def shard_shape(shape: Sequence[int], axes: Sequence[str | None], like: jax.Array) -> tuple[int, ...]:
    """The part of an activation of this shape that one device has, when it is laid out as by `constrain`."""
    mesh = mesh_of(like)
    return tuple(shape) if mesh is None else activation_sharding(mesh, axes, shape).shard_shape(tuple(shape))


def mesh_of(parameter: jax.Array) -> AbstractMesh | None:
    """The mesh that a parameter of a program lies on; None where nothing is split."""
    mesh = jax.typeof(parameter).sharding.mesh
    return mesh if mesh.size > 1 else None


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Dimension `axis` (the batch) split over the data-parallel devices."""
    return NamedSharding(mesh, PartitionSpec(*([None] * axis), BATCH))


def batch_ways(mesh: Mesh) -> int:
    """Over how many devices a batch is split."""
    return _ways(mesh, BATCH)


def kv_head_ways(mesh: Mesh) -> int:
    """Over how many devices the key-value heads of one row are split."""
    return _ways(mesh, RULES["kv_heads"])


def check_batch(mesh: Mesh, size: int, field: str) -> None:
    """Raises:
    ConfigError: when the data-parallel devices do not divide a batch of `size` (set by the config's `field`).
    """
    ways = _ways(mesh, BATCH)
    if size % ways:
        raise ConfigError(f"{field}={size} does not split over data x fsdp = {ways} devices. Use a multiple of {ways}.")


def check_heads(mesh: Mesh, model: ModelConfig) -> None:
    """Raises:
    ConfigError: when `tensor` does not divide the heads of an attention, each of which lies on one device.
    """
    heads = {
        "vision.num_heads": model.vision.num_heads,
        **({"image.num_heads": model.image.num_heads} if model.image else {}),
        "llama.num_heads": model.llama.num_heads,
        "llama.num_kv_heads": model.llama.num_kv_heads,
    }
    for field, count in heads.items():
        _check_divides(mesh, spec(("heads",)), (count,), f"model.{field}")


def _ways(mesh: Mesh | AbstractMesh, axis: str | tuple[str, ...] | None) -> int:
    """Over how many devices an entry of a partition spreads its dimension."""
    names = () if axis is None else (axis,) if isinstance(axis, str) else axis
    return math.prod(mesh.shape[name] for name in names)


def activation_sharding(mesh: Mesh | AbstractMesh, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """How an activation of this shape lies on the mesh, by its logical axes.

    Raises:
        ConfigError: when a mesh axis does not divide a dimension, or would split two.
    """
    partition = spec(axes)
    _check_divides(mesh, partition, shape, f"activation {tuple(axes)}")
    return NamedSharding(mesh, partition)


def _check_divides(mesh: Mesh | AbstractMesh, partition: PartitionSpec, shape: Sequence[int], what: str) -> None:
    for size, axis in zip(shape, partition, strict=True):
        if size % (ways := _ways(mesh, axis)):
            named = " x ".join((axis,) if isinstance(axis, str) else axis)
            legal = [n for n in range(1, size + 1) if size % n == 0 and mesh.size % n == 0]
            raise ConfigError(
                f"mesh.{named}={ways} does not divide dimension {size} of {what} {tuple(shape)}. "
                f"Sizes that do: {legal}."
            )
