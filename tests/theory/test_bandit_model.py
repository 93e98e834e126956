"""SRPO's promise with the real decoder, prefix trees, scoring and train step."""

import numpy as np
import pytest

from srpo_jax.objectives.losses import DIRECT_SCORES, IMPROVE_SCORES
from srpo_jax.theory import bandit, bandit_model

COUNTS = (8, 1, 1)


def test_population_draws_pairs_as_often_as_the_behaviour_does():
    data = bandit_model.population(DIRECT_SCORES + IMPROVE_SCORES, COUNTS)
    assert len(data) == 100
    # A beats B with probability 0.9: no other preference of the cycle is 0.9 or 0.1.
    assert np.count_nonzero(data.label_prob == np.float32(0.9)) == 8
    assert np.count_nonzero(data.label_prob == np.float32(0.1)) == 8
    assert np.count_nonzero(data.label_prob == np.float32(0.5)) == 64 + 1 + 1
    assert {int(length) for tree in data.trees for length in tree.lengths} == {1}


def test_a_few_steps_lower_the_loss():
    run = bandit_model.train("srpo", COUNTS, steps=12)
    assert run.losses.shape == (12,)
    assert run.losses[-1] < 0.5 * run.losses[0]
    assert run.reference.shape == run.policy.shape == run.exact.shape == (4, 3)
    np.testing.assert_allclose(run.reference.sum(axis=1), np.ones(4), atol=1e-12)
    assert bandit.total_variation(run.reference, np.full((4, 3), 1 / 3)) > 0.1


@pytest.mark.slow
def test_srpo_stays_where_its_closed_form_is_and_ipo_and_dpo_move(tmp_path, capsys):
    # In float32 the models reach their answers to about 2e-7, and SRPO's two to each other.
    runs = {}
    for name in ("srpo", "ipo", "dpo"):
        runs[name] = {
            label: bandit_model.train(name, counts)
            for label, counts in bandit_model.BEHAVIOURS.items()
        }
        for label, run in runs[name].items():
            assert bandit_model.gap(run) < 1e-5, (name, label)
    assert len(runs["srpo"]["uniform"].exact) == 4  # pi and pi_improve of three shown completions
    assert bandit_model.moves_by(runs["srpo"]) < 1e-5
    assert bandit_model.moves_by(runs["ipo"]) > 0.05
    assert bandit_model.moves_by(runs["dpo"]) > 0.05

    bandit_model.draw(tmp_path / "picture.png", runs)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    report = bandit_model.report("ipo", runs["ipo"])
    assert f"moves by {bandit_model.moves_by(runs['ipo']):.4f}" in report
