"""What an optimised TPU program costs, read from its HLO text.

The TPU compiler writes an estimate of its own, `estimated_cycles`, on every fusion it emits, but says
nowhere how often a loop's body runs. Here the loops' counters are run, and the estimates are added up:

    cycles = sum over instructions of estimated_cycles * trip counts of the loops around it

Collectives and Pallas kernels carry no estimate. The first are reported in bytes that a chip sends, the
second as a list of calls, for whoever can count them otherwise.

    python -m benchmarks.hlo_cost FILE      prints the costs of the module in FILE and its dearest instructions
"""

import dataclasses
import math
import operator
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MATMUL, OTHER, COLLECTIVE, CUSTOM_CALL = "matmul", "other", "collective", "custom call"
MATMULS = ("convolution", "dot")  # on TPUs nearly every product is a convolution
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
PALLAS = "tpu_custom_call"
MOST_TRIPS = 100_000  # a loop that runs longer than this counts as one without a known end
BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2,
    "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = type opcode(arguments), attributes`."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """(element type, dimensions) of the result, or of each part of a tuple."""
        found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", self.type)
        return [(t, tuple(map(int, filter(None, d.split(","))))) for t, d in found if t in BYTES]

    @property
    def bytes(self) -> float:
        return sum(BYTES[kind] * math.prod(shape) for kind, shape in self.shapes)

    @property
    def estimate(self) -> int | None:
        """The compiler's estimated cycles of one execution."""
        return int(found) if (found := self.find(r'"estimated_cycles":"(\d+)"')) else None

    @property
    def collective(self) -> str | None:
        """Which collective this is, or begins."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    def find(self, pattern: str) -> str | None:
        """The first group of the pattern in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def computation(self, *roles: str) -> str | None:
        """The computation that is called in the first of these roles."""
        return next((found for role in roles if (found := self.find(rf"{role}=%([\w.\-]+)"))), None)


@dataclasses.dataclass
class Computation:
    """Instructions by name, in order, and the one whose value is the result."""

    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""


@dataclasses.dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True)
class Item:
    """An instruction with an estimate: cycles of one execution. source: the JAX operation behind it."""

    name: str
    kind: str
    cycles: int
    executions: int
    source: str

    @property
    def total(self) -> int:
        return self.cycles * self.executions


@dataclasses.dataclass(frozen=True)
class CustomCall:
    """A call of what XLA cannot see into; name: of the Pallas kernel, or empty."""

    target: str
    name: str
    operands: tuple[str, ...]
    result: str
    executions: int
    estimated: bool


@dataclasses.dataclass
class Cost:
    """A module's cost on each chip.

    items: all instructions with an estimate. flops: of matrix products, 2 for a multiply and add.
    collective_bytes: kind -> bytes that a chip sends. custom_calls: in the order of the program.
    loops: trip counts by name, None where unknown (counted once). warnings: why the sum may be wrong.
    """

    items: list[Item] = dataclasses.field(default_factory=list)
    flops: float = 0.0
    collective_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    custom_calls: list[CustomCall] = dataclasses.field(default_factory=list)
    loops: dict[str, int | None] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def cycles_by_kind(self) -> dict[str, int]:
        kinds = (MATMUL, OTHER, COLLECTIVE, CUSTOM_CALL)
        return {kind: sum(i.total for i in self.items if i.kind == kind) for kind in kinds}

    @property
    def cycles(self) -> int:
        return sum(item.total for item in self.items)


def analyse(text: str) -> Cost:
    """The cost of an optimised HLO module, as `compiled.as_text()` prints it."""
    walk = _Walk(parse(text))
    walk.visit(walk.module.entry, 1)
    return walk.cost


def parse(text: str) -> Module:
    """HLO text -> module. Raises ValueError where it is not the text of a whole module."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _logical_lines(text):
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$", line)
        if header:
            current = computations[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line.strip().removeprefix("ROOT "))
            current.instructions[instruction.name] = instruction
            if line.strip().startswith("ROOT "):
                current.root = instruction.name
    if not entry or any(not computation.root for computation in computations.values()):
        raise ValueError("not the text of an HLO module: no ENTRY, or a computation without ROOT")
    return Module(computations, entry)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, each instruction in one: the metadata of Pallas kernels has line breaks."""
    held = ""
    for line in text.splitlines():
        if held.startswith("  ") and not line.startswith(("  ", "}")):
            held += " " + line
        else:
            yield held
            held = line
    yield held


def _instruction(text: str) -> Instruction:
    name, rest = text.split(" = ", 1)
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    end = _closing(rest, opening)
    return Instruction(
        name.lstrip("%"), kind, rest[:opening], rest[opening + 1 : end - 1], rest[end:]
    )


