"""The paper's evaluation (arXiv:2406.01660, section 5): win rates on TL;DR and, out of distribution, XSum.

    python -m srpo_jax.evaluate --config=configs/paper_tldr_xsum.py --workdir=runs/paper \
        --config.evaluate.models="('srpo=runs/tldr','dpo=runs/tldr_dpo','sft=runs/tldr_sft')" \
        --config.judge.base_url=URL --config.judge.model=NAME

The first 1,024 test prompts of each set, N = 0 … 5 revisions, greedily; a language model compares each with
the human summary in both orders: 2 x 1,024 x 2 x 6 requests a model. The summaries are from the hub (needs
`pip install datasets`); for local copies in the same schema see docs/evaluation.md. Without
config.evaluate.models, --workdir is that of a training run.
"""

from ml_collections import ConfigDict

from srpo_jax.config import default


def get_config() -> ConfigDict:
    config = default()
    config.data.template = "tldr"
    config.sampling.max_new_tokens = 64
    config.sampling.batch_size = 128
    config.evaluate.documents = ("tldr", "xsum")
    config.evaluate.split = "test"
    config.evaluate.count = 1024
    config.evaluate.max_prompt_tokens = 1024
    config.evaluate.revisions = 5
    config.judge.name = "llm"
    return config
