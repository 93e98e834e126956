"""What is run, in which order, and how beta is selected.

The rule: for each method the same number of values of beta is tried, one training per validation seed. The
one with the highest mean win rate after 5 revisions is selected, on the validation prompts, in
distribution, at temperature 1 and free length; of equals the larger beta. The test's seeds and prompts
choose nothing. For methods without an improve loss, what would be selected by their first answer (N = 0)
is run too.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from srpo_jax.runtime.errors import UserError
from srpo_jax.theory.revision_task.cells import METHODS, Cell, Store, curve, work
from srpo_jax.theory.revision_task.desk import CIRCLE, Desk
from srpo_jax.theory.revision_task.exact import REVISIONS
from srpo_jax.theory.revision_task.measure import SAMPLED, Way
from srpo_jax.theory.revision_task.network import PROMPTS_SEED, Recipe

RULE = (
    "for each method the same number of betas is tried on validation seeds and validation prompts; the "
    f"highest mean win rate after {REVISIONS} revisions (in distribution, temperature 1, free length) is "
    "selected, of equals the larger beta; test seeds and test prompts choose nothing"
)
ALL_WAYS = tuple(Way(t, length) for t in (1.0, 0.0) for length in ("free", "fixed"))
OURS = "srpo_anchored"  # what the others are compared with, and what the study is of
SEEDS_BELOW = 2**31 - 8  # JAX takes none above 2^31, and some draws have a seed plus a little
WRITERS = ("A", "B")  # the behaviour policies
USUAL = ("srpo", "srpo_anchored", "dpo", "ipo")  # the methods where none are asked for
# Who is compared under two behaviour policies, and at which beta: gentle ones, where the closed forms of
# DPO and IPO under the "cycle" preference are far apart. Known before any network was trained.
BEHAVIOUR_BETAS = {"srpo": 0.1, "srpo_anchored": 0.1, "dpo": 2.0, "ipo": 0.2}


@dataclasses.dataclass(frozen=True)
class Plan:
    """seeds: of the test. grid: how many of each method's betas are tried, from the largest. everything:
    all ways, both preferences, the whole grid on the test's seeds, and the anchored SRPO too under two
    behaviour policies. study: ablations, see STUDY."""

    seeds: tuple[int, ...]
    validation_seeds: tuple[int, ...]
    methods: tuple[str, ...] = USUAL
    grid: int = 4
    nll_weight: float = 0.1
    alpha: float = 0.5
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    desk: Desk = dataclasses.field(default_factory=Desk)
    prompts: int = 256
    everything: bool = False
    study: bool = False

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"--methods: no method is called {name!r}: {', '.join(METHODS)}")
        for option, seeds in (
            ("--seeds", self.seeds),
            ("--validation-seeds", self.validation_seeds),
        ):
            inside = all(0 <= seed < SEEDS_BELOW for seed in seeds)
            if not seeds or not inside or len(set(seeds)) < len(seeds):
                raise UserError(
                    f"{option} must be different numbers from 0 to {SEEDS_BELOW - 1}, at least one: "
                    f"{list(seeds)}"
                )
        if (prompts := PROMPTS_SEED["validation"]) in self.validation_seeds:
            # As seed 17 of the test, see `sft_examples`; among --seeds it is a published one.
            raise UserError(
                f"--validation-seeds: SFT of seed {prompts} is on the very prompts of the validation: "
                "choose another"
            )
        if shared := set(self.seeds) & set(self.validation_seeds):
            raise UserError(
                f"seed {min(shared)} is in --seeds and in --validation-seeds: what selects must not test"
            )
        if not 1 <= self.grid <= 4:
            raise UserError(f"--grid={self.grid}: 1 to 4 values of beta can be tried")
        if not 0 < self.nll_weight < math.inf:
            raise UserError(f"--nll-weight={self.nll_weight:g} must be above 0, and finite")

    def betas(self, method: str) -> tuple[float, ...]:
        return METHODS[method].betas[: self.grid]

    def cell(self, method: str, beta: float, seed: int, **changes: Any) -> Cell:
        """A test cell, unless changed."""
        weight = self.nll_weight if method != "start" and METHODS[method].anchored else 0.0
        whole: dict[str, Any] = {"split": "test", "desk": self.desk, "recipe": self.recipe}
        whole |= {"prompts": self.prompts, "alpha": self.alpha, "nll_weight": weight}
        return Cell(method, beta, seed, **(whole | changes))

    def validation(self, method: str, beta: float) -> list[Cell]:
        return [self.cell(method, beta, s, split="validation") for s in self.validation_seeds]

    def tests(self, method: str, beta: float) -> list[Cell]:
        """Of what the tables show."""
        ways = ALL_WAYS if self.everything else (SAMPLED,)
        return [self.cell(method, beta, seed, ways=ways) for seed in self.seeds]

    def starts(self, split: str) -> list[Cell]:
        seeds = self.seeds if split == "test" else self.validation_seeds
        ways = ALL_WAYS if self.everything and split == "test" else (SAMPLED,)
        return [self.cell("start", 0.0, seed, split=split, ways=ways) for seed in seeds]

    @property
    def frontier_split(self) -> str:
        return "test" if self.everything else "validation"

    @property
    def preferences(self) -> tuple[str, ...]:
        return tuple(CIRCLE) if self.everything else ("cycle",)

    def behaviours(self, method: str, preference: str, writer: str) -> list[Cell]:
        desk = dataclasses.replace(self.desk, preference=preference)
        beta = BEHAVIOUR_BETAS[method]
        return [self.cell(method, beta, seed, desk=desk, writer=writer) for seed in self.seeds]

    def compared(self) -> list[str]:
        """The methods compared under two behaviour policies."""
        left_out = () if self.everything else ("srpo_anchored",)
        return [m for m in self.methods if m in BEHAVIOUR_BETAS and m not in left_out]


def selected(store: Store, plan: Plan, method: str, revisions: int = REVISIONS) -> float:
    """The beta that the rule selects, or would by the win rate after another number of revisions."""
    rates = []
    for beta in plan.betas(method):
        records = store.find(plan.validation(method, beta))
        rates.append(np.mean([curve(record, "in")[revisions] for record in records]))
    return plan.betas(method)[int(np.argmax(rates))]  # the first of equals: betas fall


def frontier(store: Store, plan: Plan, method: str, beta: float) -> list[Cell]:
    """Where the whole grid has been run: on the test's seeds with everything, else on validation's."""
    if not plan.everything:
        return plan.validation(method, beta)
    if (method, beta) in [(name, chosen) for name, chosen, _ in shown(store, plan)]:
        return plan.tests(method, beta)
    return [plan.cell(method, beta, seed) for seed in plan.seeds]


def by_first_answer(method: str) -> bool:
    """Whether a method is also shown as selected by its first answer."""
    return not METHODS[method].closed_form.startswith("srpo")


def tried_at_equal_kl(method: str) -> bool:
    """Whether SRPO is compared with a method at equal KL. Not with online ones, for what their grids cost;
    their closed form is DPO's."""
    return by_first_answer(method) and not METHODS[method].online


