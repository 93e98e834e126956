"""A tiny random model on bytes, for trying things out: seconds on a laptop, learns nothing useful.

python -m srpo_jax.train --config=configs/tiny.py --workdir=/tmp/tiny --config.data.pairs=PAIRS.jsonl
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.model.source = "tiny"
    config.model.dtype = "float32"
    config.data.template = "plain"
    config.train.steps = 10
    config.train.batch_size = 8
    config.train.checkpoint_every = 5
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 2
    return config
