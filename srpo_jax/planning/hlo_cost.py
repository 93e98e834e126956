"""What an optimised TPU program costs, read from its HLO text.

The TPU compiler writes its own estimate, `estimated_cycles`, on every fusion it emits, but says nowhere
how often a loop's body runs. Here the loops' counters are run, and the estimates are added up:

    cycles = sum over instructions of estimated_cycles * trip counts of the loops around it

Collectives and Pallas kernels carry no estimate: the first are reported in bytes that a chip sends, the
second as a list of calls, for whoever can count them otherwise.
"""

import collections
import dataclasses
import math
import operator
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

MATMUL, OTHER, COLLECTIVE, CUSTOM_CALL = KINDS = "matmul", "other", "collective", "custom call"
MATMULS = ("convolution", "dot")  # on TPUs nearly every product is a convolution
SPARED = {"collective-permute": 1.0, "collective-broadcast": 1.0}  # the whole operand is sent
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", *SPARED)
SLICES = "slices: "
PALLAS = "tpu_custom_call"
MOST_TRIPS = 100_000  # a loop that runs longer than this counts as one without a known end
BYTES = {"pred": 1, "bf16": 2, "f16": 2} | {
    f"{kind}{bits}": bits / 8 for kind in "suf" for bits in (4, 8, 16, 32, 64)
}


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
        found = re.findall(r"\b([a-z]+\d*)\w*\[([\d,]*)\]", self.type)
        return [(kind, tuple(map(int, filter(None, dims.split(","))))) for kind, dims in found]

    @property
    def bytes(self) -> float:
        return sum(BYTES.get(kind, 0) * math.prod(shape) for kind, shape in self.shapes)

    @property
    def collective(self) -> str:
        """Which collective this is or begins; empty for none."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""

    def find(self, pattern: str) -> str:
        """The first group of the pattern in the attributes, or nothing."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    def computation(self, role: str) -> str:
        return self.find(rf"{role}=%([\w.\-]+)")


Computation = dict[str, Instruction]  # by name, in order


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, the instruction that is each one's result, and where execution begins."""

    computations: dict[str, Computation]
    roots: dict[str, str]
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
    """A call without an estimate. target: PALLAS for a kernel, whose name the call's begins with."""

    name: str
    target: str
    operands: tuple[str, ...]
    result: str
    executions: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective. bytes: that a chip sends in one execution. group: numbers of the chips of one group, in
    the order of the mesh; None for all.

    Between slices TPUs send by their hosts: kind is then SLICES and what is done, bytes what a chip has.
    """

    kind: str
    bytes: float
    executions: int
    group: tuple[int, ...] | None


@dataclasses.dataclass
class Cost:
    """What each chip does.

    items: all instructions with an estimate. flops: of matrix products, 2 for a multiplication and
    addition. custom_calls: those without an estimate. loops: trip counts by name, None where unknown.
    warnings: why the sum may be wrong.
    """

    items: list[Item] = dataclasses.field(default_factory=list)
    flops: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    custom_calls: list[CustomCall] = dataclasses.field(default_factory=list)
    loops: dict[str, int | None] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def cycles(self) -> int:
        return sum(item.total for item in self.items)

    @property
    def collective_bytes(self) -> dict[str, float]:
        """Kind -> bytes that a chip sends."""
        total: dict[str, float] = collections.defaultdict(float)
        for one in self.collectives:
            total[one.kind] += one.executions * one.bytes
        return dict(total)

    @property
    def cycles_by_kind(self) -> dict[str, int]:
        return {kind: sum(i.total for i in self.items if i.kind == kind) for kind in KINDS}


def analyse(text: str, unknown: int | None = None) -> Cost:
    """The cost of an optimised HLO module, as `compiled.as_text()` prints it.

    unknown: how often the body of a loop runs whose end depends on data; None: once, with a warning.
    """
    module = parse(text)
    walk = Walk(module, unknown)
    walk.visit(module.entry, 1)
    return walk.cost


def parse(text: str) -> Module:
    """HLO text -> module. Raises ValueError where it is not the text of a whole module."""
    computations: dict[str, Computation] = {}
    roots: dict[str, str] = {}
    entry = current = ""
    # The metadata of Pallas kernels has line breaks: what begins like nothing else continues a line.
    for line in re.sub(r"\n(?!  |\}|\n|ENTRY |%[\w.\-]+ \()", " ", text).splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$", line):
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current and " = " in line:
            instruction = _instruction(line.strip().removeprefix("ROOT "))
            computations[current][instruction.name] = instruction
            if line.strip().startswith("ROOT "):
                roots[current] = instruction.name
    if not entry or computations.keys() != roots.keys():
        raise ValueError("not the text of an HLO module: no ENTRY, or a computation without ROOT")
    return Module(computations, roots, entry)


def _instruction(text: str) -> Instruction:
    name, rest = text.split(" = ", 1)
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    end = _closing(rest, opening)
    called_with = rest[opening + 1 : end - 1]
    return Instruction(name.lstrip("%"), result, rest[:opening], called_with, rest[end:])


def _closing(text: str, opening: int) -> int:
    """Behind the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return opening + found.end()
    raise ValueError(f"parentheses do not close: {text[:80]}")


