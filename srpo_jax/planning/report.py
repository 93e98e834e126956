"""A plan as a record, as lines for the terminal and as a page."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

from srpo_jax.planning.lowering import Held

ASSUMED = (
    "TPUs: cycles are the compiler's own estimates, times the trips of loops; of attention kernels, the "
    "compiler's schedule times the blocks that the batch visits",
    "GPUs: each kernel takes the longer of its products at the chip's peak and of the bytes that it reads "
    "and writes at the speed of its memory, which no program reaches",
    "collectives take the bytes that a chip sends over the speed of all its links; they overlap with "
    "computing wholly at best and not at all at worst",
    "nothing is said of input, checkpoints, evaluation, compilation and failures",
)


@dataclasses.dataclass(frozen=True)
class Range:
    """Between what is best and what is worst."""

    best: float
    worst: float

    def times(self, factor: float) -> "Range":
        return Range(self.best * factor, self.worst * factor)

    def of(self, amount: float) -> "Range":
        """amount divided by both."""
        return Range(amount / self.best, amount / self.worst)

    def shown(self, unit: str, digits: int = 3) -> str:
        best, worst = (f"{value:.{digits}g}" for value in (self.best, self.worst))
        return f"{best} {unit}".strip() if best == worst else f"{best} to {worst} {unit}".strip()


@dataclasses.dataclass(frozen=True)
class Part:
    """A program. seconds: of one execution. sent: axis -> bytes. peak: bytes of HBM. flops: of a chip."""

    name: str
    executions: int
    seconds: Range
    cycles: float
    kernel_cycles: float
    flops: float
    sent: dict[str, float]
    peak: float
    temporaries: float
    compiled_in: float
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run costs. Bytes are of one chip; mfu, pairs_per_second, hours and cost of the whole machine.

    batch: pairs, rows, slots and targets of a row, share of slots filled, and where the lengths are from;
    of a round of online learning prompts in place of pairs, and rows of a minibatch. excess: bytes that are
    missing, by program. cost: in the unit of the price.
    """

    machine: str
    chip: str
    chips: int
    mesh: dict[str, int]
    settings: dict[str, Any]
    batch: dict[str, Any]
    memory: float
    held: Held
    excess: dict[str, float]
    parts: tuple[Part, ...]
    versions: dict[str, str]
    model_flops: float | None = None
    mfu: Range | None = None
    pairs_per_second: Range | None = None
    hours: Range | None = None
    cost: Range | None = None
    answers_per_second: Range | None = None

    @property
    def fits(self) -> bool:
        return not self.excess


def lines(plan: Plan) -> list[tuple[str, str]]:
    """(what, how much) of a plan, in words."""
    held = dataclasses.asdict(plan.held)
    batch = plan.batch
    found = [
        ("machine", f"{plan.machine}: {plan.chips} chips {plan.chip}, mesh {in_words(plan.mesh)}"),
        ("settings", ", ".join(f"{key}={value}" for key, value in plan.settings.items())),
        (
            "batch",
            f"{_learned(batch)} in {batch['rows']} rows of {batch['slots']} slots, "
            f"{batch['fill']:.0%} filled ({batch['lengths']})",
        ),
        ("memory of a chip", _gigabytes(plan.memory)),
        *((f"  {kind}", _gigabytes(value)) for kind, value in held.items()),
    ]
    for part in plan.parts:
        found += _part(part)
    if "prompts" in batch and plan.fits:
        found.append(("a round", _round(plan.parts)))
    for name, missing in plan.excess.items():
        found.append((f"DOES NOT FIT: {name}", f"{_gigabytes(missing)} a chip too much"))
    what = "rounds, no judge" if "prompts" in batch else "train"
    for name, value, unit in (
        ("train: MFU", plan.mfu and Range(100 * plan.mfu.best, 100 * plan.mfu.worst), "%"),
        ("train: pairs a second", plan.pairs_per_second, ""),
        (f"{what}: hours", plan.hours, ""),
        (f"{what}: cost", plan.cost, ""),
        ("revision: answers a second", plan.answers_per_second, ""),
    ):
        if value:
            found.append((name, value.shown(unit)))
    return found


def in_short(plan: Plan) -> str:
    """A line of what --search has tried."""
    speed = (
        plan.pairs_per_second.shown("pairs/s")
        if plan.pairs_per_second
        else f"{sum(plan.excess.values()) / 1e9:.1f} GB a chip too much"
    )
    pairs = f"{plan.batch['pairs']} pairs"
    return f"{speed}: {in_words(plan.mesh)}; remat {plan.settings['remat']}, {pairs}"


def in_words(mesh: Mapping[str, int]) -> str:
    """ "replica 1, fsdp 8, tensor 1"."""
    return ", ".join(f"{axis} {size}" for axis, size in mesh.items())


def _learned(batch: dict[str, Any]) -> str:
    return f"{batch['prompts']} prompts" if "prompts" in batch else f"{batch['pairs']} pairs"


def together(parts: tuple[Part, ...]) -> Range:
    """Seconds of all programs, each as often as it runs."""
    spent = [part.seconds.times(part.executions) for part in parts]
    return Range(sum(one.best for one in spent), sum(one.worst for one in spent))


def _round(parts: tuple[Part, ...]) -> str:
    """All programs, as often as a round runs them."""
    work = sum(part.flops * part.executions for part in parts)
    peak = max(part.peak for part in parts)
    spent = together(parts).shown("s")
    return f"{spent}, {work / 1e12:.4g} TFLOP outside of kernels, peak {_gigabytes(peak)}"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


def _part(part: Part) -> list[tuple[str, str]]:
    sent = (
        ", ".join(f"{axis} {value / 1e9:.3g} GB" for axis, value in part.sent.items()) or "nothing"
    )
    times = f", {part.executions} times" if part.executions > 1 else ""
    cycles = ""
    if part.cycles:
        kernels = f"{part.kernel_cycles / part.cycles:.0%} attention kernels"
        cycles = f"{part.cycles / 1e6:.4g} Mcycles ({kernels}), "
    found = [
        (
            part.name,
            f"{part.seconds.shown('s')}{times}; {cycles}{part.flops / 1e12:.4g} TFLOP "
            f"outside of kernels, peak {part.peak / 1e9:.2f} GB ({part.temporaries / 1e9:.2f} GB "
            f"temporary); compiled in {part.compiled_in:.0f} s",
        ),
        ("  sent by a chip along", sent),
    ]
    return found + [("  warning", warning) for warning in part.warnings]


def record(plan: Plan) -> dict[str, Any]:
    """What `json.dumps` takes."""
    return dataclasses.asdict(plan) | {"fits": plan.fits, "assumed": list(ASSUMED)}


def page(plan: Plan) -> str:
    """HTML that needs nothing else."""
    rows = "\n".join(
        f"<tr><th>{html.escape(what)}</th><td>{html.escape(much)}</td></tr>"
        for what, much in lines(plan)
    )
    assumed = "\n".join(f"<li>{html.escape(text)}</li>" for text in ASSUMED)
    title = html.escape(f"Plan for {plan.machine}")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
th{{text-align:left;vertical-align:top;padding-right:1.5rem;white-space:pre}}
td,th{{border-bottom:1px solid #8884;padding-top:.2rem}}</style></head>
<body><h1>{title}</h1><table>{rows}</table><h2>Assumed</h2><ul>{assumed}</ul></body></html>
"""
