"""The losses against the papers' formulas, written again here in plain numpy and Python floats."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax import objectives
from srpo_jax.objectives import online
from srpo_jax.runtime.errors import UserError
from tests.scores import ALL_SCORES, HYPER, B, as_jax, draw

SWAPPED = {"w": "l", "l": "w", "w|l": "l|w", "l|w": "w|l", "l|l": "w|w", "w|w": "l|l"}
SWAPPED |= {"w_end": "l_end", "l_end": "w_end"}
# The named objectives, and SRPO with its likelihood anchor.
CASES = HYPER | {"srpo, anchored": HYPER["srpo"] | {"nll_weight": 0.4}}
PAIR_CASES = [case for case in CASES if case not in ("sft", "sft_improve", "copg")]


def objective_of(case):
    return objectives.get(case.partition(",")[0])


def swap(scores):
    return {SWAPPED[name]: values for name, values in scores.items()}


def log_sigma(x):
    return -np.log1p(np.exp(-x))


def expected_loss(name, s, r, n):
    """Each paper's loss for hard labels (w preferred), from scores s, r and token counts n."""
    g = {k: s[k] - r[k] for k in s}
    if name == "srpo, anchored":
        anchor = -s["w"] / n["w"] - s["w|l"] / n["w"]
        return expected_loss("srpo", s, r, n) + 0.4 * anchor
    if name == "srpo":
        beta, alpha = 0.3, 0.7
        improve = (0.5 - beta * (g["w|l"] - g["l|l"])) ** 2
        improve = improve + (0.5 - beta * (g["w|w"] - g["l|w"])) ** 2
        generative = (1 - beta * (g["w|l"] - g["l|w"] + g["w"] - g["l"])) ** 2
        return (1 - alpha) * generative + alpha * improve
    if name == "dpo":
        m = 0.2 * (g["w"] - g["l"])
        return -0.9 * log_sigma(m) - 0.1 * log_sigma(-m)
    if name == "robust_dpo":
        m = 0.2 * (g["w"] - g["l"])
        return (-0.9 * log_sigma(m) + 0.1 * log_sigma(-m)) / 0.8
    if name == "ipo":
        return (g["w"] - g["l"] - 1 / (2 * 0.3)) ** 2
    if name == "copg":
        d = g["w"] - g["l"]
        return -(math.log(0.9 / 0.1) - 0.3 / 2 * d) * d
    if name == "slic":
        return np.maximum(0, 1 - 0.07 * (g["w"] - g["l"]))
    if name == "rpo":
        return -log_sigma(0.2 * (g["w"] - g["l"])) - 0.6 * s["w"] / n["w"]
    if name == "simpo":
        return -log_sigma(2.0 * (s["w"] / n["w"] - s["l"] / n["l"]) - 0.8)
    if name == "orpo":
        p = {k: np.exp(s[k] / n[k]) for k in ("w", "l")}
        odds_ratio = (p["w"] / (1 - p["w"])) / (p["l"] / (1 - p["l"]))
        return -np.log(p["w"]) - 0.4 * np.log(1 / (1 + 1 / odds_ratio))
    if name == "reward":
        return -log_sigma(s["w_end"] - s["l_end"])
    if name == "sft_improve":
        return -s["w|l"] - 0.6 * s["w"]
    assert name == "sft"
    return -s["w"]


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_papers_formula(name):
    scores, reference, _, lengths = draw()
    with jax.enable_x64(True):
        loss, _ = objective_of(name)(
            as_jax(scores), as_jax(reference), jnp.ones(B), lengths=as_jax(lengths), **CASES[name]
        )
    np.testing.assert_allclose(loss, expected_loss(name, scores, reference, lengths), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "hyper", "value"),
    [
        # Before the first step g = h = 0: every margin is 0.
        ("dpo", {"beta": 0.1}, math.log(2)),
        ("ipo", {"beta": 0.5}, 1.0),
        ("slic", {"beta": 0.1}, 1.0),
        # (1 - alpha) 1^2 + alpha (1/4 + 1/4)
        ("srpo", {"beta": 0.1, "alpha": 0.8}, 0.6),
        # (1 - e) log 2 - e log 2 = (1 - 2e) log 2, divided by 1 - 2e
        ("robust_dpo", {"beta": 0.1, "label_smoothing": 0.3}, math.log(2)),
    ],
)
def test_loss_before_the_first_step(name, hyper, value):
    scores, *_ = draw()
    loss, metrics = objectives.get(name)(as_jax(scores), as_jax(scores), jnp.ones(B), **hyper)
    np.testing.assert_allclose(loss, np.full(B, value), rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], np.full(B, 0.5))
    np.testing.assert_array_equal(metrics["kl"], np.zeros(B))


