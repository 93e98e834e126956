"""The first-order move under the likelihood anchor against fits of the anchored loss."""

import numpy as np
import pytest

from srpo_jax.theory import anchor, bandit
from srpo_jax.theory.bandit import total_variation
from srpo_jax.theory.bandit_picture import EXAMPLES

FOUR = EXAMPLES["four"]
MU = np.array([0.4, 0.1, 0.2, 0.3])
REFERENCE = np.array([0.1, 0.2, 0.3, 0.4])
IMPROVE = np.array(
    [[0.4, 0.3, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.3, 0.2], [0.1, 0.1, 0.1, 0.7]]
)
PROBLEM = (FOUR, MU, REFERENCE, IMPROVE)


def test_slope_is_the_finite_difference_of_fits():
    hyper = {"beta": 0.5, "alpha": 0.3}
    exact = bandit.solve(FOUR, REFERENCE, IMPROVE, 0.5)
    step = 1e-5
    moved = bandit.fit("srpo", *PROBLEM, **hyper, nll_weight=step)
    for ours, before, after in zip(anchor.slope(*PROBLEM, **hyper), exact, moved, strict=True):
        difference = (np.log(after) - np.log(before)) / step
        np.testing.assert_allclose(ours, difference, atol=1e-3 * np.abs(difference).max())


def test_a_heavy_anchor_ends_at_the_winners():
    fitted = bandit.fit("srpo", *PROBLEM, beta=0.5, alpha=0.3, nll_weight=1e5)
    for ours, theirs in zip(fitted, anchor.winners(FOUR, MU), strict=True):
        assert total_variation(ours, theirs) < 1e-4


def test_winners_by_counting():
    joint = np.zeros((4, 4))
    for a in range(4):
        for b in range(4):
            joint[a, b] += MU[a] * MU[b] * FOUR[a, b]
            joint[b, a] += MU[a] * MU[b] * FOUR[b, a]
    first, beaten = anchor.winners(FOUR, MU)
    np.testing.assert_allclose(first, joint.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(beaten[2], joint[:, 2] / joint[:, 2].sum(), rtol=1e-12)


def test_with_an_anchor_the_answer_moves_with_the_behaviour_policy():
    hyper = {"beta": 0.5, "alpha": 0.3}
    other = (FOUR, MU[::-1], REFERENCE, IMPROVE)
    apart = lambda weight: total_variation(
        bandit.fit("srpo", *PROBLEM, **hyper, nll_weight=weight)[0],
        bandit.fit("srpo", *other, **hyper, nll_weight=weight)[0],
    )
    assert apart(0.0) < 1e-9
    assert apart(0.1) > 0.05


def test_the_command_prints_a_table(capsys):
    anchor.main(["--beta=0.5"])
    assert "example 'cycle', beta 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["--beta=0", "--alpha=1", "--alpha=0"])
def test_what_has_no_answer_ends_in_one_sentence(given, capsys):
    with pytest.raises(SystemExit) as ended:
        anchor.main([given])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
