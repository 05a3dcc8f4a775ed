"""Batches of several processes: each reads, and feeds to its own devices, the rows that lie there.

A batch is an array over all devices, split along its rows. Which rows a process has follows from the mesh; they need
not be neighbours. With a single process these are all rows, and nothing is exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from isrdpo_jax.sharding import batch_sharding, replicated


@dataclass(frozen=True)
class Share:
    """A process's share of a batch.

    Attributes:
        rows: int[own], the rows on its devices, in order.
        writes: bool[own], whether it writes what comes of the row; of processes that have the same row, the first does.
    """

    rows: np.ndarray
    writes: np.ndarray


def share_of(mesh: Mesh, size: int) -> Share:
    """This process's share of a batch of `size` rows."""
    rows: dict[int, set[int]] = {}
    device: Any
    for device, (part,) in batch_sharding(mesh).devices_indices_map((size,)).items():
        rows.setdefault(device.process_index, set()).update(range(*part.indices(size)))
    me = jax.process_index()
    earlier = set().union(*(some for process, some in rows.items() if process < me))
    own = sorted(rows[me])
    return Share(np.array(own), np.array([row not in earlier for row in own]))


def put_batch(mesh: Mesh, own: Any, axis: int = 0) -> jax.Array:
    """The whole batch on the mesh, dimension `axis` split, from the rows of this process.

    Args:
        own: of `numpy` or `jax`; dimension `axis` holds the rows of `share_of`, in order.
    """
    sharding = batch_sharding(mesh, axis)
    if not mesh.is_multi_process:
        return jax.device_put(own, sharding)
    own = np.asarray(own)
    shape = list(own.shape)
    shape[axis] = mesh.size * own.shape[axis] // len(share_of(mesh, mesh.size).rows)
    rows = share_of(mesh, shape[axis]).rows

    def on_device(index: Any) -> np.ndarray:
        wanted = range(*index[axis].indices(shape[axis]))
        return own.take(np.searchsorted(rows, wanted), axis)

    return jax.make_array_from_callback(tuple(shape), sharding, on_device)


def put_whole(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """An array that all processes have, on every device."""
    if not mesh.is_multi_process:
        return jax.device_put(array, replicated(mesh))
    return jax.make_array_from_callback(array.shape, replicated(mesh), array.__getitem__)


def fetch(array: jax.Array) -> np.ndarray:
    """A whole array of the mesh, to every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def fetch_own(mesh: Mesh, array: jax.Array) -> np.ndarray:
    """The rows of this process: what `put_batch` was given, of what came of it."""
    return fetch(array)[share_of(mesh, array.shape[0]).rows]
