"""SRPO on OpenAI's comparisons of TL;DR summaries, the paper's main experiment (section 5).

    python -m srpo_jax.train --config=configs/tldr.py --workdir=runs/tldr \
        --config.model.source=runs/tldr_sft

Data: 92 thousand comparisons from the hub (needs `pip install datasets`); or give a copy in the same schema
(info, summaries, choice) with --config.data.pairs. Start from a model that can summarise: see tldr_sft.py.
--config.objective.name=dpo (or ipo) trains the baselines; give them --config.objective.alpha=None.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.pairs = "hub:openai/summarize_from_feedback:comparisons"
    config.data.format = "summarize"
    config.data.template = "tldr"
    config.data.overlong = "drop"
    config.train.steps = 1450  # an epoch
    config.train.batch_size = 64
    config.train.checkpoint_every = 200
    config.optimizer.learning_rate = 2e-6
    config.optimizer.warmup_steps = 150
    return config
