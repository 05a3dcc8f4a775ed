"""What a compiled program does on one device, with its loops counted: FLOPs, HBM bytes, bytes over the interconnect.

`Compiled.cost_analysis` counts the body of a scan once. FLOPs are those of matrix products, which is what a peak rate
is about; element-wise work runs on other units, beside them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field

from isrdpo_jax.plan.hlo_collectives import channels_begun, collectives, is_collective, kind_of, received_bytes
from isrdpo_jax.plan.hlo_loops import Scope, trip_count
from isrdpo_jax.plan.hlo_matmul import convolution_flops, dot_flops
from isrdpo_jax.plan.hlo_text import Computation, Instruction, Module, parse_module
from isrdpo_jax.plan.hlo_traffic import traffic

_KERNEL_COST = re.compile(r'"cost_estimate":(\{[^}]*\})')


@dataclass
class Cost:
    """Of one device.

    Attributes:
        bytes: read from and written to HBM.
        collectives: bytes received from other devices, by kind.
        unknown_loops: loops whose end could not be read, counted as one round.
        unsaid_kernels: hand-written kernels that do not say their FLOPs, which are missing.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    unknown_loops: int = 0
    unsaid_kernels: int = 0

    def add(self, other: Cost, times: int = 1) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        for kind, size in other.collectives.items():
            self.collectives[kind] += times * size
        self.unknown_loops += other.unknown_loops
        self.unsaid_kernels += other.unsaid_kernels


def count(text: str) -> Cost:
    """The cost of an optimized module, `Compiled.as_text()`."""
    module = parse_module(text)
    return _computation(Scope(module.entry), module, channels_begun(module))


def _computation(scope: Scope, module: Module, begun: frozenset[str]) -> Cost:
    """The cost of a computation that is executed instruction by instruction."""
    total = Cost()
    for one in scope.computation.instructions.values():
        total.bytes += traffic(one, scope.computation, module)
        if is_collective(one):
            total.collectives[kind_of(one)] += received_bytes(one, scope.computation, module)
        if one.opcode == "while":
            rounds = trip_count(one, scope, module)
            total.unknown_loops += rounds is None
            for part in ("body", "condition"):
                inside = scope.enter(one, one.called[part], module)
                total.add(_computation(inside, module, begun), 1 if rounds is None else rounds)
        elif one.opcode == "conditional":
            branches = one.branches or tuple(one.called.values())
            costs = [_computation(scope.enter(one, name, module), module, begun) for name in branches]
            total.add(max(costs, key=lambda cost: (cost.flops, cost.bytes)))
        elif one.opcode in ("call", "async-start"):
            called = one.called.get("to_apply") or one.called["calls"]
            total.add(_computation(scope.enter(one, called, module), module, begun))
        elif one.opcode == "fusion":
            total.add(_fused(module.computations[one.called["calls"]], module, begun))
        elif one.opcode == "custom-call":
            total.add(_kernel(one))
        else:
            total.flops += _flops(one, scope.computation)
    return total


def _fused(computation: Computation, module: Module, begun: frozenset[str]) -> Cost:
    """FLOPs and collectives inside a fusion; its traffic is that of the fusion as a whole."""
    total = Cost()
    for kind, size in collectives(computation, module, begun):
        total.collectives[kind] += size
    for one in computation.instructions.values():
        if one.opcode == "fusion":
            total.add(_fused(module.computations[one.called["calls"]], module, begun))
        elif one.opcode == "custom-call":
            total.add(_kernel(one))
        else:
            total.flops += _flops(one, computation)
    return total


def _flops(one: Instruction, computation: Computation) -> float:
    operands = [computation.instructions[name] for name in one.operands]
    match one.opcode:
        case "dot":
            return dot_flops(one, operands[0].array)
        case "convolution":
            return convolution_flops(one, operands[0].array, operands[1].array)
    return 0.0


def _kernel(call: Instruction) -> Cost:
    """A Pallas kernel for TPU carries its author's estimate, or none. Other custom calls are the compiler's own."""
    if call.attribute("custom_call_target") != '"tpu_custom_call"':
        return Cost()
    estimate = _KERNEL_COST.search(call.attributes)
    flops = json.loads(estimate[1]).get("flops", 0) if estimate else 0
    return Cost(flops=float(flops)) if flops else Cost(unsaid_kernels=1)
