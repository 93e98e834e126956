"""SRPO on UltraFeedback (binarized): preferences over the answers of chat assistants.

    python -m srpo_jax.train --config=configs/ultrafeedback.py --workdir=runs/ultrafeedback \
        --config.model.source=DIRECTORY_OF_A_CHAT_MODEL

Data: 61 thousand pairs of conversations from the hub (needs `pip install datasets`), or a copy with
--config.data.pairs. What is too long, or what the model's chat template does not take, is left out and
counted. The user asks for a better answer in the same conversation, so the answer to be
improved is itself part of the tree: a pair takes |x| + 6|y| tokens. Trains an adapter; --config.lora.rank=0
trains all weights.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.pairs = "hub:HuggingFaceH4/ultrafeedback_binarized"
    config.data.split = "train_prefs"
    config.data.template = "dialogue"
    config.data.overlong = "drop"
    config.data.refused = "drop"
    config.lora.rank = 16
    config.train.steps = 950
    config.train.batch_size = 64
    config.train.checkpoint_every = 100
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 100
    return config
