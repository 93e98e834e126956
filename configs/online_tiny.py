"""RLOO, CoPG or PPO with a tiny random model on bytes: a task whose optimum is known, in minutes on a CPU.

    python -m srpo_jax.train_online --config=configs/online_tiny.py --workdir=/tmp/online \
        --config.online.documents=DOCUMENTS.jsonl [--config.online.objective=ppo]

The judge "shorter" rewards minus the number of words, and a completion without its end loses 1 more: the
best is to end at once, for a reward of 0. The random model's is near -1.1, and nearly none of its
completions ends.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "tiny"
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.template = "plain"
    config.online.count = 16
    config.online.max_prompt_tokens = 512
    config.online.samples = 8
    config.online.beta = 0.05
    config.judge.name = "shorter"
    config.sampling.max_new_tokens = 8
    config.sampling.batch_size = 64
    config.train.steps = 40
    config.train.batch_size = 8
    config.train.checkpoint_every = 20
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 5
    config.optimizer.b2 = 0.95
    return config
