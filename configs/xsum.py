"""Supervised fine-tuning on XSum: one-sentence summaries of news, the paper's out-of-distribution task.

    python -m srpo_jax.train --config=configs/xsum.py --workdir=runs/xsum --config.model.source=DIRECTORY

Data: 204 thousand articles from the hub (needs `pip install datasets`), or a copy with --config.data.pairs.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.pairs = "hub:EdinburghNLP/xsum"
    config.data.fields = ("prompt=document", "chosen=summary")
    config.data.template = "plain"
    config.data.overlong = "drop"
    config.objective.name = "sft"
    config.train.steps = 3200
    config.train.batch_size = 64
    config.train.checkpoint_every = 400
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 100
    return config
