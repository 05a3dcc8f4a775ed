"""Collectives of an HLO module: which they are, and the bytes that a device receives from others."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from isrdpo_jax.plan.hlo_text import Computation, Instruction, Module

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_MARKERS = ('custom_call_target="AsyncCollectiveStart"', 'custom_call_target="AsyncCollectiveDone"')
_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")


def kind_of(one: Instruction) -> str:
    return one.opcode.removesuffix("-start")


def is_collective(one: Instruction) -> bool:
    return kind_of(one) in KINDS


def is_marker(one: Instruction) -> bool:
    """Whether it only marks the begin or end of a collective that runs beside other fusions (on TPU)."""
    return one.opcode == "custom-call" and any(marker in one.attributes for marker in _MARKERS)


def collectives(computation: Computation, module: Module, begun: frozenset[str]) -> Iterator[tuple[str, float]]:
    """Kind and bytes of each collective in a fused computation, or of one that stands alone.

    A collective that runs beside fusions is written in each of them; it is counted where it begins.

    Args:
        begun: channels that have an `AsyncCollectiveStart` somewhere.
    """
    starts = any(is_marker(one) and _MARKERS[0] in one.attributes for one in computation.instructions.values())
    for one in computation.instructions.values():
        if is_collective(one) and (starts or one.attribute("channel_id") not in begun):
            yield kind_of(one), received_bytes(one, computation, module)


def channels_begun(module: Module) -> frozenset[str]:
    """Channels of the collectives that begin in a fusion and end in another."""
    return frozenset(
        channel
        for computation in module.computations.values()
        if any(is_marker(one) and _MARKERS[0] in one.attributes for one in computation.instructions.values())
        for one in computation.instructions.values()
        if is_collective(one) and (channel := one.attribute("channel_id"))
    )


def received_bytes(one: Instruction, computation: Computation, module: Module) -> float:
    """Bytes that each device must receive, whatever the algorithm (for all-reduce: scatter, then gather)."""
    size = sum(computation.instructions[name].array.bytes for name in one.operands)
    group = _group_size(one, module)
    others = (group - 1) / group
    match kind_of(one):
        case "all-gather":
            return size * (group - 1)
        case "all-reduce":
            # TPU writes a reduce-scatter as an all-reduce that is sliced in the same fusion.
            return size * others * (1 if _is_sliced(one, computation) else 2)
        case "reduce-scatter" | "all-to-all" | "ragged-all-to-all":
            return size * others
    return size


def _is_sliced(one: Instruction, computation: Computation) -> bool:
    users = computation.users.get(one.name, ())
    return bool(users) and all(user.opcode == "dynamic-slice" for user, _ in users)


def _group_size(one: Instruction, module: Module) -> int:
    """Devices that take part together."""
    if axes := _AXES.search(one.attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    if iota := _IOTA.search(one.attributes):
        return int(iota[1])
    if listed := _LISTED.search(one.attributes):
        return listed[1].count(",") + 1
    return module.partitions
