"""What pairs and their scores say of self-revision, beside the losses: can it help, and does it?

Arguments as in `losses.py`: scores and reference are {score name: [B]}, log-probabilities of completions.
"""

from collections.abc import Mapping

import numpy as np
from jax import Array
from jaxtyping import Float

from srpo_jax.objectives.losses import IMPROVE_SCORES, Number

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


def copy_advantage(reference: Scores) -> Values:
    """log ref(l|l,x) - log ref(w|l,x), nats [B]: how much the reference prefers to copy a rejected draft.

    At the optimum of SRPO's improve loss h(w|l) - h(l|l) = (p - 1/2) / beta. So the trained model prefers w
    to the copy of l only where (p - 1/2) / beta exceeds this.
    """
    return reference["l|l"] - reference["w|l"]