def _closing(text: str, opening: int) -> int:
    """Behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return opening + found.end()
    raise ValueError(f"parentheses do not close: {text[:80]}")


# Loops. A loop's counter is an integer beside arrays; the rest of the state stays unknown (None).
Value = Any  # int, tuple of Value, or None
ARITHMETIC = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "maximum": max,
    "minimum": min,
    "and": operator.and_,
    "or": operator.or_,
}
SAME = (
    "bitcast",
    "broadcast",
    "convert",
    "copy",
    "copy-done",
    "copy-start",
    "opt-barrier",
    "reshape",
)


def _evaluate(
    module: Module, computation: str, arguments: Sequence[Value], name: str | None = None
) -> Value:
    """The value of an instruction (default: the result) as far as it follows from the arguments."""
    instructions = module.computations[computation].instructions
    known: dict[str, Value] = {}

    def value(name: str) -> Value:
        if name not in known:
            known[name] = compute(instructions[name])
        return known[name]

    def compute(at: Instruction) -> Value:
        is_counter = re.match(r"(pred|[su]\d+)\[[1,]*\]", at.type)
        if not is_counter and not at.type.startswith("(") and at.opcode != "opt-barrier":
            return None
        if at.opcode == "parameter":
            return arguments[int(at.arguments)]
        if at.opcode == "constant":
            literal = at.arguments.strip(" {}")
            return {"true": 1, "false": 0}.get(literal) if literal.isalpha() else int(literal)
        if at.opcode in SAME:
            return value(at.operands[0])
        if at.opcode == "get-tuple-element":
            whole = value(at.operands[0])
            return None if whole is None else whole[int(at.find(r"index=(\d+)") or 0)]
        if at.opcode == "tuple":
            return tuple(map(value, at.operands))
        if at.opcode in ("fusion", "call"):
            called = at.computation("calls", "to_apply")
            return _evaluate(module, called, [value(o) for o in at.operands]) if called else None
        operation = ARITHMETIC.get(at.opcode)
        if at.opcode == "compare":
            operation = getattr(operator, (at.find(r"direction=(\w+)") or "").lower())
        if operation is None:
            return None
        inputs = [value(o) for o in at.operands]
        return None if None in inputs else int(operation(*inputs))

    return value(name or module.computations[computation].root)


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often a `while` of this computation runs its body; None where its counter is not known."""
    if known := loop.find(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition, body = loop.computation("condition"), loop.computation("body")
    assert condition and body
    unknown = [None] * len(module.computations[computation].instructions)
    state = _evaluate(module, computation, unknown, loop.operands[0])
    for trips in range(MOST_TRIPS):
        goes_on = _evaluate(module, condition, [state])
        if not goes_on:
            return None if goes_on is None else trips
        state = _evaluate(module, body, [state])
    return None


class _Walk:
    """Goes through a module as it is executed, and adds up."""

    def __init__(self, module: Module):
        self.module = module
        self.cost = Cost()
        self._counted: set[tuple[str | None, str]] = set()

    def visit(self, computation: str, executions: int) -> None:
        """Everything in a computation that is executed so often."""
        for at in self.module.computations[computation].instructions.values():
            if at.opcode == "while":
                trips = trip_count(self.module, computation, at)
                self.cost.loops[at.name] = trips
                if trips is None:
                    self.cost.warnings.append(f"{at.name}: trip count unknown, counted once")
                self.visit(
                    at.computation("body") or "", executions * (1 if trips is None else trips)
                )
            elif at.opcode == "conditional":
                branches = re.findall(
                    r"%([\w.\-]+)", at.find(r"branch_computations=\{(.*?)\}") or ""
                )
                branches = branches or [
                    at.computation("true_computation") or "",
                    at.computation("false_computation") or "",
                ]
                self.cost.warnings.append(f"{at.name}: all {len(branches)} branches are counted")
                for branch in branches:
                    self.visit(branch, executions)
            elif at.opcode == "call":
                self.visit(at.computation("to_apply", "calls") or "", executions)
            else:
                self._count(at, computation, executions)

    def _count(self, at: Instruction, computation: str, executions: int) -> None:
        parts = [(computation, at), *self._inside(at)]
        for where, part in parts:
            if part.opcode in MATMULS:
                self.cost.flops += executions * matmul_flops(self._instructions(where), part)
            elif part.collective:
                self._count_collective(where, part, executions, fused=part is not at)
        if at.opcode == "custom-call":
            self._list(at, computation, executions)
        if at.estimate is not None:
            source = at.find(r'op_name="([^"]*)"') or ""
            kind = _kind([part for _, part in parts])
            self.cost.items.append(Item(at.name, kind, at.estimate, executions, source))

    def _instructions(self, computation: str) -> dict[str, Instruction]:
        return self.module.computations[computation].instructions

    def _inside(self, at: Instruction) -> Iterator[tuple[str, Instruction]]:
        """All that is fused into an instruction, with the computation it is written in."""
        called = at.computation("calls") if at.opcode in ("fusion", "call", "async-start") else None
        for part in self._instructions(called).values() if called else ():
            yield called or "", part
            yield from self._inside(part)

    def _count_collective(self, where: str, at: Instruction, executions: int, fused: bool) -> None:
        # A collective that is spread over several fusions stands in each of them, on one channel.
        channel = at.find(r"channel_id=(\d+)") or where + at.name
        if (at.collective, channel) in self._counted:
            return
        self._counted.add((at.collective, channel))
        instructions = self._instructions(where)
        kind = at.collective or ""
        if fused and kind == "all-reduce":
            # Of which each chip keeps its slice: a reduce-scatter in all but name.
            if any(part.opcode == "dynamic-slice" for part in instructions.values()):
                kind = "reduce-scatter"
        given = sum(instructions[o].bytes for o in at.operands) or at.bytes
        group = _group_size(at)
        sent = (group - 1) / group if group else 1.0
        if kind == "all-gather":
            given = given * (group or 1) if at.opcode.endswith("-start") else at.bytes
        factor = {"all-reduce": 2 * sent, "collective-permute": 1.0, "collective-broadcast": 1.0}
        total = self.cost.collective_bytes
        total[kind] = total.get(kind, 0.0) + executions * given * factor.get(kind, sent)

    def _list(self, at: Instruction, computation: str, executions: int) -> None:
        target = at.find(r'custom_call_target="([^"]*)"') or ""
        source = at.find(r'op_name="([^"]*)"') or ""
        instructions = self._instructions(computation)
        self.cost.custom_calls.append(
            CustomCall(
                target,
                source.split("/")[-1] if target == PALLAS else "",
                tuple(instructions[o].type for o in at.operands),
                at.type,
                executions,
                at.estimate is not None,
            )
        )


def _kind(parts: Sequence[Instruction]) -> str:
    if any(part.opcode in MATMULS for part in parts):
        return MATMUL
    if any(part.collective for part in parts):
        return COLLECTIVE
    return CUSTOM_CALL if parts[0].opcode == "custom-call" else OTHER


def _group_size(at: Instruction) -> int | None:
    """How many chips take part in a collective; HLO has three notations."""
    if groups := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", at.attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", groups[2]))
    if size := at.find(r"replica_groups=\[\d+,(\d+)\]"):
        return int(size)
    first = at.find(r"replica_groups=\{\{([\d,]+)\}")
    return first.count(",") + 1 if first else None


