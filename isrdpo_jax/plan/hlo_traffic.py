"""Bytes that one HLO instruction moves between a device's main memory (HBM) and its core.

A fusion reads its operands and writes its results, nothing between. What is only sliced is read in part, and what is
updated in place is written in part: a scan would otherwise read all layers in every round. On-chip memory is free.
"""

from __future__ import annotations

from collections.abc import Iterator

from isrdpo_jax.plan.hlo_collectives import is_collective, is_marker
from isrdpo_jax.plan.hlo_text import Array, Computation, Instruction, Module

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all",
    "while", "conditional", "call", "async-start", "opt-barrier",
}  # fmt: skip
_SLICES = {"slice", "dynamic-slice", "gather"}
_SAME_ELEMENTS = {"bitcast", "reshape", "convert", "copy", "transpose"}


def traffic(one: Instruction, computation: Computation, module: Module) -> float:
    """HBM bytes read and written by an instruction at the top of a computation (not inside a fusion)."""
    operands = [computation.instructions[name] for name in one.operands]
    if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")) or is_marker(one):
        return 0.0
    if one.opcode == "fusion":
        called = module.computations[one.called["calls"]]
        reads = (
            _in_hbm(operand.array, _elements_read(called, parameter, module))
            for operand, parameter in zip(operands, called.parameters, strict=True)
        )
        return sum(reads) + sum(_in_hbm(array, elements) for array, elements in _written(one, called, module))
    if one.opcode in ("copy-start", "slice-start"):
        source = operands[0].array
        target = next((array for array in one.arrays if array != source), source)
        return _in_hbm(source, target.elements) + _in_hbm(target, target.elements)
    if is_collective(one):
        results = one.arrays[len(operands) :] if one.opcode.endswith("-start") else one.arrays
        return sum(_in_hbm(x, x.elements) for x in (*(operand.array for operand in operands), *results))
    if one.opcode in _SLICES:
        return _in_hbm(operands[0].array, one.array.elements) + _in_hbm(one.array, one.array.elements)
    if one.opcode == "dynamic-update-slice":
        update = operands[1].array
        return _in_hbm(update, update.elements) + _in_hbm(one.array, update.elements)
    return sum(
        _in_hbm(x, x.elements) for x in (*(operand.array for operand in operands if operand.arrays), *one.arrays)
    )


def _in_hbm(array: Array, elements: float) -> float:
    return elements * array.itemsize if array.space == 0 else 0.0


def _elements_read(computation: Computation, parameter: Instruction, module: Module) -> float:
    """How many elements of a parameter a fused computation reads."""
    if not parameter.arrays:
        return 0.0
    whole, read = parameter.array.elements, 0.0
    for user, index in computation.users.get(parameter.name, ()):
        if user.opcode in _SLICES and index == 0:
            read += user.array.elements
        elif user.opcode in _SAME_ELEMENTS:
            read += _elements_read(computation, user, module)
        elif user.opcode == "fusion":
            called = module.computations[user.called["calls"]]
            read += _elements_read(called, called.parameters[index], module)
        elif user.opcode == "dynamic-update-slice" and index == 0:
            continue  # updated in place
        elif user.opcode == "tuple" or is_collective(user) or is_marker(user):
            continue  # handed on; a collective's own traffic is counted with it
        else:
            return whole
    return min(whole, read)


def _written(fusion: Instruction, called: Computation, module: Module) -> Iterator[tuple[Array, float]]:
    """The results of a fusion with how many of their elements it writes."""
    root = called.root
    if is_marker(root):
        return
    leaves = [called.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(leaves) != len(fusion.arrays):
        yield from ((array, array.elements) for array in fusion.arrays)
        return
    for array, leaf in zip(fusion.arrays, leaves, strict=True):
        yield array, _elements_written(called, leaf, module)


def _elements_written(computation: Computation, one: Instruction, module: Module) -> float:
    if one.opcode == "parameter" or is_collective(one):
        return 0.0
    if one.opcode in _SAME_ELEMENTS and one.operands:
        source = computation.instructions[one.operands[0]]
        written = _elements_written(computation, source, module)
        return written if source.opcode == "dynamic-update-slice" else one.array.elements
    if one.opcode == "dynamic-update-slice":
        return computation.instructions[one.operands[1]].array.elements
    if one.opcode == "fusion" and len(one.arrays) == 1:
        called = module.computations[one.called["calls"]]
        return _elements_written(called, called.root, module)
    return one.array.elements
