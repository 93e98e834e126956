"""The quickstart: SmolLM2-135M-Instruct learns to describe Wikipedia leads, and to improve its answer.

    python -m srpo_jax.quickstart

Golds of some leads teach it to answer; its own answers with other endings teach it to edit; a judge
compares its answers with its edits of them; on these pairs SRPO (anchored) and DPO are trained from the
same start, each with the one beta given here: neither was tuned. All three then revise descriptions of
held-out Wikipedia leads and of ACL abstracts. It has not been timed yet.
"""

from typing import Any

from ml_collections import ConfigDict

from srpo_jax.config import default, stage

SFT_DOCUMENTS, PAIR_DOCUMENTS = 96, 128  # the pairs are of documents that SFT has not seen
OBJECTIVES: dict[str, dict[str, Any]] = {
    "srpo": {"objective.beta": 0.02, "objective.nll_weight": 0.1},
    "dpo": {"objective.beta": 0.1},
}


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "smollm2-135m-instruct"
    config.model.dtype = "float32"  # faster than bfloat16 where a CPU has no instructions for it
    config.model.remat = "none"
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.train.batch_size = 4
    config.train.checkpoint_every = 16
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 4
    config.sampling.max_new_tokens = 20
    config.sampling.batch_size = 64
    config.pairs.max_prompt_tokens = 128
    config.pairs.temperature = 0.8
    config.evaluate.title = "SRPO quickstart: does the model improve its own answer?"
    config.evaluate.count = 48
    config.evaluate.max_prompt_tokens = 320
    config.evaluate.revisions = 3
    config.recipe.stages = (
        stage("golds", "pairs", {"pairs.goal": "gold", "pairs.count": SFT_DOCUMENTS}),
        trained("sft", "sft", "{golds}", SFT_DOCUMENTS, {"objective.reduction": "mean"}),
        stage(
            "edits",
            "pairs",
            {
                "model.source": "{sft}",
                "pairs.goal": "improve",
                "pairs.draw": "endings",
                "pairs.choose": "first",
                "pairs.skip": SFT_DOCUMENTS,
                "pairs.count": SFT_DOCUMENTS,
            },
        ),
        trained(
            "start",
            "sft_improve",
            "{edits}",
            SFT_DOCUMENTS,
            {"model.source": "{sft}", "objective.reduction": "mean"},
        ),
        stage(
            "preferences",
            "pairs",
            {
                "model.source": "{start}",
                "pairs.draw": "revisions",
                "pairs.skip": SFT_DOCUMENTS,
                "pairs.count": PAIR_DOCUMENTS,
            },
        ),
        *(
            trained(name, name, "{preferences}", PAIR_DOCUMENTS, {"model.source": "{start}"} | own)
            for name, own in OBJECTIVES.items()
        ),
        stage(
            "evaluation",
            "evaluate",
            {"evaluate.models": ("start={start}", *(f"{n}={{{n}}}" for n in OBJECTIVES))},
        ),
    )
    return config


def trained(
    name: str, objective: str, pairs: str, documents: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """One pass over a pair a document, by 4 pairs a step."""
    own = {"objective.name": objective, "data.pairs": pairs, "train.steps": documents // 4}
    return stage(name, "train", own | settings)
