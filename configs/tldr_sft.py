"""Supervised fine-tuning on the TL;DR summaries of reddit posts: where the paper's SRPO, DPO and IPO start.

    python -m srpo_jax.train --config=configs/tldr_sft.py --workdir=runs/tldr_sft \
        --config.model.source=DIRECTORY_OF_A_BASE_MODEL

Data: 117 thousand posts with the author's own summary, from the hub (needs `pip install datasets`); or give
a copy with --config.data.pairs, {subreddit, title, post, summary} or {prompt, completion}. Posts and
prompts are put as in tldr.py and in evaluation. See the first ones with python -m srpo_jax.inspect. The
paper starts from a model of 2.8 and 6.9 billion parameters (Pythia, LLaMA); docs/models.md says what memory
that takes.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.pairs = "hub:vwxyzjn/summarize_from_feedback_tldr_3_filtered"
    config.data.format = "tldr"
    config.data.template = "tldr"
    config.data.overlong = "drop"
    config.objective.name = "sft"
    config.train.steps = 1800
    config.train.batch_size = 64
    config.train.checkpoint_every = 300
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 100
    return config