def test_reward_by_hand():
    # sigma(log 3) = 3/4; the label says so for 9 of 10.
    scores = {"w_end": jnp.array([math.log(3) + 5]), "l_end": jnp.array([5.0])}
    loss, metrics = objectives.get("reward")(scores, None, jnp.array([0.9]))
    np.testing.assert_allclose(loss, [-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)], rtol=1e-5)
    expected = {"margin": math.log(3), "accuracy": 1, "reward_rejected": 5}
    expected |= {"reward_chosen": 5 + math.log(3), "loss": float(loss[0])}
    assert {k: float(v[0]) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_orpo_by_hand():
    # Token-mean probabilities 1/2 and 1/3 have odds 1 and 1/2: m = log 2, sigma(m) = 2/3.
    scores = {"w": jnp.array([4 * math.log(1 / 2)]), "l": jnp.array([2 * math.log(1 / 3)])}
    lengths = {"w": jnp.array([4]), "l": jnp.array([2])}
    loss, metrics = objectives.get("orpo")(
        scores, None, jnp.ones(1), lengths=lengths, odds_weight=0.1
    )
    np.testing.assert_allclose(loss, [math.log(2) + 0.1 * math.log(3 / 2)], rtol=1e-6)
    np.testing.assert_allclose(metrics["margin"], [math.log(2)], rtol=1e-6)


def test_orpo_is_finite_for_a_completion_of_probability_one():
    lengths = {"w": jnp.array([3]), "l": jnp.array([3])}

    def loss(w):
        scores = {"w": w, "l": jnp.array([-200.0])}
        return objectives.get("orpo")(scores, None, jnp.ones(1), lengths=lengths)[0].sum()

    value, gradient = jax.value_and_grad(loss)(jnp.zeros(1))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_finite_difference(name):
    scores, reference, label_prob, lengths = draw(1)
    objective = objective_of(name)
    with jax.enable_x64(True):

        @jax.jit
        def loss(scores):
            return objective(
                scores, as_jax(reference), label_prob, lengths=as_jax(lengths), **CASES[name]
            )[0]

        needed = {k: jnp.asarray(scores[k]) for k in objective.needs}
        gradient = jax.grad(lambda s: loss(s).sum())(needed)
        for key in objective.needs:
            up, down = (loss({**needed, key: needed[key] + step}) for step in (1e-5, -1e-5))
            difference = (up - down) / 2e-5
            scale = max(np.abs(difference).max(), 1e-3)
            np.testing.assert_allclose(gradient[key], difference, rtol=1e-6, atol=1e-7 * scale)


@pytest.mark.parametrize("name", PAIR_CASES)
def test_soft_label_gradient_is_the_mean_over_hard_labels(name):
    scores, reference, p, lengths = draw(2)
    objective = objective_of(name)

    def gradient(scores, reference, lengths, label_prob):
        total = lambda s: objective(s, reference, label_prob, lengths=lengths, **CASES[name])[0]
        return jax.jit(jax.grad(lambda s: total(s).sum()))(scores)

    with jax.enable_x64(True):
        s, r, n = as_jax(scores), as_jax(reference), as_jax(lengths)
        soft = gradient(s, r, n, p)
        one_way = gradient(s, r, n, jnp.ones(B))
        other_way = swap(gradient(swap(s), swap(r), swap(n), jnp.ones(B)))
        mean = {key: p * one_way[key] + (1 - p) * other_way[key] for key in objective.needs}
    for key in objective.needs:
        np.testing.assert_allclose(soft[key], mean[key], rtol=1e-9, atol=1e-15)


def test_robust_dpo_is_unbiased_under_flipped_labels():
    scores, reference, *_ = map(as_jax, draw(3))
    robust = lambda s, r: objectives.get("robust_dpo")(
        s, r, jnp.ones(B), beta=0.2, label_smoothing=0.2
    )
    seen = 0.8 * robust(scores, reference)[0] + 0.2 * robust(swap(scores), swap(reference))[0]
    true, _ = objectives.get("dpo")(scores, reference, jnp.ones(B), beta=0.2)
    np.testing.assert_allclose(seen, true, rtol=1e-5)


def test_label_smoothing_is_a_softer_label():
    scores, reference, *_ = map(as_jax, draw(3))
    dpo = objectives.get("dpo")
    smoothed, _ = dpo(scores, reference, jnp.ones(B), beta=0.2, label_smoothing=0.1)
    soft, _ = dpo(scores, reference, jnp.full(B, 0.9), beta=0.2)
    np.testing.assert_allclose(smoothed, soft, rtol=1e-6)


def test_copg_of_labels_is_copg_of_the_rewards_that_they_say():
    scores, reference, *_ = map(as_jax, draw(3))
    reward = jax.random.normal(jax.random.key(0), (B, 2))
    label_prob = jax.nn.sigmoid(reward[:, 0] - reward[:, 1])
    loss, _ = objectives.get("copg")(scores, reference, label_prob, beta=0.3, label_smoothing=0)
    k = lambda tree: jnp.stack([tree["w"], tree["l"]], axis=-1)
    given, _ = online.copg(k(scores), k(reference), reward, beta=0.3)
    np.testing.assert_allclose(loss, given, rtol=1e-4, atol=1e-5)


def srpo_gradient(alpha):
    scores, reference, *_ = map(as_jax, draw(4))
    loss = lambda s: objectives.get("srpo")(s, reference, jnp.ones(B), beta=0.3, alpha=alpha)[0]
    return jax.grad(lambda s: loss(s).sum())(scores)


def test_srpo_with_nll_weight_0_is_the_papers_loss_bit_for_bit_and_needs_no_lengths():
    scores, reference, label_prob, lengths = map(as_jax, draw(4))
    srpo = objectives.get("srpo")
    plain, metrics = srpo(scores, reference, label_prob, **HYPER["srpo"])
    for zero in (0, 0.0):
        loss, same = srpo(scores, reference, label_prob, **HYPER["srpo"], nll_weight=zero)
        np.testing.assert_array_equal(loss, plain)
        assert same.keys() == metrics.keys()
    with pytest.raises(UserError, match="'srpo' divides by the number of tokens"):
        srpo(scores, reference, label_prob, **HYPER["srpo"], nll_weight=0.1)
    swept = lambda weight: srpo(
        scores, reference, label_prob, lengths=lengths, **HYPER["srpo"], nll_weight=weight
    )
    np.testing.assert_allclose(jax.jit(swept)(0.0)[0], plain, rtol=1e-6)  # an array, so computed
    np.testing.assert_allclose(
        swept(0.3)[0] - plain, 0.3 * swept(0.3)[1]["loss_nll"], rtol=1e-5, atol=1e-6
    )


def test_srpo_alpha_1_leaves_the_generative_policy_untrained():
    gradient = srpo_gradient(1.0)
    assert not np.any(gradient["w"])
    assert not np.any(gradient["l"])
    assert np.all(np.abs(gradient["w|l"]) > 0)


def test_srpo_alpha_0_trains_only_the_sum_of_log_ratios():
    gradient = srpo_gradient(0.0)
    assert not np.any(gradient["l|l"])
    assert not np.any(gradient["w|w"])
    for name, sign in (("w|l", 1), ("l|w", -1), ("l", -1)):
        np.testing.assert_allclose(sign * gradient[name], gradient["w"], rtol=1e-6)


@pytest.mark.parametrize("name", ["ipo", "sft", "sft_improve"])
def test_reduction_mean_divides_by_lengths(name):
    scores, reference, _, lengths = draw(5)
    hyper = {"beta": 0.3} if name == "ipo" else {}
    per_token = lambda x: as_jax({k: x[k] / lengths[k] for k in ALL_SCORES})
    objective = objectives.get(name)
    by_option, _ = objective(
        as_jax(scores), as_jax(reference), jnp.ones(B), lengths=lengths, reduction="mean", **hyper
    )
    by_hand, _ = objective(per_token(scores), per_token(reference), jnp.ones(B), **hyper)
    np.testing.assert_allclose(by_option, by_hand, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_jit_and_vmap_give_the_same(name):
    scores, reference, label_prob, lengths = map(as_jax, draw(6))
    call = lambda s, r, p, n: objective_of(name)(s, r, p, lengths=n, **CASES[name])
    plain = call(scores, reference, label_prob, lengths)
    for transformed in (jax.jit(call), jax.vmap(call)):
        result = transformed(scores, reference, label_prob, lengths)
        assert jax.tree.structure(result) == jax.tree.structure(plain)
        for ours, theirs in zip(jax.tree.leaves(result), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "x64"), [*((name, False) for name in CASES), ("srpo", True)])
def test_bfloat16_scores_are_summed_in_float32(name, x64):
    scores, reference, label_prob, lengths = draw(7)
    with jax.enable_x64(x64):
        low = lambda tree: {k: jnp.asarray(v, jnp.bfloat16) for k, v in tree.items()}
        loss, metrics = objective_of(name)(
            low(scores),
            low(reference),
            jnp.asarray(label_prob, jnp.float32),
            lengths=jax.tree.map(lambda n: jnp.asarray(n, jnp.int32), lengths),
            **CASES[name],
        )
        for value in (loss, *metrics.values()):
            assert value.shape == (B,)
            assert value.dtype == jnp.float32


def test_metrics_of_srpo():
    scores = dict(zip(ALL_SCORES, (-4.0, -7.0, -3.0, -9.0, -6.0, -5.0), strict=True))
    reference = dict(zip(ALL_SCORES, (-5.0, -5.0, -4.0, -8.0, -5.0, -5.0), strict=True))
    # g: w 1, l -2; h: w|l 1, l|l -1, w|w -1, l|w 0
    batch = lambda tree: {k: jnp.array([v]) for k, v in tree.items()}
    _, metrics = objectives.get("srpo")(
        batch(scores),
        batch(reference),
        jnp.ones(1),
        lengths=batch({"w": 8.0, "l": 5.0}),
        beta=0.1,
        alpha=0.25,
    )
    expected = {
        "loss": 0.75 * (1 - 0.4) ** 2 + 0.25 * ((0.5 - 0.2) ** 2 + (0.5 + 0.1) ** 2),
        "loss_generative": 0.36,
        "loss_improve": 0.45,
        "margin": 0.3,
        "margin_generative": 0.4,
        "margin_improve": 0.05,
        "accuracy": 1.0,
        "accuracy_improve": 0.5,
        "log_ratio": -0.5,
        "log_ratio_chosen": 1.0,
        "log_ratio_rejected": -2.0,
        "log_ratio_improve": -0.25,
        "kl": 1.25,
        "kl_improve": 0.375,
        "length_chosen": 8.0,
        "length_rejected": 5.0,
        "nll_chosen": 0.5,
    }
    assert {k: v.shape for k, v in metrics.items()} == dict.fromkeys(expected, (1,))
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], [value], rtol=1e-5, err_msg=key)


def test_accuracy_follows_a_label_that_prefers_rejected():
    scores = {"w": jnp.array([-1.0, -1.0, -1.0]), "l": jnp.array([-2.0, -2.0, -2.0])}
    reference = {"w": jnp.zeros(3), "l": jnp.zeros(3)}
    _, metrics = objectives.get("dpo")(scores, reference, jnp.array([0.9, 0.2, 0.5]), beta=0.1)
    np.testing.assert_array_equal(metrics["accuracy"], [1.0, 0.0, 0.5])