def shown(store: Store, plan: Plan) -> list[tuple[str, float, str]]:
    """(method, beta, note) of what the tables show: as selected, and as the first answer would select."""
    found = []
    for method in plan.methods:
        best = selected(store, plan, method)
        found.append((method, best, ""))
        if by_first_answer(method) and (first := selected(store, plan, method, 0)) != best:
            found.append((method, first, " (selected by N = 0)"))
    return found


def carry_out(store: Store, plan: Plan) -> None:
    """Everything of the plan, in two stages; what the second one runs, the first one selects."""
    first: list[Cell] = [] if plan.everything else plan.starts("validation")
    for method in plan.methods:
        for beta in plan.betas(method):
            first += plan.validation(method, beta)
    work(store, first)
    second = plan.starts("test")
    for method, beta, _ in shown(store, plan):
        second += plan.tests(method, beta)
    for method in plan.methods:
        if method == OURS or tried_at_equal_kl(method):
            for beta in plan.betas(method):
                second += frontier(store, plan, method, beta)
    for method in plan.compared():
        for preference in plan.preferences:
            for writer in WRITERS:
                second += plan.behaviours(method, preference, writer)
    if plan.study:
        second += [cell for cells in study(store, plan).values() for cell in cells]
    work(store, second)


# --- the study: what keeps the network below the exact answer -------------------------------------

# Each changes one thing, but for the last ones. Run with the anchored SRPO at the beta selected.
STUDY: dict[str, dict[str, Any]] = {
    "as it is": {},
    "narrower: 32": {"width": 32},
    "wider: 128": {"width": 128},
    "deeper: 4 layers": {"layers": 4},
    "a longer SFT: 3 times": {"sft_steps": 1200, "sft_examples": 30_000},
    "more data: 8,000 pairs, 750 steps": {"pairs": 8_000, "steps": 750},
    "longer: 750 steps": {"steps": 750},
    "slower: half the learning rate": {"rate": 1e-3},
    "faster: twice the learning rate": {"rate": 4e-3},
    "the second draft an edit of the first": {"drafts": "edited"},
    "pairs by better writers too: half by gold": {"writer": "mixed"},
    "no slips in SFT's drafts": {"sft_slips": 0.0},
    "the same, and narrower: 32": {"sft_slips": 0.0, "width": 32},
    "anchor .03": {"nll_weight": 0.03},
    "anchor .3": {"nll_weight": 0.3},
}


def study(store: Store, plan: Plan) -> dict[str, list[Cell]]:
    """By label, on validation seeds and prompts: a study chooses nothing that the test shows."""
    beta = selected(store, plan, OURS)
    cells = {}
    for label, change in STUDY.items():
        of_cell = {key: v for key, v in change.items() if key in ("nll_weight", "writer")}
        sizes = {key: v for key, v in change.items() if key not in of_cell}
        of_cell["recipe"] = dataclasses.replace(plan.recipe, **sizes)
        cells[label] = [
            dataclasses.replace(cell, **of_cell) for cell in plan.validation(OURS, beta)
        ]
    return cells
