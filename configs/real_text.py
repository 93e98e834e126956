"""Does a small model improve its own answer on real text? The recipe under trial.

    python tools/split_documents.py FILE.jsonl.gz DIR
    python -m srpo_jax.recipe --config=configs/real_text.py:DIR --workdir=runs/real_text [--config.seed=1]

Without DIR the documents are Wikipedia's. SFT on golds; SFT that teaches the improve prompt, on own samples
whose endings are written anew, of the two nearest the better one by the judge being the edit; pairs of own
answers and own revisions, the best against the worst of four; on the same pairs and from the same start
SRPO with its anchor and DPO; validation of all of them. No stage touches test documents.
"""

from typing import Any

from ml_collections import ConfigDict

from srpo_jax.config import default, stage

# Documents behind each other: what SFT has seen, the editor is not taught on, and so on.
GOLDS, EDITS, PAIRS = 768, 320, 800
METHODS: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
    "srpo_anchored": ("srpo", (0.02,), {"objective.nll_weight": 0.1}),
    "dpo": ("dpo", (0.1,), {}),
}


def get_config(documents: str = "wikipedia") -> ConfigDict:
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
    held_out = documents
    if documents != "wikipedia":
        documents, held_out = f"{documents}/train.jsonl", f"{documents}/validation.jsonl"
    config.pairs.documents = documents
    config.pairs.max_prompt_tokens = 112
    config.evaluate.documents = (held_out,)
    config.evaluate.split = "validation"
    config.evaluate.count = 96
    config.evaluate.max_prompt_tokens = 112
    config.evaluate.revisions = 5
    config.evaluate.against = ("gold", "own")
    config.recipe.stages = (*taught(), *compared())
    return config


def taught() -> list[dict[str, Any]]:
    """Up to `start`, an editor of its own answers."""
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
    }
    preferences = {
        "model.source": "{start}",
        "pairs.draw": "revisions",
        "pairs.samples": 4,
        "pairs.skip": GOLDS + EDITS,
        "pairs.count": PAIRS,
    }
    return [
        stage("golds", "pairs", {"pairs.goal": "gold", "pairs.count": GOLDS}),
        trained("sft", "sft", "{golds}", GOLDS, per_token),
        stage("edits", "pairs", edits),
        trained("start", "sft_improve", "{edits}", EDITS, {"model.source": "{sft}", **per_token}),
        stage("preferences", "pairs", preferences),
    ]


def compared() -> list[dict[str, Any]]:
    """Each method with each of its betas, and all of them on validation documents."""
    stages, models = [], ["start={start}"]
    for label, (objective, betas, own) in METHODS.items():
        for beta in betas:
            name = f"{label}_{beta:g}"
            settings = {"model.source": "{start}", "objective.beta": beta, **own}
            settings["optimizer.learning_rate"] = 6e-4
            stages.append(trained(name, objective, "{preferences}", PAIRS, settings))
            models.append(f"{name}={{{name}}}")
    return [*stages, stage("validation", "evaluate", {"evaluate.models": tuple(models)})]


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