# What follows from constants alone. A loop's counter does; the arrays beside it stay unknown: None.
Value = Any  # int, tuple of Value, or None
ARITHMETIC = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}
SAME = ("bitcast", "convert", "copy", "copy-done", "copy-start", "opt-barrier", "reshape")


def _evaluate(module: Module, where: str, arguments: Sequence[Value], name: str = "") -> Value:
    """The value of an instruction of computation `where`, by default of its result."""
    instructions = module.computations[where]
    known: dict[str, Value] = {}

    def value(name: str) -> Value:
        if name not in known:
            known[name] = compute(instructions[name])
        return known[name]

    def compute(at: Instruction) -> Value:
        if not re.match(r"\(|(pred|[su]\d+)\[[1,]*\]", at.type):
            return None
        if at.opcode == "parameter":
            return arguments[int(at.arguments)] if arguments else None
        if at.opcode == "constant":
            literal = at.arguments.strip(" {}")
            return literal == "true" if literal.isalpha() else int(literal)
        inputs = [value(operand) for operand in at.operands]
        if at.opcode == "tuple":
            return tuple(inputs)
        if at.opcode == "fusion":
            return _evaluate(module, at.computation("calls"), inputs)
        if None in inputs:
            return None
        if at.opcode in SAME:
            return inputs[0]
        if at.opcode == "get-tuple-element":
            return inputs[0][int(at.find(r"index=(\d+)"))]
        if at.opcode == "compare":
            return getattr(operator, at.find(r"direction=(\w+)").lower())(*inputs)
        return ARITHMETIC[at.opcode](*inputs) if at.opcode in ARITHMETIC else None

    return value(name or module.roots[where])


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often a `while` of this computation runs its body; None where that depends on data."""
    if known := loop.find(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    state = _evaluate(module, computation, (), loop.operands[0])
    for trips in range(MOST_TRIPS):
        goes_on = _evaluate(module, loop.computation("condition"), [state])
        if not goes_on:
            return None if goes_on is None else trips
        state = _evaluate(module, loop.computation("body"), [state])
    return None


class Walk:
    """Goes through a module as it is executed, and adds up."""

    def __init__(self, module: Module, unknown: int | None):
        self.computations, self.unknown = module.computations, unknown
        self.module, self.cost = module, Cost()
        self._counted: set[tuple[str, str]] = set()

    def visit(self, computation: str, executions: int) -> None:
        """Everything in a computation that is executed so often."""
        for at in self.computations[computation].values():
            if at.opcode == "while":
                trips = self.cost.loops[at.name] = trip_count(self.module, computation, at)
                if trips is None:
                    trips = self.unknown
                if trips is None:
                    trips = 1
                    self.cost.warnings.append(f"{at.name}: trip count unknown, counted once")
                self.visit(at.computation("body"), executions * trips)
            elif at.opcode in ("call", "conditional"):
                called = re.findall(r"%([\w.\-]+)", at.attributes.partition("metadata=")[0])
                if at.opcode == "conditional":
                    self.cost.warnings.append(f"{at.name}: all {len(called)} branches counted")
                for one in called:
                    self.visit(one, executions)
            else:
                self.count(at, computation, executions)

    def count(self, at: Instruction, computation: str, executions: int) -> None:
        """One instruction that is executed so often."""
        parts = [(at, computation), *self._inside(at)]
        for part, where in parts:
            if part.opcode in MATMULS:
                self.cost.flops += executions * matmul_flops(self.computations[where], part)
            elif part.collective:
                self._count_collective(part, where, executions, fused=part is not at)
            elif part.opcode == "send" and "xla_megascale_runtime" in part.attributes:
                kind = SLICES + part.find(r'transfer_type="(\w+)"')
                had = self.computations[where][part.operands[0]].bytes
                self.cost.collectives.append(Collective(kind, had, executions, None))
        source = at.find(r'op_name="([^"]*)"')
        if estimate := at.find(r'"estimated_cycles":"(\d+)"'):
            kind = _kind([part for part, _ in parts])
            self.cost.items.append(Item(at.name, kind, int(estimate), executions, source))
        elif target := at.find(r'custom_call_target="([^"]*)"'):
            operands = tuple(self.computations[computation][o].type for o in at.operands)
            self.cost.custom_calls.append(
                CustomCall(at.name, target, operands, at.type, executions)
            )

    def _inside(self, at: Instruction) -> Iterator[tuple[Instruction, str]]:
        """All that is fused into an instruction, with the computation it is written in."""
        called = at.computation("calls")
        for part in self.computations[called].values() if called else ():
            yield part, called
            yield from self._inside(part)

    def _count_collective(self, at: Instruction, where: str, executions: int, fused: bool) -> None:
        # A collective that is spread over several fusions stands in each of them, on one channel.
        kind, channel = at.collective, at.find(r"channel_id=(\d+)") or where + at.name
        if (kind, channel) in self._counted:
            return
        self._counted.add((kind, channel))
        beside = self.computations[where]
        amount = sum(beside[o].bytes for o in at.operands) or at.bytes
        members = _first_group(at)
        group = len(members) if members else 0
        sent = (group - 1) / group if group else 1.0
        if kind == "all-gather":
            amount = amount * (group or 1) if at.opcode.endswith("-start") else at.bytes
        elif kind == "all-reduce":
            # One whose sum is sliced at once is a reduce-scatter: it sends half as much.
            sliced = fused and any(i.opcode == "dynamic-slice" for i in beside.values())
            kind, sent = ("reduce-scatter", sent) if sliced else (kind, 2 * sent)
        amount *= SPARED.get(kind, sent)
        self.cost.collectives.append(Collective(kind, amount, executions, members))


def _kind(parts: Sequence[Instruction]) -> str:
    if any(part.opcode in MATMULS for part in parts):
        return MATMUL
    if any(part.collective for part in parts):
        return COLLECTIVE
    return CUSTOM_CALL if parts[0].opcode == "custom-call" else OTHER


def _first_group(at: Instruction) -> tuple[int, ...] | None:
    """The chips of a collective's first group, in any of HLO's notations; None for all."""
    if groups := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", at.attributes):
        sizes = [(name, int(size)) for name, size in re.findall(r"'(\w+)'=(\d+)", groups[1])]
        along = re.findall(r"'(\w+)'", groups[2])
        numbers = np.arange(math.prod(size for _, size in sizes)).reshape([n for _, n in sizes])
        members = numbers[tuple(slice(None) if name in along else 0 for name, _ in sizes)]
        return tuple(map(int, members.flat))
    if iota := re.search(
        r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", at.attributes
    ):
        shape = list(map(int, iota[2].split(",")))
        order = list(map(int, iota[3].split(","))) if iota[3] else range(len(shape))
        numbers = np.arange(math.prod(shape)).reshape(shape).transpose(order)
        return tuple(map(int, numbers.reshape(-1)[: int(iota[1])]))
    pairs = r"source_target_pairs=\{\{([\d,]+)\}"
    first = at.find(r"replica_groups=\{\{([\d,]+)\}") or at.find(pairs)
    return tuple(map(int, first.split(","))) if first else None


def matmul_flops(beside: Computation, at: Instruction) -> float:
    """2 x the multiplications of a dot or convolution; those with padding do not count."""
    shapes = [one.shapes[0][1] for one in (*(beside[o] for o in at.operands[:2]), at)]
    if at.opcode == "dot":
        contracted = at.find(r"lhs_contracting_dims=\{([\d,]*)\}").split(",")
        return 2.0 * math.prod(shapes[2]) * math.prod(shapes[0][int(i)] for i in contracted if i)
    labels = at.find(r"dim_labels=(\w+->\w+)").replace("->", "_").split("_")
    left, right, result = (dict(zip(*one, strict=True)) for one in zip(labels, shapes, strict=True))
    flops = 2.0 * left["b"] * result["f"] * right["i"]
    flops /= int(at.find(r"batch_group_count=(\d+)") or 1)
    each = [part.split("=") for part in at.find(r"window=\{([^}]*)\}").split()]
    window = {name: [int(n.split("_")[0]) for n in sizes.split("x")] for name, sizes in each}
    defaults = {"lhs_dilate": 1, "rhs_dilate": 1, "stride": 1, "pad": 0}  # pad=low_high
    settings = [window.get(name, [usual] * len(left)) for name, usual in defaults.items()]
    for i, (spread, step, stride, pad) in enumerate(zip(*settings, strict=False)):
        if str(i) in left:  # a dimension of the window: which products are not with padding?
            places = (
                np.arange(result[str(i)])[:, None] * stride + np.arange(right[str(i)]) * step - pad
            )
            inside = (
                (places >= 0) & (places <= (left[str(i)] - 1) * spread) & (places % spread == 0)
            )
            flops *= int(inside.sum())
    return flops
