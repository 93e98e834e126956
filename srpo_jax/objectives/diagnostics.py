"""What pairs and their scores say beside the losses: can self-revision help, are rewards calibrated?

Arguments as in `losses.py`: scores and reference are {score name: [B]}, log-probabilities of completions.
"""

from collections.abc import Mapping

import numpy as np
from jax import Array
from jaxtyping import Float

from srpo_jax.objectives.losses import IMPROVE_SCORES, Number

BINS = 10  # of the predicted probability
Values = Float[Array | np.ndarray, "*B"]
Scores = Mapping[str, Values]


def improve_margins(scores: Scores, reference: Scores, beta: Number) -> dict[str, Values]:
    """The two halves of SRPO's margin_improve, by the draft that is shown; beta-scaled, [B] each.

    margin_improve_l_shown = beta [h(w|l) - h(l|l)]: to mend a rejected draft is preferred to copying it.
    margin_improve_w_shown = beta [h(w|w) - h(l|w)]: to copy a chosen draft is preferred to spoiling it.
    """
    h = {name: scores[name] - reference[name] for name in IMPROVE_SCORES}
    return {
        "margin_improve_l_shown": beta * (h["w|l"] - h["l|l"]),
        "margin_improve_w_shown": beta * (h["w|w"] - h["l|w"]),
    }


def copy_advantage(reference: Scores, label_prob: Values) -> Values:
    """log ref(l|l,x) - log ref(w|l,x), nats [B]: how much the reference prefers to copy the worse draft.

    At the optimum of SRPO's improve loss h(w|l) - h(l|l) = (p - 1/2) / beta. So the trained model prefers w
    to the copy of l only where (p - 1/2) / beta exceeds this. Where p, the label_prob, is below 1/2, w is
    the worse one: the two, and p and 1 - p, change places.
    """
    rejected, chosen = reference["l|l"] - reference["w|l"], reference["w|w"] - reference["l|w"]
    return np.where(np.asarray(label_prob) >= 0.5, rejected, chosen)


def calibration(
    margin: Float[np.ndarray, " n"], label_prob: Float[np.ndarray, " n"]
) -> dict[str, float]:
    """Whether sigma(margin) is how often the label says so: predictions in BINS bins of equal width.

    Every pair counts in both orders, so the table is symmetric, also where chosen always comes first. Of
    bin i = 0, 1, … that is not empty: calibration_i_predicted and calibration_i_label, the two means, and
    calibration_i_share of the predictions. calibration_error: the mean |predicted - label| over the bins,
    weighted by share.
    """
    margin, label_prob = np.asarray(margin, np.float64), np.asarray(label_prob, np.float64)
    predicted = 1 / (1 + np.exp(-np.clip(np.concatenate([margin, -margin]), -500, 500)))
    label = np.concatenate([label_prob, 1 - label_prob])
    number = np.minimum((predicted * BINS).astype(int), BINS - 1)
    found, error = {}, 0.0
    for i in np.unique(number):
        these = number == i
        said = predicted[these].mean(), label[these].mean(), these.mean()
        error += said[2] * abs(said[0] - said[1])
        for name, value in zip(("predicted", "label", "share"), said, strict=True):
            found[f"calibration_{i}_{name}"] = float(value)
    return found | {"calibration_error": float(error)}
