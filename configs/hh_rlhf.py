"""SRPO on Anthropic's helpful and harmless dialogues.

    python -m srpo_jax.train --config=configs/hh_rlhf.py --workdir=runs/hh --config.model.source=DIRECTORY

Data: 161 thousand pairs of dialogues from the hub (needs `pip install datasets`), or a copy in the same
schema ({chosen, rejected}, turns begin with "Human:" and "Assistant:") with --config.data.pairs. Pairs that
differ before the last answer are left out and counted, and so are those that the model's chat template does
not take, such as two turns of one speaker.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.pairs = "hub:Anthropic/hh-rlhf"
    config.data.format = "dialogue"
    config.data.template = "dialogue"
    config.data.overlong = "drop"
    config.data.refused = "drop"
    config.lora.rank = 16
    config.train.steps = 2500
    config.train.batch_size = 64
    config.train.checkpoint_every = 250
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 100
    return config
