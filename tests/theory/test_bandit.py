"""The closed forms against the papers' equations, and the fits against the closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.theory import bandit
from srpo_jax.theory.bandit import total_variation
from srpo_jax.theory.bandit_picture import EXAMPLES, behaviours


def simplex(rng, *shape):
    """Random distributions over the last axis, no probability below about 1 %."""
    table = rng.exponential(size=shape) + 0.05
    return table / table.sum(axis=-1, keepdims=True)


def preferences(rng, size):
    """A random preference matrix, as a rule intransitive."""
    upper = np.triu(rng.uniform(0, 1, (size, size)), 1)
    return upper + np.tril(1 - upper.T, -1) + np.eye(size) / 2


def skewed(rng, size):
    """A behaviour policy whose rarest action is 1,000 times rarer than its commonest."""
    table = rng.permutation(np.geomspace(1, 1e-3, size))
    return table / table.sum()


def uniform(size):
    return np.full(size, 1 / size)


CYCLE = EXAMPLES["cycle"]
THREE = {"reference": uniform(3), "reference_improve": np.full((3, 3), 1 / 3)}


# --- closed forms -------------------------------------------------------------------------------


def test_solve_meets_the_optimality_identities():
    # beta [h(a|b) - h(b|b)] = P(a>b) - 1/2,  beta [h(a|b) - h(b|a) + g(a) - g(b)] = 2 P(a>b) - 1
    rng = np.random.default_rng(0)
    preference, reference, improve = preferences(rng, 5), simplex(rng, 5), simplex(rng, 5, 5)
    pi, pi_improve = bandit.solve(preference, reference, improve, beta=0.3)
    g, h = np.log(pi / reference), np.log(pi_improve / improve).T  # h[a, b] = h(a|b)
    np.testing.assert_allclose(0.3 * (h - np.diagonal(h)), preference - 0.5, atol=1e-12)
    np.testing.assert_allclose(
        0.3 * (h - h.T + g[:, None] - g[None, :]), 2 * preference - 1, atol=1e-12
    )
    np.testing.assert_allclose(pi.sum(), 1)
    np.testing.assert_allclose(pi_improve.sum(axis=1), np.ones(5))


def test_solve_is_the_saddle_point_of_the_min_max_objective():
    rng = np.random.default_rng(1)
    preference, reference, improve = preferences(rng, 4), simplex(rng, 4), simplex(rng, 4, 4)
    beta = 0.4
    pi, pi_improve = bandit.solve(preference, reference, improve, beta)

    def value(pi, pi_improve):
        reward = (pi_improve * preference.T).sum(axis=1)
        inner_kl = (pi_improve * np.log(pi_improve / improve)).sum(axis=1)
        return pi @ (reward - beta * inner_kl) + beta * pi @ np.log(pi / reference)

    best = value(pi, pi_improve)
    for size in (1.0, 0.1, 0.01):
        for _ in range(30):
            other = (1 - size) * pi + size * simplex(rng, 4)
            other_improve = (1 - size) * pi_improve + size * simplex(rng, 4, 4)
            assert value(pi, other_improve) < best < value(other, pi_improve)


def test_solve_ipo_maximises_the_regularised_win_rate():
    rng = np.random.default_rng(2)
    preference, behaviour, reference = preferences(rng, 4), simplex(rng, 4), simplex(rng, 4)
    pi = bandit.solve_ipo(preference, behaviour, reference, beta=0.2)
    value = lambda p: p @ preference @ behaviour - 0.2 * p @ np.log(p / reference)
    for size in (1.0, 0.1, 0.01):
        assert all(value((1 - size) * pi + size * simplex(rng, 4)) < value(pi) for _ in range(30))


# --- fits against closed forms ------------------------------------------------------------------


def assert_fits_meet_closed_forms(problems, most_actions):
    for seed in problems:
        rng = np.random.default_rng(seed)
        size = int(rng.integers(3, most_actions + 1))
        preference, reference = preferences(rng, size), simplex(rng, size)
        improve = simplex(rng, size, size)
        beta, alpha = rng.uniform(0.1, 2), rng.uniform(0.1, 0.9)
        pi, pi_improve = bandit.solve(preference, reference, improve, beta)
        for behaviour in (uniform(size), skewed(rng, size)):
            problem = preference, behaviour, reference, improve
            fitted, fitted_improve = bandit.fit("srpo", *problem, beta=beta, alpha=alpha)
            assert total_variation(fitted, pi) < 1e-6, seed
            assert total_variation(fitted_improve, pi_improve) < 1e-6, seed
            fitted, none = bandit.fit("ipo", *problem, beta=beta)
            exact = bandit.solve_ipo(preference, behaviour, reference, beta)
            assert total_variation(fitted, exact) < 1e-6, seed
            assert none is None


def test_srpo_and_ipo_meet_their_closed_forms():
    assert_fits_meet_closed_forms(range(5), most_actions=4)


@pytest.mark.slow
def test_srpo_and_ipo_meet_their_closed_forms_on_50_problems():
    assert_fits_meet_closed_forms(range(50), most_actions=8)


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("beta", [0.1, 0.3])
def test_behaviour_moves_dpo_and_ipo_but_not_srpo(example, beta):
    preference = EXAMPLES[example]
    size = len(preference)
    first, *others = behaviours(size).values()

    def moves(name, **hyper):
        fit = lambda behaviour: bandit.fit(
            name, preference, behaviour, uniform(size), np.full((size, size), 1 / size), **hyper
        )[0]
        reference = fit(first)
        return max(total_variation(reference, fit(behaviour)) for behaviour in others)

    assert moves("srpo", beta=beta, alpha=0.5) < 1e-9
    assert moves("ipo", beta=beta) > 0.05
    assert moves("dpo", beta=beta) > 0.05


@pytest.mark.parametrize(("name", "hyper"), [("dpo", {}), ("copg", {"label_smoothing": 0.0})])
def test_on_bradley_terry_preferences_it_is_the_rlhf_policy(name, hyper):
    # Rafailov et al. 2023, equation 4: pi = ref exp(r / beta) / Z where P(a>b) = sigma(r_a - r_b).
    rng = np.random.default_rng(3)
    reward, reference = rng.normal(0, 1, 4), simplex(rng, 4)
    preference = 1 / (1 + np.exp(reward[None, :] - reward[:, None]))
    exact = reference * np.exp(reward / 0.5)
    pi, _ = bandit.fit(
        name, preference, skewed(rng, 4), reference, np.full((4, 4), 0.25), beta=0.5, **hyper
    )
    assert total_variation(pi, exact / exact.sum()) < 1e-6


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("srpo", {"beta": 0.2, "alpha": 0.3}),
        ("dpo", {"beta": 0.3}),
        ("ipo", {"beta": 0.2}),
        ("rpo", {}),
        ("simpo", {"beta": 2.0, "gamma": 0.5}),
        ("orpo", {}),
    ],
)
def test_hard_labels_have_the_same_minimiser(name, hyper):
    behaviour = np.array([0.1, 0.2, 0.7])
    soft, hard = (
        bandit.fit(name, CYCLE, behaviour, **THREE, labels=labels, **hyper)
        for labels in ("soft", "hard")
    )
    for from_soft, from_hard in zip(soft, hard, strict=True):
        if from_soft is not None:
            assert total_variation(from_soft, from_hard) < 1e-6


def test_sampled_hard_labels_have_the_same_minimiser():
    # Chosen-rejected counts give each P(a>b) an estimate with, by Hoeffding and a union bound over
    # the 3 pairs, an error below e = sqrt(log(2 * 3 / 1e-6) / 2n) but for one data set in a
    # million, n labels for the rarest pair. The estimates enter log-probabilities through P / beta
    # and log Z, each off by at most e / beta; logits off by d move a softmax by at most tanh(d).
    beta, count = 0.5, 200_000
    behaviour = np.array([0.3, 0.2, 0.5])
    pairs = bandit.sample(CYCLE, behaviour, count, seed=0)
    wins = np.zeros((3, 3))
    np.add.at(wins, (pairs.chosen, pairs.rejected), pairs.weight)
    trials = wins + wins.T
    error = np.sqrt(np.log(6e6) / (2 * trials[~np.eye(3, dtype=bool)].min()))
    exact = bandit.solve(CYCLE, **THREE, beta=beta)
    fitted = bandit.fit_pairs("srpo", pairs, **THREE, beta=beta, alpha=0.4)
    for ours, theirs in zip(fitted, exact, strict=True):
        assert total_variation(ours, theirs) < np.tanh(error / beta)
    # and it is the exact answer for the empirical preferences
    empirical = bandit.solve(wins / trials, **THREE, beta=beta)
    for ours, theirs in zip(fitted, empirical, strict=True):
        assert total_variation(ours, theirs) < 1e-6


def test_sft_fits_the_chosen_completions():
    behaviour = np.array([0.2, 0.3, 0.5])
    pi, _ = bandit.fit("sft", CYCLE, behaviour, **THREE, labels="hard")
    np.testing.assert_allclose(pi, 2 * behaviour * (CYCLE @ behaviour), atol=1e-9)


def test_double_precision_does_not_leak():
    bandit.fit("ipo", CYCLE, uniform(3), **THREE, beta=0.3)
    assert jnp.ones(2).dtype == jnp.float32
    assert not jax.config.jax_enable_x64


# --- what is refused ----------------------------------------------------------------------------


def fit(**changes):
    arguments = {"preference": CYCLE, "behaviour": uniform(3), **THREE, "beta": 0.3, "alpha": 0.5}
    return bandit.fit("srpo", **arguments | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"preference": CYCLE + 0.01}, r"must be 1 .* a = 0, b = 0 it is 1.02"),
        ({"preference": np.where(CYCLE == 0.9, 0.8, CYCLE)}, "a = 0, b = 1 it is 0.9"),
        ({"preference": CYCLE[:2]}, "square matrix"),
        ({"preference": np.array([[0.5, 1.2], [-0.2, 0.5]])}, r"in \[0, 1\]"),
        ({"behaviour": [0.5, 0.5, 0.0]}, "behaviour must give every action .* gives 0.0 at 2"),
        ({"behaviour": [0.5, 0.4, 0.2]}, "behaviour must sum to 1"),
        ({"behaviour": [0.5, 0.5]}, r"behaviour must have the shape \(3,\), and has \(2,\)"),
        ({"reference": uniform(4)}, r"reference must have the shape \(3,\)"),
        ({"reference": [0.0, 0.5, 0.5]}, "reference must give every action"),
        ({"reference": [0.5, 0.5, np.nan]}, "reference must give every action"),
        ({"reference_improve": np.eye(3)}, r"reference_improve .* gives 0.0 at \(0, 1\)"),
        ({"reference_improve": uniform(3)}, r"reference_improve must have the shape \(3, 3\)"),
        ({"beta": 0.0}, "beta of 'srpo' must be a number > 0"),
        ({"alpha": 1.5}, r"alpha of 'srpo' must be a number in \[0, 1\]"),
        ({"alpha": 1.0}, "leaves the generative policy pi untrained"),
        ({"alpha": 0}, "many pairs of policies minimise the loss"),
        ({"labels": "firm"}, "labels must be 'soft' or 'hard'"),
    ],
)
def test_bad_input_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(**changes)


def test_bad_label_prob_is_refused():
    pairs = bandit.population(CYCLE, uniform(3))._replace(label_prob=np.full(9, 1.1))
    with pytest.raises(UserError, match="label_prob must be in"):
        bandit.fit_pairs("ipo", pairs, **THREE, beta=0.3)


def test_solve_refuses_bad_input():
    with pytest.raises(UserError, match="beta"):
        bandit.solve(CYCLE, **THREE, beta=0.0)
    with pytest.raises(UserError, match="must be 1"):
        bandit.solve(CYCLE * 0.9, **THREE, beta=0.3)
    with pytest.raises(UserError, match="behaviour"):
        bandit.solve_ipo(CYCLE, [1.0, 0.0, 0.0], uniform(3), beta=0.3)


def test_an_objective_without_a_single_minimiser_is_refused():
    with pytest.raises(UserError, match="piecewise linear"):
        bandit.fit("slic", CYCLE, uniform(3), **THREE, beta=0.3)
    for labels in ("soft", "hard"):
        with pytest.raises(UserError, match="the loss of 'reward' is of no policy"):
            bandit.fit("reward", CYCLE, uniform(3), **THREE, labels=labels)
    always_wins = np.array([[0.5, 1.0, 1.0], [0.0, 0.5, 0.7], [0.0, 0.3, 0.5]])
    with pytest.raises(UserError, match="no finite minimiser of 'dpo'"):
        bandit.fit("dpo", always_wins, uniform(3), **THREE, beta=0.3)


def test_pairs_that_leave_the_policy_undetermined_are_refused():
    pairs = bandit.population(CYCLE, uniform(3))
    never_1_and_2 = np.where((pairs.chosen > 0) & (pairs.rejected > 0), 0.0, pairs.weight)
    with pytest.raises(UserError, match="every two actions must be compared"):
        bandit.fit_pairs("srpo", pairs._replace(weight=never_1_and_2), **THREE, beta=0.3, alpha=0.5)


def test_a_direct_policy_needs_its_actions_connected_only():
    pairs = bandit.population(CYCLE, uniform(3))
    without = lambda *never: pairs._replace(
        weight=np.where(
            [{a, b} in never for a, b in zip(pairs.chosen, pairs.rejected, strict=True)],
            0.0,
            pairs.weight,
        )
    )
    pi, _ = bandit.fit_pairs("ipo", without({1, 2}), **THREE, beta=0.3)
    assert np.isfinite(pi).all()
    with pytest.raises(UserError, match="connected by comparisons, and 0 and 2 are not"):
        bandit.fit_pairs("ipo", without({1, 2}, {0, 2}), **THREE, beta=0.3)


def test_pairs_of_unknown_actions_are_refused():
    pairs = bandit.population(EXAMPLES["four"], uniform(4))
    with pytest.raises(UserError, match="reference has 3 actions"):
        bandit.fit_pairs("ipo", pairs, **THREE, beta=0.3)


def test_sft_refuses_soft_labels():
    with pytest.raises(UserError, match="give labels='hard'"):
        bandit.fit("sft", CYCLE, uniform(3), **THREE)
