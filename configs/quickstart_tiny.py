"""The quickstart's every stage with a tiny random model on bytes: under 3 minutes, run in CI.

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
    return config