def matmul_flops(instructions: dict[str, Instruction], at: Instruction) -> float:
    """2 x the multiplications of a dot or convolution; products with padding do not count."""
    left, right = (instructions[o].shapes[0][1] for o in at.operands[:2])
    result = at.shapes[0][1]
    if at.opcode == "dot":
        contracted = (at.find(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",")
        return 2.0 * math.prod(result) * math.prod(left[int(i)] for i in contracted if i)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", at.attributes)
    assert labels
    sizes = [
        dict(zip(*pair, strict=True))
        for pair in zip(labels.groups(), (left, right, result), strict=True)
    ]
    groups = int(at.find(r"batch_group_count=(\d+)") or 1)
    flops = 2.0 * sizes[0]["b"] / groups * sizes[2]["f"] * sizes[1]["i"]
    window = dict(w.split("=") for w in (at.find(r"window=\{([^}]*)\}") or "").split())

    def setting(name: str, dimension: int, default: str) -> int:
        """The first number, as in pad=low_high."""
        each = window[name].split("x") if name in window else [default] * (dimension + 1)
        return int(each[dimension].split("_")[0])

    for i in range(len(sizes[0]) - 2):
        source, kernel, output = (size[str(i)] for size in sizes)
        stride, pad = setting("stride", i, "1"), setting("pad", i, "0")
        spread, step = setting("lhs_dilate", i, "1"), setting("rhs_dilate", i, "1")
        places = np.arange(output)[:, None] * stride - pad + np.arange(kernel) * step
        inside = (places >= 0) & (places <= (source - 1) * spread) & (places % spread == 0)
        flops *= int(inside.sum())
    return flops


def main(path: str) -> None:
    cost = analyse(Path(path).read_text())
    print(f"cycles {cost.cycles:,}: {cost.cycles_by_kind}")
    print(f"matrix products: {cost.flops / 1e12:.3f} TFLOP; loops: {cost.loops}")
    print(
        f"bytes sent: { {kind: f'{sent / 1e9:.3f} GB' for kind, sent in cost.collective_bytes.items()} }"
    )
    for call in cost.custom_calls:
        if not call.estimated and call.target == PALLAS:
            print(f"no estimate: {call.executions} x {call.name} {call.result}")
    print(*(f"warning: {text}" for text in cost.warnings), sep="\n")
    for item in sorted(cost.items, key=lambda item: -item.total)[:20]:
        print(f"{item.total:>13,} = {item.cycles:,} x {item.executions} {item.kind} {item.source}")


if __name__ == "__main__":
    main(sys.argv[1])
