"""The quickstart: SmolLM2-135M-Instruct learns to describe Wikipedia leads, and to improve its answer.

    python -m srpo_jax.quickstart

Golds of some leads teach it to answer; its own answers, the better of two near ones, teach it to edit; a
judge compares its answers with its edits of them; on these pairs SRPO (anchored) and DPO are trained from
the same start, each with the one beta given here: neither was tuned. All three then revise descriptions of
held-out Wikipedia leads and of ACL abstracts.
"""

from typing import Any

from ml_collections import ConfigDict

from srpo_jax.config import default, stage

# Documents behind each other: what SFT has seen, the editor is not taught on, and so on.
GOLDS, EDITS, PAIRS = 48, 24, 40
OBJECTIVES: dict[str, dict[str, Any]] = {
    "srpo": {"objective.beta": 0.02, "objective.nll_weight": 0.1},
    "dpo": {"objective.beta": 0.1},
}


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "smollm2-135m-instruct"
    config.model.dtype = "float32"  # faster than bfloat16 where a CPU has no instructions for it
    config.model.remat = "none"
    config.data.template = "plain"  # a third fewer tokens than the chat's
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.train.batch_size = 4
    config.train.checkpoint_every = 50
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 4
    # At temperature 1 there is something to improve.
    config.sampling.temperature = 1.0
    config.sampling.top_p = 0.95
    config.sampling.max_new_tokens = 24
    config.sampling.batch_size = 64
    config.pairs.max_prompt_tokens = 96
    config.evaluate.title = "SRPO quickstart: does the model improve its own answer?"
    config.evaluate.count = 16
    config.evaluate.max_prompt_tokens = 160
    config.evaluate.revisions = 2
    config.recipe.stages = (*taught(), *compared())
    return config


def taught() -> list[dict[str, Any]]:
    """Up to `start`, an editor of its own answers, and the pairs of its own."""
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
    """SRPO and DPO on the same pairs, and both with their start on held-out documents."""
    models = ("start={start}", *(f"{name}={{{name}}}" for name in OBJECTIVES))
    return [
        *(
            trained(name, name, "{preferences}", PAIRS, {"model.source": "{start}"} | own)
            for name, own in OBJECTIVES.items()
        ),
        stage("evaluation", "evaluate", {"evaluate.models": models}),
    ]


def trained(
    name: str, objective: str, pairs: str, documents: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """One pass over a pair a document, by 4 pairs a step."""
    own = {"objective.name": objective, "data.pairs": pairs, "train.steps": documents // 4}
    return stage(name, "train", own | settings)
