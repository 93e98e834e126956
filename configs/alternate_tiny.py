"""Phases of SRPO on the policy's own pairs and of CoPG, with a tiny random model on bytes.

    python -m srpo_jax.train_online --config=configs/alternate_tiny.py --workdir=/tmp/polished \
        --alternate --config.pairs.documents=DOCUMENTS.jsonl --config.online.documents=DOCUMENTS.jsonl

The judge "shorter" labels the pairs of the one and rewards the completions of the other.
"""

from ml_collections import ConfigDict

from configs import online_tiny


def get_config() -> ConfigDict:
    config = online_tiny.get_config()
    config.pairs.count = 16
    config.pairs.samples = 4
    config.pairs.max_prompt_tokens = 512
    config.alternate.cycles = 2
    config.alternate.phases = (
        {"objective": "srpo", "set": {"train.steps": 20}},
        {"objective": "copg", "set": {"train.steps": 20}},
    )
    return config
