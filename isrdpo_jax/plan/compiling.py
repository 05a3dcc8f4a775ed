"""Compiles a program and says what it needs: memory, FLOPs, traffic, and a fingerprint of what was compiled."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field

import jax

from isrdpo_jax.plan.hlo_cost import count
from isrdpo_jax.plan.programs import Name, Program

_TOO_LARGE = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SOURCES = re.compile(r", metadata=\{[^{}]*\}|^(?:FileNames|FunctionNames|FileLocations|StackFrames)\n(?:.+\n)*", re.M)


@dataclass(frozen=True)
class Compiled:
    """What one device needs for one call of a program; seconds are those of tracing and compiling.

    Attributes:
        hbm_bytes: at the worst moment, with what else the run holds; what the compiler asked for where it gave up.
        argument_bytes: the program's own arguments (where it gave up, with what else the run holds).
        held_bytes: what the run holds besides.
        temp_bytes: the rest: temporaries, results, code.
        flops: useful ones, an equal share of the whole. executed_flops: of matrix products in the compiled program.
        collective_bytes: received from other devices, by kind.
        unknown_loops: loops counted as one round, since their end could not be read.
        fits_compiler: the compiler found room.
    """

    name: Name
    fits_compiler: bool
    hbm_bytes: int
    argument_bytes: int
    held_bytes: int
    temp_bytes: int
    flops: float
    compile_seconds: float
    executed_flops: float = 0.0
    bytes_accessed: float = 0.0
    collective_bytes: dict[str, float] = field(default_factory=dict)
    unknown_loops: int = 0
    fingerprint: str = ""


def compile_program(program: Program, devices: int) -> Compiled:
    """Compiles for `devices` devices. A program without room in HBM is an answer, not an error."""
    began = time.monotonic()
    useful = program.useful * (1 / devices)
    lowered = program.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := bytes_asked_for(str(error))) is None:
            raise
        live = min(program.live_bytes, needed)
        return Compiled(program.name, False, needed, live, 0, needed - live, useful.total, time.monotonic() - began)
    seconds = time.monotonic() - began
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    cost = count(text)
    arguments = memory.argument_size_in_bytes
    # The compiler's own peak is what it compares with the capacity: its temporaries count donated results once more.
    peak = memory.peak_memory_in_bytes or (
        arguments + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    )
    own = max(peak, arguments) + memory.generated_code_size_in_bytes
    held = max(0, program.live_bytes - arguments)
    # A Pallas kernel that does not say what it does is taken to do what attention needs.
    unsaid = useful.attention if cost.unsaid_kernels else 0.0
    return Compiled(
        name=program.name,
        fits_compiler=True,
        hbm_bytes=own + held,
        argument_bytes=arguments,
        held_bytes=held,
        temp_bytes=own - arguments,
        flops=useful.total,
        compile_seconds=seconds,
        executed_flops=cost.flops + unsaid,
        bytes_accessed=cost.bytes,
        collective_bytes=dict(cost.collectives),
        unknown_loops=cost.unknown_loops,
        fingerprint=fingerprint(text),
    )


def bytes_asked_for(message: str) -> int | None:
    """The bytes of HBM that a program would have taken, from the compiler's refusal; None for any other error."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    match = _TOO_LARGE.search(message)
    if match is None:
        return 0
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return int(float(number) * _UNITS[unit])


def fingerprint(text: str) -> str:
    """Of an optimized module, without the names of source files and lines in it."""
    return hashlib.sha256(_SOURCES.sub("", text).encode()).hexdigest()[:16]
