"""What a compiled program sends between devices, counted from its text, without running it."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

# What a device receives in a ring of n, per byte of its operand.
RING = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(\w+)=(?:%([\w.\-]+)|\{(%[^}]*)\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Three ways to write groups of devices: {{0,1},{2,3}}, [2,2]<=[4], mesh['x'=2,'y'=2] {'y'}.
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\[(.*?)\] *\{(.*?)\})")
_AXIS = re.compile(r"'(\w+)'(?:=(\d+)|:\(\d+\)(\d+))?")


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes


def communication_bytes(
    compiled: jax.stages.Compiled | str, *, unknown_trips: int = 1
) -> dict[str, int]:
    """Bytes that each device receives from others in one run, by kind of communication.

    Counted from the program's text (HLO), with collectives as rings. What is in a loop counts as
    often as the loop runs; of branches, the one that communicates most counts.

    Args:
      compiled: `jax.jit(f).lower(...).compile()`, or its `as_text()`.
      unknown_trips: how often loops run whose count depends on data: for the Euclidean distance
        the steps of a sequence.

    Returns:
      A figure for each key of `RING`; all are 0 on one device.
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    computations, entry = _computations(text)
    known: dict[str, dict[str, float]] = {}

    def bytes_of(name: str) -> dict[str, float]:
        if name not in known:
            known[name] = _add(
                contribution
                for instruction in computations.get(name, ())
                for contribution in contributions(name, instruction)
            )
        return known[name]

    def contributions(name: str, instruction: _Instruction) -> Iterator[dict[str, float]]:
        kind = instruction.opcode.removesuffix("-start")
        if kind in RING:
            size = _operand_bytes(instruction, computations[name])
            yield {kind: size * RING[kind](_group_size(instruction))}
        called = _called(instruction)
        if kind == "while":
            found = _TRIPS.search(instruction.rest)
            trips = int(found[1]) if found else unknown_trips
            yield from (_times(bytes_of(one), trips) for one in called)
        elif kind == "conditional":
            yield max(map(bytes_of, called), key=lambda one: sum(one.values()))
        else:
            yield from map(bytes_of, called)

    totals = bytes_of(entry)
    return {kind: round(totals.get(kind, 0)) for kind in RING}


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The instructions of each computation, and which computation is the program."""
    computations, entry, current = {}, "", []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            current.append(_Instruction(*instruction.groups()))
    return computations, entry


def _operand_bytes(instruction: _Instruction, computation: list[_Instruction]) -> int:
    types = {one.name: one.type for one in computation}
    operands = instruction.rest.partition(")")[0]
    return sum(_bytes(types[name]) for name in re.findall(r"%([\w.\-]+)", operands))


def _bytes(type_: str) -> int:
    """The size of an array type, or of all arrays of a tuple type."""
    total = 0
    for dtype, shape in _ARRAY.findall(type_):
        bits = re.search(r"\d+", dtype)
        size = 1 if bits is None else max(int(bits[0]) // 8, 1)  # pred, and types below a byte
        for axis in filter(None, shape.split(",")):
            size *= int(axis)
        total += size
    return total


def _group_size(instruction: _Instruction) -> int:
    """Over how many devices a collective goes; a permutation has pairs instead."""
    found = _GROUPS.search(instruction.rest)
    if found is None:
        return 1
    if found[3] is None:
        return len(found[1].split(",")) if found[1] else int(found[2])
    sizes = {name: int(size) for name, size, _ in _AXIS.findall(found[3])}
    axes = _AXIS.findall(found[4])
    return math.prod(int(part) if part else sizes[name] for name, _, part in axes)


def _called(instruction: _Instruction) -> list[str]:
    """The computations that an instruction runs."""
    names = []
    for _, one, many in _CALLED.findall(instruction.rest):
        names += [one] if one else re.findall(r"%([\w.\-]+)", many)
    return names


def _add(parts) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for kind, size in part.items():
            total[kind] = total.get(kind, 0) + size
    return total


def _times(part: dict[str, float], count: int) -> dict[str, float]:
    return {kind: size * count for kind, size in part.items()}
