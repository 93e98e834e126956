"""Does a small model improve its own answer on real text? The recipe under trial, and its test.

    python tools/split_documents.py FILE.jsonl.gz DIR
    python -m srpo_jax.recipe --config=configs/real_text.py:DIR --workdir=runs/test_1 --config.seed=1 \\
        --config.evaluate.skip=288
    python -m srpo_jax.recipe --config=configs/real_text.py:DIR:test --workdir=runs/test_1 \\
        --config.seed=1 --config.evaluate.skip=256
    python -m srpo_jax.recipe --config=configs/real_text.py:DIR:out:1 --workdir=runs/test_1 --config.seed=1
    python -m srpo_jax.recipe --config=configs/real_text.py:wikipedia:out:1:DIR --workdir=runs/w [...]

Without DIR the documents are Wikipedia's. SFT on golds; SFT that teaches the improve prompt, on own samples
whose endings are written anew, of the two nearest the better one by the judge being the edit; pairs of own
answers and own revisions, the best against the worst of four; on the same pairs and from the same start
SRPO, with its anchor and without, DPO, IPO and RPO; validation of all of them (behind the first 288
documents, which chose the recipe). With `:anchors` RPO with SRPO's anchor, on the same documents. With
`:test` those that were selected, on 256 test documents, with `:test:NAME:NAME` those named (`srpo_0.02`,
`start`), with `:test:greedy` decoded greedily; each seed skips what the seeds before it had. With
`:out:SEED` the same models on that seed's share of documents of other kinds; of Debian's, if a directory of
them is named behind it. With `overlap:DIR` and so on edits and pairs are labelled by the words shared with
the gold. What is trained is not trained again.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from srpo_jax.config import default, stage

Stage = dict[str, Any]
Methods = dict[str, tuple[str, tuple[float, float], dict[str, Any]]]

# Documents behind each other: what SFT has seen, the editor is not taught on, and so on.
GOLDS, EDITS, PAIRS = 768, 320, 800
# Of each method two betas: with the larger it stays nearer to the start.
METHODS: Methods = {
    "srpo_anchored": ("srpo", (0.05, 0.02), {"objective.nll_weight": 0.1}),
    "dpo": ("dpo", (1.0, 0.1), {}),
    "ipo": ("ipo", (0.1, 0.03), {}),
    "rpo": ("rpo", (0.1, 0.02), {}),
    "srpo": ("srpo", (0.1, 0.02), {}),
}
# Does the anchor alone do it? RPO's own has weight 1.
CONTROLS: Methods = {
    "rpo_light": ("rpo", (0.1, 0.02), {"objective.nll_weight": 0.1}),
}
# Of these by docs/experiment.md's rule, and the DPO that stays as near to the start as that SRPO.
SELECTED = ("srpo_anchored_0.02", "dpo_0.1", "dpo_1")
# For `:test:NAME`: what they all began from; and the likeliest token in place of a drawn one.
START, GREEDY = "start", "greedy"
OVERLAP = "overlap:"  # before the documents: a text is the better the more words of the gold it has
VALIDATION = 96
# Test documents a seed: of Wikipedia's 406 are short enough.
TEST, TEST_WIKIPEDIA = 256, 128
# Out of distribution: a seed's documents, and the longest prompt and answer in tokens. ACLSum has 87 test
# documents for three seeds, and its golds are four times as long as what was trained on.
OUT = {"debian": (128, 112, 24), "wikipedia": (128, 112, 24), "aclsum": (29, 320, 48)}


def get_config(given: str = "wikipedia") -> ConfigDict:
    """given: the documents; behind them `:anchors`, the control on the same validation documents, `:test`,
    the selected methods on test documents, or `:out:SEED`. Before them `overlap:`, for labels by the golds.
    """
    labels = {"judge.name": "overlap"} if given.startswith(OVERLAP) else {}
    documents, split, judged, models = asked(given.removeprefix(OVERLAP))
    config = default()
    config.model.source = "smollm2-135m-instruct"
    # On two CPU cores nearly twice as fast as the defaults, which are for accelerators.
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.template = "plain"  # a third fewer tokens than the chat's
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.train.batch_size = 8
    config.train.checkpoint_every = 16
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 8
    # As in the exact task: at temperature 1, where there is something to improve.
    config.sampling.temperature = 1.0
    config.sampling.top_p = 0.95
    config.sampling.max_new_tokens = 24
    config.sampling.batch_size = 64
    count = TEST_WIKIPEDIA if documents == "wikipedia" else TEST
    held_out = documents
    if documents != "wikipedia":
        documents, held_out = f"{documents}/train.jsonl", f"{documents}/{split}.jsonl"
    config.pairs.documents = documents
    config.pairs.max_prompt_tokens = 112
    config.evaluate.documents = (held_out,)
    config.evaluate.split = split
    config.evaluate.count = count if split == "test" else VALIDATION
    config.evaluate.max_prompt_tokens = 112
    config.evaluate.revisions = 5
    config.evaluate.against = ("gold", "own")
    methods = CONTROLS if "anchors" in judged else METHODS | CONTROLS if models else METHODS
    trainings, named = compared(methods, models)
    evaluations = [
        stage(name, "evaluate", {"evaluate.models": named, **own}) for name, own in judged.items()
    ]
    config.recipe.stages = (*taught(labels), *trainings, *evaluations)
    return config


def asked(given: str) -> tuple[str, str, dict[str, Stage], tuple[str, ...]]:
    """Documents, split, evaluations with what each has of its own, and the models in them; () for all."""
    match given.split(":"):
        case [documents]:
            return documents, "validation", {"validation": {}}, ()
        case [documents, "anchors"]:
            return documents, "validation", {"anchors": {}}, ()
        case [documents, "test", *named]:
            own = {"sampling.temperature": 0.0} if GREEDY in named else {}
            models = tuple(name for name in named if name != GREEDY)
            return documents, "test", {"_".join(["test", *named]): own}, models or SELECTED
        case [documents, "out", seed, *debian] if seed.isdecimal() and len(debian) < 2:
            return documents, "test", out_of_distribution(documents, int(seed), debian), SELECTED
    raise ValueError(
        f"{given!r}: behind the documents may stand :anchors, :test, :test:NAME:NAME, :test:greedy, "
        ":out:SEED or :out:SEED:DIR"
    )


def taught(labels: dict[str, Any]) -> list[Stage]:
    """Up to `start`, an editor of its own answers. labels: the judge's settings, where edits and pairs are
    compared by another one than the evaluations are.
    """
    per_token = {"objective.reduction": "mean"}
    edits = {
        "model.source": "{sft}",
        "pairs.goal": "improve",
        "pairs.draw": "endings",
        "pairs.samples": 4,
        "pairs.choose": "nearest",
        "pairs.edits": "better",
        "pairs.skip": GOLDS,
        "pairs.count": EDITS,
        **labels,
    }
    preferences = {
        "model.source": "{start}",
        "pairs.draw": "revisions",
        "pairs.samples": 4,
        "pairs.skip": GOLDS + EDITS,
        "pairs.count": PAIRS,
        **labels,
    }
    return [
        stage("golds", "pairs", {"pairs.goal": "gold", "pairs.count": GOLDS}),
        trained("sft", "sft", "{golds}", GOLDS, per_token),
        stage("edits", "pairs", edits),
        trained("start", "sft_improve", "{edits}", EDITS, {"model.source": "{sft}", **per_token}),
        stage("preferences", "pairs", preferences),
    ]


def compared(methods: Methods, selected: Sequence[str]) -> tuple[list[Stage], tuple[str, ...]]:
    """Each method with each of its betas, or the selected ones; and what they are called in evaluations."""
    stages = []
    models = ["start={start}"] if not selected or START in selected else []
    for label, (objective, betas, own) in methods.items():
        for beta in betas:
            name = f"{label}_{beta:g}"
            if selected and name not in selected:
                continue
            settings = {"model.source": "{start}", "objective.beta": beta, **own}
            settings["optimizer.learning_rate"] = 6e-4
            stages.append(trained(name, objective, "{preferences}", PAIRS, settings))
            models.append(f"{name}={{{name}}}")
    if unknown := set(selected) - {START} - {one["name"] for one in stages}:
        raise ValueError(f"{sorted(unknown)[0]!r} is none of the methods with one of their betas")
    return stages, tuple(models)


def out_of_distribution(
    documents: str, seed: int, debian: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What each evaluation on documents of another kind has of its own, by the documents' name.

    documents: trained on. debian: the directory of Debian's, if those are wanted.
    """
    others = [("debian", f"{folder}/test.jsonl") for folder in debian]
    others += [(name, name) for name in ("wikipedia", "aclsum") if name != documents]
    made = {}
    for name, source in others:
        count, prompt, completion = OUT[name]
        made[name] = {
            "evaluate.documents": ({"source": source, "name": name, "role": "out"},),
            "evaluate.skip": seed * count,
            "evaluate.count": count,
            "evaluate.max_prompt_tokens": prompt,
            "sampling.max_new_tokens": completion,
        }
    return made


def trained(
    name: str,
    objective: str,
    pairs: str,
    count: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """One pass over the pairs of `count` documents, by 8 a step."""
    own = {"objective.name": objective, "data.pairs": pairs, "train.steps": count // 8}
    return stage(name, "train", own | settings)
