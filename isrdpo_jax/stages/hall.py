"""How many videos an engine holds, and how many texts it says at a time: what was asked for, as far as memory goes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.sharding import Mesh

from isrdpo_jax.data.packing import bucket
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.runs.processes import most
from isrdpo_jax.schema import CollectConfig, ModelConfig
from isrdpo_jax.sharding import batch_ways, kv_head_ways

SPARE = 0.15  # of a device's memory, left to the programs' temporary values
GIB = 2**30


@dataclass(frozen=True)
class Hall:
    """How many videos are held, and how many texts are said at a time; see `programs.slots`.

    Attributes:
        lanes: over all devices. bays: in a lane. places, slots: in a bay.
    """

    lanes: int
    bays: int
    places: int
    slots: int

    @staticmethod
    def of(videos: int, lanes: int, slots: int) -> Hall:
        """For so many videos: two in a bay of `slots` slots; one and half the slots where a lane has an odd number.

        Args:
            videos: a multiple of lanes.
        """
        each = videos // lanes
        if each % 2:
            return Hall(lanes, each, 1, -(-slots // 2))
        return Hall(lanes, each // 2, 2, slots)

    @property
    def videos(self) -> int:
        return self.lanes * self.bays * self.places

    @property
    def all_slots(self) -> int:
        return self.lanes * self.bays * self.slots

    @property
    def enough(self) -> int:
        """How many texts end before somebody looks at them: a read that then follows is half full."""
        return max(1, self.lanes // 2)

    def bytes_on_device(self, config: ModelConfig, mesh: Mesh, prefix: int, columns: int, int8: bool = False) -> int:
        """Of all keys and values, on one device.

        Args:
            prefix, columns: positions of a prefix, and of a slot. int8: prefixes are rounded to that.
        """
        llama = config.llama
        own = llama.head_dim * jnp.dtype(config.compute_dtype).itemsize
        shared = llama.head_dim + 4 if int8 else own  # and a scale
        heads = 2 * llama.num_layers * llama.num_kv_heads
        all_heads = self.bays * (self.places * prefix * shared + self.slots * columns * own)
        return self.lanes // batch_ways(mesh) * heads * all_heads // kv_head_ways(mesh)


def slot_columns(turn_tokens: int, most_said: int) -> int:
    """Columns that a slot has for a turn and for what is said behind it."""
    return bucket(turn_tokens) + most_said


def longest_turn(collect: CollectConfig, room: int) -> int:
    """Tokens of the longest turn that a slot has room for.

    Args:
        room: positions of the context window behind a video.
    """
    return min(collect.turn_tokens or room, room)


def hall_asked_for(collect: CollectConfig, mesh: Mesh) -> Hall:
    """The hall that the configuration asks for.

    Raises:
        ConfigError: the numbers do not divide.
    """
    ways = batch_ways(mesh)
    lanes = collect.lanes or ways
    if lanes % ways or collect.batch_videos % lanes:
        raise ConfigError(
            f"collect.batch_videos={collect.batch_videos}, collect.lanes={lanes}: the first must be a multiple of the "
            f"second, and that of the data x fsdp = {ways} devices."
        )
    return Hall.of(collect.batch_videos, lanes, collect.slots)


def largest_hall(
    collect: CollectConfig, config: ModelConfig, mesh: Mesh, prefix: int, columns: int, budget: int
) -> tuple[Hall, int]:
    """The hall that the configuration asks for, or the largest one that the budget has room for, or else the smallest.

    Args:
        prefix, columns: positions of a prefix, and of a slot. budget: bytes of a device, for keys and values.

    Returns:
        The hall, and the bytes of a device that it takes.

    Raises:
        ConfigError: the numbers do not divide.
    """
    hall, shapes = hall_asked_for(collect, mesh), (config, mesh, prefix, columns, collect.int8_prefixes)
    while hall.bytes_on_device(*shapes) > budget and hall.bays > 1:
        hall = replace(hall, bays=hall.bays - 1)
    if hall.bytes_on_device(*shapes) > budget and hall.places > 1:
        hall = Hall.of(hall.lanes, hall.lanes, collect.slots)
    return hall, hall.bytes_on_device(*shapes)


def hall_that_fits(collect: CollectConfig, config: ModelConfig, mesh: Mesh, prefix: int, columns: int) -> Hall:
    """The hall that the configuration asks for, or the largest one that memory has room for.

    Args:
        prefix, columns: positions of a prefix, and of a slot.

    Raises:
        ConfigError: not one video in every lane fits, or the numbers do not divide.
    """
    budget = memory_budget(collect, config, mesh, prefix)
    if budget is None:
        return hall_asked_for(collect, mesh)
    hall, needed = largest_hall(collect, config, mesh, prefix, columns, budget)
    if needed > budget:
        raise ConfigError(
            f"collect: to hold one video in each of {hall.lanes} lanes, keys and values take {needed / GIB:.2f} GiB of "
            f"every device ({prefix} positions of a prefix, {hall.slots} slots of {columns}), and there are "
            f"{budget / GIB:.2f}. Lower collect.turn_tokens, sampling.max_new_tokens or collect.slots, set "
            "collect.int8_prefixes=true, or split the model over more devices (mesh.tensor)."
        )
    return hall


def memory_left(
    collect: CollectConfig, config: ModelConfig, mesh: Mesh, prefix: int, *, capacity: int, held: int
) -> int:
    """Bytes of a device that keys and values may take: the rule of a run, and of its plan (`plan.programs`).

    Args:
        prefix: positions of one. capacity: of a device. held: by parameters.
    """
    lanes = hall_asked_for(collect, mesh).lanes
    arriving = Hall(lanes, bays=1, places=1, slots=0).bytes_on_device(config, mesh, prefix, 0)  # before they are placed
    return int(capacity * (1 - SPARE)) - held - arriving


def memory_budget(collect: CollectConfig, config: ModelConfig, mesh: Mesh, prefix: int) -> int | None:
    """Bytes of a device that keys and values may take; None where the device does not say what it has."""
    if collect.memory_gib is not None:
        return round(collect.memory_gib * GIB)
    left = functools.partial(memory_left, collect, config, mesh, prefix)
    stats = [device.memory_stats() for device in mesh.local_devices]
    free = [
        left(capacity=one["bytes_limit"], held=one["bytes_in_use"]) for one in stats if one and "bytes_limit" in one
    ]
    # The least of all processes, in MiB: what they agree on is 32 bits wide.
    least = -most(-(min(free) // 2**20)) if free else 0
    return least * 2**20 if free else None
