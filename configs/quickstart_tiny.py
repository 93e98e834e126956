"""The quickstart's every stage with a tiny random model on bytes: under 5 minutes, run in CI.

    python -m srpo_jax.quickstart --config=configs/quickstart_tiny.py --workdir=runs/tiny

The model writes noise, so every win rate is near zero; what is shown is that the path works.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "tiny"
    config.model.dtype = "float32"
    config.data.template = "plain"
    config.lora.rank = 4
    config.train.steps = 4
    config.train.batch_size = 4
    config.train.checkpoint_every = 2
    config.optimizer.warmup_steps = 1
    config.sampling.max_new_tokens = 16
    config.sampling.batch_size = 8
    config.pairs.count = 12
    config.pairs.max_prompt_tokens = 600
    config.evaluate.count = 8
    config.evaluate.max_prompt_tokens = 1500
    config.evaluate.revisions = 3
    config.evaluate.judge_check = 20
    config.recipe.stages = (
        # To answer, from golds; then to edit, from own answers whose endings are written anew.
        {"name": "golds", "program": "pairs", "set": {"pairs.goal": "gold"}},
        {
            "name": "sft",
            "program": "train",
            "set": {"objective.name": "sft", "data.pairs": "{golds}"},
        },
        {
            "name": "edits",
            "program": "pairs",
            "set": {
                "model.source": "{sft}",
                "pairs.goal": "improve",
                "pairs.skip": 12,
                "pairs.draw": "endings",
                "pairs.choose": "first",
            },
        },
        {
            "name": "start",
            "program": "train",
            "set": {
                "model.source": "{sft}",
                "objective.name": "sft_improve",
                "data.pairs": "{edits}",
            },
        },
        # Preferences between its answers and its own edits of them, and what they teach.
        {
            "name": "preferences",
            "program": "pairs",
            "set": {"model.source": "{start}", "pairs.skip": 12, "pairs.draw": "revisions"},
        },
        *(
            {
                "name": method,
                "program": "train",
                "set": {
                    "model.source": "{start}",
                    "data.pairs": "{preferences}",
                    "objective.name": method,
                },
            }
            for method in ("srpo", "dpo")
        ),
        {
            "name": "evaluation",
            "program": "evaluate",
            "set": {"evaluate.models": ("start={start}", "srpo={srpo}", "dpo={dpo}")},
        },
    )
    return config
