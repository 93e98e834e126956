"""The quickstart: SmolLM2-135M-Instruct learns to describe Wikipedia leads, and to improve its answer.

python -m srpo_jax.quickstart

"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "smollm2-135m-instruct"
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.train.steps = 24
    config.train.batch_size = 8
    config.train.checkpoint_every = 8
    config.optimizer.warmup_steps = 2
    config.optimizer.schedule = "constant"
    config.sampling.max_new_tokens = 20
    config.sampling.batch_size = 32
    config.pairs.count = 160
    config.pairs.max_prompt_tokens = 128
    config.pairs.temperature = 0.8
    config.evaluate.count = 48
    config.evaluate.max_prompt_tokens = 256
    config.evaluate.revisions = 3
    config.quickstart.learning_rate = (5e-4, 5e-4)
    return config
