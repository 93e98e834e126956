"""What scores say of self-revision, against the loss and its optimum; and the calibration of rewards."""

import numpy as np
import pytest

from srpo_jax import objectives
from srpo_jax.objectives import diagnostics
from tests.scores import HYPER, draw


def test_the_halves_of_the_margin_are_its_mean():
    scores, reference, label_prob, _ = draw()
    _, metrics = objectives.get("srpo")(scores, reference, label_prob, **HYPER["srpo"])
    halves = diagnostics.improve_margins(scores, reference, HYPER["srpo"]["beta"])
    assert list(halves) == ["margin_improve_l_shown", "margin_improve_w_shown"]
    mean = (halves["margin_improve_l_shown"] + halves["margin_improve_w_shown"]) / 2
    np.testing.assert_allclose(mean, metrics["margin_improve"], rtol=1e-6, atol=1e-6)
    shown = reference | {"w|l": reference["w|l"] + 2.0, "l|l": reference["l|l"] - 1.0}
    mended = diagnostics.improve_margins(shown, reference, 0.5)
    np.testing.assert_allclose(mended["margin_improve_l_shown"], 1.5)
    np.testing.assert_allclose(mended["margin_improve_w_shown"], 0.0)


def test_at_the_optimum_the_copy_wins_where_its_advantage_exceeds_the_label():
    """log ref is drawn; log pi = log ref + h with the h that makes the improve loss 0."""
    _, reference, label_prob, _ = draw()
    seen = set()
    for beta in (0.02, 0.1, 1.0):
        reach = (label_prob - 0.5) / beta
        scores = reference | {
            "w|l": reference["w|l"] + reach / 2,
            "l|l": reference["l|l"] - reach / 2,
            "w|w": reference["w|w"] + reach / 2,
            "l|w": reference["l|w"] - reach / 2,
        }
        _, metrics = objectives.get("srpo")(scores, reference, label_prob, beta=beta, alpha=1.0)
        np.testing.assert_allclose(metrics["loss_improve"], 0, atol=1e-9)
        right = label_prob >= 0.5
        mended = np.where(right, scores["w|l"] > scores["l|l"], scores["l|w"] > scores["w|w"])
        advantage = diagnostics.copy_advantage(reference, label_prob)
        np.testing.assert_array_equal(advantage < np.abs(reach), mended)
        seen |= set(zip(right.tolist(), mended.tolist(), strict=True))
    assert len(seen) == 4


def test_calibration_by_hand():
    # 3/4 and 3/4 are predicted of labels 1 and 0, 1/2 of a label 1: each pair in both orders.
    margin = np.array([np.log(3), np.log(3), 0.0])
    found = diagnostics.calibration(margin, np.array([1.0, 0.0, 1.0]))
    third = pytest.approx(1 / 3)
    assert found == {
        "calibration_2_predicted": pytest.approx(0.25),
        "calibration_2_label": 0.5,
        "calibration_2_share": third,
        "calibration_5_predicted": 0.5,
        "calibration_5_label": 0.5,
        "calibration_5_share": third,
        "calibration_7_predicted": pytest.approx(0.75),
        "calibration_7_label": 0.5,
        "calibration_7_share": third,
        "calibration_error": pytest.approx(2 / 3 * 0.25),
    }


def test_labels_drawn_from_the_predictions_are_calibrated_and_sure_ones_fill_the_last_bins():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 20_000)
    label = (rng.uniform(size=margin.size) < 1 / (1 + np.exp(-margin))).astype(float)
    assert diagnostics.calibration(margin, label)["calibration_error"] < 0.02
    assert diagnostics.calibration(2 * margin, label)["calibration_error"] > 0.05
    sure = diagnostics.calibration(np.array([1e4]), np.ones(1))
    assert sure["calibration_9_label"] == 1
    assert sure["calibration_0_label"] == 0
    assert sure["calibration_error"] < 1e-9
