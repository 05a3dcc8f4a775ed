"""Reads the text of an optimized HLO module: computations, their instructions, shapes with their memory space.

Only what a cost needs is kept. The text is what `jax.stages.Compiled.as_text` gives, of any backend.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"\b(calls|condition|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_BITS = re.compile(r"[a-z]+(\d+)")


@dataclass(frozen=True)
class Array:
    """A dtype and dimensions; `space` is 0 for the device's main memory (HBM), another number for on-chip memories."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> float:
        """Bytes of an element; `pred` takes one, and what holds no data (`token`) none."""
        if self.dtype == "pred":
            return 1
        bits = _BITS.match(self.dtype)
        return int(bits[1]) / 8 if bits else 0

    @property
    def bytes(self) -> float:
        return self.elements * self.itemsize


@dataclass(frozen=True)
class Instruction:
    """One line. `arrays` are the leaves of its result, `called` the computations that it names, by attribute."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str = ""
    called: Mapping[str, str] = field(default_factory=dict)
    branches: tuple[str, ...] = ()

    @property
    def array(self) -> Array:
        return self.arrays[0]

    def attribute(self, name: str) -> str | None:
        """The value of an attribute without spaces, such as `window={…}` or `index=3`."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return match[1] if match else None


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return tuple(sorted(found, key=lambda one: int(one.literal)))

    @cached_property
    def users(self) -> Mapping[str, tuple[tuple[Instruction, int], ...]]:
        """For each instruction, who reads it and as which operand."""
        out: dict[str, list[tuple[Instruction, int]]] = {}
        for one in self.instructions.values():
            for index, operand in enumerate(one.operands):
                out.setdefault(operand, []).append((one, index))
        return {name: tuple(readers) for name, readers in out.items()}


@dataclass(frozen=True)
class Module:
    """partitions: how many devices run it together."""

    computations: Mapping[str, Computation]
    entry: Computation
    partitions: int = 1


def parse_module(text: str) -> Module:
    """Raises:
    ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    name, is_entry = "", False
    lines: list[str] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, is_entry, lines = header[2], bool(header[1]), []
        elif name and (line == "}" or line.startswith("}, ")):
            computations[name] = one = _computation(name, lines)
            entry, name = one if is_entry else entry, ""
        elif line.startswith("  "):
            lines.append(line)
        elif lines:
            lines[-1] += line  # a kernel's metadata may hold line breaks
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    partitions = re.search(r"\bnum_partitions=(\d+)", text[: text.index("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root: Instruction | None = None
    for line in lines:
        if match := _INSTRUCTION.match(line):
            one = _instruction(match[2], _COMMENT.sub("", match[3]))
            instructions[one.name] = one
            root = one if match[1] else root
    assert root is not None, f"computation {name} has no root"
    return Computation(name, instructions, root)


def _instruction(name: str, text: str) -> Instruction:
    """`shape opcode(operands), attributes`, where a shape may be a tuple."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inside, attributes = text[opening + 1 : closing], text[closing + 1 :]
    opcode = text[end:opening].strip()
    literal = inside if opcode in ("constant", "parameter") else ""
    branches = _BRANCHES.search(attributes)
    return Instruction(
        name,
        opcode,
        tuple(_arrays(text[:end])),
        () if literal else tuple(part.split()[-1].lstrip("%") for part in _split(inside)),
        attributes,
        literal,
        dict(_CALLED.findall(attributes)),
        tuple(part.strip().lstrip("%") for part in branches[1].split(",")) if branches else (),
    )


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        yield Array(dtype, sizes, int(space[1]) if space else 0)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"no closing parenthesis in {text[start : start + 80]}")


def _split(text: str) -> Iterator[str]:
    """Parts between commas that are not inside brackets."""
    depth, start = 0, 0
    for index, char in enumerate(text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            yield text[start:index]
            start = index + 1
    if text[start:].strip():
        yield text[start:]
