"""Scores and hyperparameters that the tests of the objectives share."""

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.objectives.losses import DIRECT_SCORES, IMPROVE_SCORES, REWARD_SCORES

ALL_SCORES = DIRECT_SCORES + IMPROVE_SCORES
HYPER = {
    "srpo": {"beta": 0.3, "alpha": 0.7},
    "dpo": {"beta": 0.2, "label_smoothing": 0.1},
    "robust_dpo": {"beta": 0.2, "label_smoothing": 0.1},
    "ipo": {"beta": 0.3},
    "copg": {"beta": 0.3, "label_smoothing": 0.1},
    "slic": {"beta": 0.07},
    "rpo": {"beta": 0.2, "nll_weight": 0.6},
    "simpo": {"beta": 2.0, "gamma": 0.8},
    "orpo": {"odds_weight": 0.4},
    "sft": {},
    "sft_improve": {"direct_weight": 0.6},
    "reward": {},
}
B = 7


def draw(seed=0):
    """(scores, reference, label_prob, lengths) as float64 numpy, of the size of short summaries.

    Among them a reward model's, whose reference nothing reads.
    """
    rng = np.random.default_rng(seed)
    lengths = {name: rng.integers(3, 20, B).astype(float) for name in DIRECT_SCORES}
    lengths |= {name: lengths[name[0]] for name in IMPROVE_SCORES}
    scores = {name: -rng.uniform(0.5, 2.0, B) * lengths[name] for name in ALL_SCORES}
    reference = {name: scores[name] + rng.normal(0, 2, B) for name in ALL_SCORES}
    label_prob = rng.uniform(0, 1, B)
    scores |= {name: rng.normal(0, 2, B) for name in REWARD_SCORES}
    reference |= {name: np.zeros(B) for name in REWARD_SCORES}
    return scores, reference, label_prob, lengths


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)
