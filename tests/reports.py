"""A small report to test with: two sets, three models, two judges; and texts that must be escaped."""

import dataclasses

import numpy as np

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.data import Report, Rules
from srpo_jax.reporting.evidence import Documents, Evidence, JudgeCheck, JudgeRecord, Role, Texts
from srpo_jax.reporting.verdicts import GOLD, OWN, Key, Missing, VerdictTable

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'text' | [bold] {{ 7 * 7 }} $x$ </style> \u2028"
NAN = float("nan")


def documents(
    name: str = "Wikipedia",
    count: int = 4,
    role: Role = "in distribution",
    golds: tuple[str | None, ...] = (),
) -> Documents:
    numbers = range(count)
    return Documents(
        name,
        role,
        ids=tuple(f"{name}/{i}" for i in numbers),
        prompts=tuple(f"A long document, number {i}." for i in numbers),
        golds=golds or tuple(f"The human gold {i}." for i in numbers),
    )


def texts(model: str, name: str = "Wikipedia", count: int = 4) -> Texts:
    """Three completions a document: the second adds a word, the third changes nothing."""
    written = [(f"{model} says {i}", f"{model} then says {i}") for i in range(count)]
    return Texts(
        model,
        name,
        revisions=tuple((first, second, second) for first, second in written),
        cut=tuple((i == 0, False, False) for i in range(count)),
    )


def verdicts(
    model: str,
    name: str = "Wikipedia",
    judge: str = "clerk",
    opponent: str = GOLD,
    rows: list[list[float]] | None = None,
) -> VerdictTable:
    """Four documents; the last has no verdict on its first completion."""
    values = np.array(
        rows or [[0.0, 0.5, 1.0], [0.0, 1.0, 1.0], [0.5, 1.0, 1.0], [NAN, 0.0, 0.0]],
        dtype=np.float64,
    )
    missing = tuple(Missing(int(i), int(k), "refused") for i, k in np.argwhere(np.isnan(values)))
    first = np.where(values == 0.5, 1.0, values)  # a tie: both orders prefer what is shown first
    orders = np.stack([first, 2 * values - first])
    key = Key(name, model, judge, opponent)
    return VerdictTable(key, values, orders if judge == "clerk" else None, missing)


def evidence(**changes: object) -> Evidence:
    base = Evidence(
        title="Does the model improve its own answer?",
        sets=(documents(), documents("ACLSum", role="out of distribution")),
        texts=tuple(
            texts(model, name)
            for name in ("Wikipedia", "ACLSum")
            for model in ("start", "srpo", "mine")
        ),
        tables=(
            verdicts("start"),
            verdicts("srpo", rows=[[1.0, 1.0, 1.0]] * 4),
            verdicts("srpo", opponent=OWN, rows=[[0.5, 1.0, 1.0]] * 4),
            verdicts("srpo", opponent="mine", rows=[[0.5, 1.0, 0.0]] * 4),
            verdicts("mine"),
            verdicts("srpo", "ACLSum"),
            verdicts("srpo", judge="model", rows=[[0.4, 0.6, 0.7]] * 4),
        ),
        judges=(
            JudgeRecord(
                "clerk",
                "Reads both.",
                is_proxy=False,
                prompt="Which is better?",
                facts={"model": "clerk-7b", "parameters": "temperature 0"},
                cost={"requests": 48.0, "price": 0.0123},
                checks=(JudgeCheck("gold shuffled", "Wikipedia", 0.86, 0.81, 0.9, 400),),
            ),
            JudgeRecord("model", "Similarity, less penalties.", is_proxy=True),
        ),
        facts=(("machine", "2 cores"),),
        command="python -m srpo_jax.evaluate",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def report(rules: Rules | None = None, **changes: object) -> Report:
    return assemble(evidence(**changes), rules)


def hostile() -> Report:
    """Everything that a model, a document or a user can name is HOSTILE."""
    name = HOSTILE
    own = Documents(name, "in distribution", (name,), (name,), (name,), template=name)
    said = np.array([[0.25, NAN]])
    return assemble(
        Evidence(
            title=name,
            sets=(own,),
            texts=(Texts(name, name, ((name, ""),)),),
            tables=(VerdictTable(Key(name, name, name, GOLD), said, None, (Missing(0, 1, name),)),),
            judges=(
                JudgeRecord(
                    name,
                    name,
                    is_proxy=True,
                    prompt=name,
                    facts={name: name},
                    cost={name: 1.0},
                    checks=(JudgeCheck(name, name, 1.0, 1.0, 1.0, 1),),
                ),
            ),
            facts=((name, name),),
            command=name,
        )
    )
