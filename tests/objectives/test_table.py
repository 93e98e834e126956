"""The table: what an objective needs, and what it refuses."""

import math

import numpy as np
import pytest

from srpo_jax import objectives
from srpo_jax.runtime.errors import UserError
from tests.scores import HYPER, as_jax, draw


@pytest.mark.parametrize("name", HYPER)
def test_needs_are_sufficient_and_necessary(name):
    scores, reference, label_prob, lengths = map(as_jax, draw(8))
    objective = objectives.get(name)
    pick = lambda tree, names: {k: tree[k] for k in names}
    needed = pick(scores, objective.needs)
    needed_reference = pick(reference, objective.needs) if objective.needs_reference else None
    objective(needed, needed_reference, label_prob, lengths=lengths, **HYPER[name])
    for left_out in objective.needs:
        rest = [k for k in objective.needs if k != left_out]
        with pytest.raises(UserError, match="needs the score"):
            objective(pick(scores, rest), reference, label_prob, lengths=lengths, **HYPER[name])
    if objective.needs_reference:
        with pytest.raises(UserError, match="needs the reference score"):
            objective(scores, None, label_prob, lengths=lengths, **HYPER[name])


@pytest.mark.parametrize("name", ["rpo", "simpo", "orpo"])
def test_an_objective_of_means_asks_for_lengths(name):
    scores, reference, label_prob, lengths = map(as_jax, draw(8))
    with pytest.raises(UserError, match="number of tokens"):
        objectives.get(name)(scores, reference, label_prob, **HYPER[name])
    with pytest.raises(UserError, match="that of 'l'"):
        objectives.get(name)(
            scores, reference, label_prob, lengths={"w": lengths["w"]}, **HYPER[name]
        )


def test_hyperparameters_that_a_loss_does_not_read_are_left_out():
    scores, reference, label_prob, _ = map(as_jax, draw(8))
    ipo = objectives.get("ipo")
    plain, _ = ipo(scores, reference, label_prob, beta=0.2)
    more, _ = ipo(scores, reference, label_prob, beta=0.2, alpha=0.3, reduction=None)
    np.testing.assert_array_equal(plain, more)


def test_a_missing_hyperparameter_is_named():
    scores, reference, label_prob, _ = map(as_jax, draw(8))
    with pytest.raises(UserError, match="no default for alpha"):
        objectives.get("srpo")(scores, reference, label_prob, beta=0.1)


def test_names_of_hyperparameters():
    assert objectives.get("srpo").hyperparameters == ("beta", "alpha", "nll_weight")
    assert objectives.get("srpo").required == ("beta", "alpha")
    assert objectives.get("rpo").hyperparameters == ("beta", "nll_weight")
    assert objectives.get("rpo").required == ()


def test_an_unknown_objective_is_refused_with_the_names():
    with pytest.raises(UserError, match=r"'ppo'.*srpo, dpo"):
        objectives.get("ppo")


@pytest.mark.parametrize("name", HYPER)
def test_good_hyperparameters_pass(name):
    objectives.check_hyperparameters(name, **HYPER[name], reduction=None)


@pytest.mark.parametrize(
    ("name", "hyper", "sentence"),
    [
        ("dpo", {"beta": 0.0}, "beta of 'dpo' must be a number > 0, and is 0.0"),
        ("dpo", {"beta": -1}, "must be a number > 0"),
        ("dpo", {"beta": math.nan}, "must be a number > 0"),
        ("dpo", {"beta": math.inf}, "must be a number > 0"),
        ("dpo", {"beta": "0.1"}, "must be a number > 0"),
        ("dpo", {"beta": True}, "must be a number > 0"),
        ("dpo", {"label_smoothing": 0.5}, r"in \[0, 0.5\)"),
        ("srpo", {"beta": 0.1, "alpha": 1.01}, r"alpha of 'srpo' must be a number in \[0, 1\]"),
        ("srpo", {"beta": 0.1, "alpha": -0.01}, r"in \[0, 1\]"),
        ("srpo", {"beta": 0.1}, "no default for 'alpha'"),
        ("srpo", {"beta": 0.1, "alpha": None}, "no default for 'alpha'"),
        ("ipo", {"beta": 0.1, "alpha": 0.5}, "'ipo' does not read 'alpha': it reads beta"),
        ("ipo", {"beta": 0.1, "reduction": "median"}, "'sum' or 'mean', and is 'median'"),
        ("ipo", {"beta": 0.1, "reduction": 1}, "'sum' or 'mean'"),
    ],
)
def test_bad_hyperparameters_are_refused(name, hyper, sentence):
    with pytest.raises(UserError, match=sentence):
        objectives.check_hyperparameters(name, **hyper)


@pytest.mark.parametrize("bad", [1.5, -0.1, math.nan])
def test_label_prob_outside_0_1_is_refused(bad):
    objectives.check_label_prob(np.array([0.0, 0.5, 1.0]))
    with pytest.raises(UserError, match=r"label_prob must be in \[0, 1\], and pair 1 "):
        objectives.check_label_prob(np.array([0.5, bad]))


def test_a_label_without_log_odds_is_refused_where_they_are_read():
    copg, labels = objectives.get("copg"), np.array([0.3, 1.0, 0.0])
    with pytest.raises(UserError, match="2 of 3 pairs have a label_prob of 0 or 1"):
        objectives.check_log_odds(copg, labels, {"label_smoothing": 0.0})
    objectives.check_log_odds(copg, labels, {"label_smoothing": 0.1})
    with pytest.raises(
        UserError, match="label_smoothing above 1e-09"
    ):  # float32 has none so near to 1
        objectives.check_log_odds(copg, labels.astype(np.float32), {"label_smoothing": 1e-9})
    objectives.check_log_odds(copg, labels, {"label_smoothing": 1e-9})
    objectives.check_log_odds(copg, labels[:1], {"label_smoothing": 0.0})
    objectives.check_log_odds(objectives.get("dpo"), labels, {})
