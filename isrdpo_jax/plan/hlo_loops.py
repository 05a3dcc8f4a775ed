"""How often a `while` of an HLO module goes round.

Some backends write `known_trip_count`; else it is read off the condition `i < n`, the first value of i and its step.
A loop that may end earlier (`i < n and not all done`) is counted to its bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from isrdpo_jax.plan.hlo_text import Computation, Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME_VALUE = {"copy", "bitcast", "convert", "reshape"}


@dataclass(frozen=True)
class Scope:
    """A computation as it is reached.

    Attributes:
        outer: the scope of the instruction that calls it; None for the entry.
        arguments: that instruction's operands.
        loop_body: set in the body and in the condition of a loop, whose one parameter is the loop's state.
    """

    computation: Computation
    outer: Scope | None = None
    arguments: tuple[str, ...] = ()
    loop_body: Computation | None = None

    def __getitem__(self, name: str) -> Instruction:
        return self.computation.instructions[name]

    def enter(self, caller: Instruction, called: str, module: Module) -> Scope:
        """The scope of a computation that an instruction of this one calls."""
        body = module.computations[caller.called["body"]] if caller.opcode == "while" else None
        return Scope(module.computations[called], self, caller.operands, body)


def trip_count(loop: Instruction, scope: Scope, module: Module) -> int | None:
    """Rounds of a `while` in its scope; None when the text does not say."""
    if known := _KNOWN.search(loop.attributes):
        return int(known[1])
    state = scope[loop.operands[0]]
    condition = scope.enter(loop, loop.called["condition"], module)
    body = scope.enter(loop, loop.called["body"], module)
    for compare, place in _conjuncts(condition, condition.computation.root, module):
        counter = _element(place, compare.operands[0])
        if compare.attribute("direction") != "LT" or counter is None or state.opcode != "tuple":
            continue
        first = constant_value(scope, state.operands[counter])
        bound = constant_value(place, compare.operands[1])
        step = _added(body, body.computation.root.operands[counter], counter, module)
        if first is not None and bound is not None and step:
            return max(0, -(-(bound - first) // step))
    return None


def constant_value(scope: Scope, name: str) -> int | None:
    """The integer that an instruction always is, if the text shows it."""
    one = scope[name]
    if one.opcode == "constant":
        return int(one.literal) if re.fullmatch(r"-?\d+", one.literal) else None
    if one.opcode in _SAME_VALUE:
        return constant_value(scope, one.operands[0])
    if one.opcode == "parameter" and scope.outer and scope.loop_body is None:
        return constant_value(scope.outer, scope.arguments[int(one.literal)])
    if (index := _element(scope, name)) is not None and scope.outer and scope.loop_body:
        state, handed_on = scope.outer[scope.arguments[0]], scope.loop_body.root.operands[index]
        if state.opcode == "tuple" and _element(Scope(scope.loop_body, None, (), scope.loop_body), handed_on) == index:
            return constant_value(scope.outer, state.operands[index])
    return None


def _conjuncts(scope: Scope, one: Instruction, module: Module) -> Iterator[tuple[Instruction, Scope]]:
    """The comparisons that must all hold for another round, each with the scope in which it stands."""
    if one.opcode == "compare":
        yield one, scope
    elif one.opcode == "and" or one.opcode in _SAME_VALUE:
        for operand in one.operands:
            yield from _conjuncts(scope, scope[operand], module)
    elif one.opcode == "fusion":
        inside = scope.enter(one, one.called["calls"], module)
        yield from _conjuncts(inside, inside.computation.root, module)


def _element(scope: Scope, name: str) -> int | None:
    """Which element of the surrounding loop's state an instruction is."""
    one = scope[name]
    if one.opcode in _SAME_VALUE:
        return _element(scope, one.operands[0])
    if one.opcode == "parameter" and scope.outer and scope.loop_body is None:
        return _element(scope.outer, scope.arguments[int(one.literal)])
    if one.opcode == "get-tuple-element" and scope.loop_body and scope[one.operands[0]].opcode == "parameter":
        return int(one.attribute("index") or 0)
    return None


def _added(scope: Scope, name: str, counter: int, module: Module) -> int | None:
    """What a loop's body adds to its counter: `name` is the counter's next value."""
    one = scope[name]
    if one.opcode in _SAME_VALUE:
        return _added(scope, one.operands[0], counter, module)
    if one.opcode == "fusion":
        inside = scope.enter(one, one.called["calls"], module)
        return _added(inside, inside.computation.root.name, counter, module)
    if one.opcode == "add":
        for known, other in (one.operands, one.operands[::-1]):
            if _element(scope, known) == counter:
                return constant_value(scope, other)
    return None
