"""The losses of the table of objectives: pure functions from the scores of pairs to a loss per pair.

A score is the log-probability of one completion under one prompt, summed over its tokens; its
name says which: "w", "l" (chosen, rejected, under the direct prompt) and "w|l", "l|l", "w|w",
"l|w" (completion | completion shown in the improve prompt). "w_end", "l_end" are no log-probabilities
but rewards, which a reward model reads at the end of the completion. Notation of the docstrings:

    g(y)   = log pi(y|x) - log ref(y|x)                      log-ratio under the direct prompt
    h(a|b) = log pi_improve(a|b,x) - log ref_improve(a|b,x)  log-ratio under the improve prompt
    p      = label_prob, the probability that chosen is better (1 for a hard label)
    |y|    = number of scored tokens of y
    sigma  = the logistic function

Every loss of a pair but `copg` takes soft labels as the mean over the two labels,
p L(w, l) + (1-p) L(l, w); squared losses drop the constant of that mean and regress to the mean label,
which has the same gradient. `sft` looks at the chosen completion alone and reads no label.

Arguments are arrays [B] by score name (policy, reference), label_prob [B], `lengths` (numbers of
scored tokens [B] by score name) where a loss declares it, and hyperparameters; a default is the
named paper's. Each gives (loss [B], metrics of its own [B] by name) in the precision of its input.

KTO is not here: its reference point is an average over completions scored under *other* prompts of
the batch, so it is no function of one pair's scores.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from srpo_jax.runtime.errors import UserError

# A value for each pair: [B], or a single one where a batch is mapped over.
Values = Float[Array, "*B"]
Scores = Mapping[str, Values]
Number = float | int | Array  # a hyperparameter; an array where it is differentiated or swept
Metrics = dict[str, Values]

DIRECT_SCORES = ("w", "l")
IMPROVE_SCORES = ("w|l", "l|l", "w|w", "l|w")
REWARD_SCORES = ("w_end", "l_end")


def srpo(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    lengths: Scores | None = None,
    beta: Number,
    alpha: Number,
    nll_weight: Number = 0.0,
) -> tuple[Values, Metrics]:
    """Self-improving robust preference optimisation (Choi et al., arXiv:2406.01660): the
    offline loss L_alpha, for soft labels.

        L_improve    = (p - 1/2 - beta [h(w|l) - h(l|l)])^2 + (p - 1/2 - beta [h(w|w) - h(l|w)])^2
        L_generative = (2p - 1 - beta [h(w|l) - h(l|w) + g(w) - g(l)])^2
        L            = (1 - alpha) L_generative + alpha L_improve

    alpha = 1 leaves the generative policy untrained (L_improve has no g); alpha = 0 fixes only the
    sum h(w|l) - h(l|w) + g(w) - g(l), not its parts.

    nll_weight > 0 adds an anchor that is not the paper's, and needs `lengths`. The squares fix only
    differences of log-ratios; the anchor holds the level of the chosen completion's, under both prompts:

        L + nll_weight [p a(w, l) + (1 - p) a(l, w)]
        a(w, l) = -[log pi(w|x) + log pi_improve(w|l,x)] / |w|

    Extra metrics: loss_generative, loss_improve (the two parts, unweighted); margin_generative =
    beta [h(w|l) - h(l|w) + g(w) - g(l)]; margin_improve = beta times the mean of the two improve
    differences; accuracy_improve, the mean of their two accuracies; with nll_weight also loss_nll, the
    anchor unweighted.
    """
    g = log_ratios(scores, reference)
    shown_rejected = beta * (g["w|l"] - g["l|l"])
    shown_chosen = beta * (g["w|w"] - g["l|w"])
    margin = beta * (g["w"] - g["l"])
    margin_generative = beta * (g["w|l"] - g["l|w"]) + margin
    loss_improve = (label_prob - 0.5 - shown_rejected) ** 2 + (label_prob - 0.5 - shown_chosen) ** 2
    loss_generative = (2 * label_prob - 1 - margin_generative) ** 2
    loss = (1 - alpha) * loss_generative + alpha * loss_improve
    anchor: Metrics = {}
    if isinstance(nll_weight, Array) or nll_weight != 0:
        anchor = {"loss_nll": _anchor(scores, label_prob, lengths)}
        loss = loss + nll_weight * anchor["loss_nll"]
    return loss, anchor | {
        "loss_generative": loss_generative,
        "loss_improve": loss_improve,
        "margin": margin,
        "margin_generative": margin_generative,
        "margin_improve": (shown_rejected + shown_chosen) / 2,
        "accuracy_improve": (
            accuracy(shown_rejected, label_prob) + accuracy(shown_chosen, label_prob)
        )
        / 2,
    }


def dpo(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    beta: Number = 0.1,
    label_smoothing: Number = 0.0,
) -> tuple[Values, Metrics]:
    """Direct preference optimisation (Rafailov et al., arXiv:2305.18290, equation 7).

        L = -p' log sigma(m) - (1 - p') log sigma(-m),    m = beta [g(w) - g(l)]

    with p' = (1 - label_smoothing) p + label_smoothing (1 - p). label_smoothing > 0 is the
    conservative DPO (cDPO) of Mitchell, "A note on DPO with noisy preferences", 2023.
    """
    margin = _direct_margin(scores, reference, beta)
    smoothed = _smoothed(label_prob, label_smoothing)
    return _label_mean(_logistic_loss, margin, smoothed), {"margin": margin}


def robust_dpo(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    beta: Number = 0.1,
    label_smoothing: Number,
) -> tuple[Values, Metrics]:
    """DPO unbiased under labels flipped at a known rate (Chowdhury et al., arXiv:2403.00409).

        L = [(1 - e) l(m) - e l(-m)] / (1 - 2e),    l(m) = -log sigma(m), m = beta [g(w) - g(l)]

    with e = label_smoothing in [0, 1/2), the flip rate; its mean over flipped labels is the DPO
    loss of the true labels. For a soft label p the loss is p L(m) + (1 - p) L(-m). It is not
    bounded below when p < e or p > 1 - e: a hard label's loss can go to minus infinity.
    """
    margin = _direct_margin(scores, reference, beta)
    unflipped = (label_prob - label_smoothing) / (1 - 2 * label_smoothing)
    return _label_mean(_logistic_loss, margin, unflipped), {"margin": margin}


def ipo(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    lengths: Scores | None = None,
    beta: Number,
    reduction: str = "sum",
) -> tuple[Values, Metrics]:
    """Identity preference optimisation (Azar et al., arXiv:2310.12036, equation 17; tau is beta).

        L = (g(w) - g(l) - (2p - 1) / (2 beta))^2

    reduction "sum" is the paper's; "mean" divides every log-ratio by its completion's |y| and needs
    `lengths`.
    """
    g = log_ratios(scores, reference)
    if reduction == "mean":
        g = _per_token(g, lengths, "ipo")
    difference = g["w"] - g["l"]
    loss = (difference - (2 * label_prob - 1) / (2 * beta)) ** 2
    return loss, {"margin": beta * difference}


def copg(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    beta: Number = 0.1,
    label_smoothing: Number,
) -> tuple[Values, Metrics]:
    """Contrastive policy gradient (Flet-Berliac et al., arXiv:2406.19185) on pairs that anybody wrote.

        L = -(r - beta/2 d) d,    d = g(w) - g(l),    r = log p' - log (1 - p')

    with p' = (1 - label_smoothing) p + label_smoothing (1 - p): r is the difference of the two rewards that
    a label says by Bradley and Terry, so a hard label needs label_smoothing > 0. Smallest at beta d = r, as
    DPO is, from which it differs by a square in place of a logarithm. It is the one loss here that is not
    the mean over the two labels: that would be `ipo`. `online.copg` is the same for rewards of a judge.
    """
    difference = _direct_margin(scores, reference, 1.0)
    smoothed = _smoothed(label_prob, label_smoothing)
    gain = jnp.log(smoothed) - jnp.log1p(-smoothed)
    loss = -(gain - beta / 2 * difference) * difference
    return loss, {"margin": beta * difference}


def slic(
    scores: Scores, reference: Scores, label_prob: Array, *, beta: Number
) -> tuple[Values, Metrics]:
    """Sequence likelihood calibration with a hinge, against a reference ("hinge-norm", Liu et al.,
    arXiv:2309.06657, section 3).

        L = p max(0, 1 - m) + (1 - p) max(0, 1 + m),    m = beta [g(w) - g(l)]

    SLiC-HF (Zhao et al., arXiv:2305.10425) is this with a constant reference, times its margin
    delta = 1 / beta, and without its added likelihood term.
    """
    margin = _direct_margin(scores, reference, beta)
    return _label_mean(lambda m: jnp.maximum(0, 1 - m), margin, label_prob), {"margin": margin}


def rpo(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    lengths: Scores | None = None,
    beta: Number = 0.1,
    nll_weight: Number = 1.0,
) -> tuple[Values, Metrics]:
    """DPO plus the likelihood of the chosen completion (Pang et al., arXiv:2404.19733, equation 1).

        L = L_DPO - nll_weight [p log pi(w|x) / |w| + (1 - p) log pi(l|x) / |l|]

    Needs `lengths`. Extra metrics: loss_preference, loss_nll (the two parts, unweighted).
    """
    margin = _direct_margin(scores, reference, beta)
    preference = _label_mean(_logistic_loss, margin, label_prob)
    mean = _per_token(scores, lengths, "rpo")
    nll = -(label_prob * mean["w"] + (1 - label_prob) * mean["l"])
    return preference + nll_weight * nll, {
        "loss_preference": preference,
        "loss_nll": nll,
        "margin": margin,
    }


def simpo(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    lengths: Scores | None = None,
    beta: Number,
    gamma: Number,
) -> tuple[Values, Metrics]:
    """Simple preference optimisation, no reference (Meng et al., arXiv:2405.14734, equation 6).

        L = -p log sigma(m - gamma) - (1 - p) log sigma(-m - gamma),
        m = beta [log pi(w|x) / |w| - log pi(l|x) / |l|]

    Needs `lengths`. The metric margin is m, before gamma is taken off.
    """
    mean = _per_token(scores, lengths, "simpo")
    margin = beta * (mean["w"] - mean["l"])
    loss = _label_mean(lambda m: _logistic_loss(m - gamma), margin, label_prob)
    return loss, {"margin": margin}


def orpo(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    lengths: Scores | None = None,
    odds_weight: Number = 0.1,
) -> tuple[Values, Metrics]:
    """Odds-ratio preference optimisation, no reference (Hong et al., arXiv:2403.07691, equations 6
    and 7; lambda is odds_weight).

        L = -[p log P(w) + (1-p) log P(l)] - odds_weight [p log sigma(m) + (1-p) log sigma(-m)]
        log P(y) = log pi(y|x) / |y|,    m = log odds P(w) - log odds P(l)

    Needs `lengths`. It has no beta: the metric margin is m. Extra metrics: loss_preference,
    loss_nll (the two parts, unweighted).
    """
    mean = _per_token(scores, lengths, "orpo")
    log_odds = {name: x - _log1mexp(x) for name, x in mean.items()}
    margin = log_odds["w"] - log_odds["l"]
    preference = _label_mean(_logistic_loss, margin, label_prob)
    nll = -(label_prob * mean["w"] + (1 - label_prob) * mean["l"])
    return nll + odds_weight * preference, {
        "loss_preference": preference,
        "loss_nll": nll,
        "margin": margin,
    }


def sft(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    lengths: Scores | None = None,
    reduction: str = "sum",
) -> tuple[Values, Metrics]:
    """Supervised fine-tuning on the chosen completion: L = -log pi(w|x).

    reduction "mean" divides by |w| and needs `lengths`. Reads neither label nor reference.
    """
    if reduction == "mean":
        scores = _per_token(scores, lengths, "sft")
    return -scores["w"], {}


def sft_improve(
    scores: Scores,
    reference: Scores,
    label_prob: Values,
    *,
    lengths: Scores | None = None,
    reduction: str = "sum",
    direct_weight: Number = 1.0,
) -> tuple[Values, Metrics]:
    """Supervised fine-tuning under both prompts: teaches the improve prompt before preferences do.

        L = -log pi_improve(w|l,x) - direct_weight log pi(w|x)

    w is an edit of the draft l. reduction "mean" divides by |w| and needs `lengths`. Reads neither label
    nor reference.
    """
    if reduction == "mean":
        scores = _per_token(scores, lengths, "sft_improve")
    return -scores["w|l"] - direct_weight * scores["w"], {}


def reward(scores: Scores, reference: Scores, label_prob: Values) -> tuple[Values, Metrics]:
    """A reward model's likelihood of the labels, by Bradley and Terry (Ouyang et al., arXiv:2203.02155,
    equation 1).

        L = -p log sigma(m) - (1 - p) log sigma(-m),    m = r(w) - r(l)

    Reads no reference. Extra metrics: reward_chosen r(w), reward_rejected r(l).
    """
    chosen, rejected = scores["w_end"], scores["l_end"]
    margin = chosen - rejected
    said = {"margin": margin, "reward_chosen": chosen, "reward_rejected": rejected}
    return _label_mean(_logistic_loss, margin, label_prob), said


# --- shared pieces --------------------------------------------------------------------------------


def log_ratios(scores: Scores, reference: Scores) -> dict[str, Values]:
    """score name -> log pi - log ref, for the names that both have."""
    return {name: scores[name] - reference[name] for name in scores if name in reference}


def accuracy(margin: Values, label_prob: Values) -> Values:
    """1 where the margin's sign is the one that the label asks for, 0 where it is the other, 1/2
    where either is undecided (before the first step every margin is 0)."""
    return (1 + jnp.sign(margin) * jnp.sign(label_prob - 0.5)) / 2


def _direct_margin(scores: Scores, reference: Scores, beta: Number) -> Values:
    g = log_ratios(scores, reference)
    return beta * (g["w"] - g["l"])


def _anchor(scores: Scores, label_prob: Values, lengths: Scores | None) -> Values:
    """Minus log-probability per token of the chosen completion, direct and improve prompt summed."""
    named = {name: scores[name] for name in ("w", "l", "w|l", "l|w")}
    mean = _per_token(named, lengths, "srpo")
    chosen, rejected = mean["w"] + mean["w|l"], mean["l"] + mean["l|w"]
    return -(label_prob * chosen + (1 - label_prob) * rejected)


def _label_mean(loss: Callable[[Values], Values], margin: Values, label_prob: Values) -> Values:
    """The mean of loss(margin) over the two labels."""
    return label_prob * loss(margin) + (1 - label_prob) * loss(-margin)


def _smoothed(label_prob: Values, label_smoothing: Number) -> Values:
    """The probability of a label of which a share is flipped."""
    return (1 - label_smoothing) * label_prob + label_smoothing * (1 - label_prob)


def _logistic_loss(margin: Values) -> Values:
    return -jax.nn.log_sigmoid(margin)


def _per_token(values: Scores, lengths: Scores | None, objective: str) -> dict[str, Values]:
    """Every value divided by its completion's number of tokens."""
    if lengths is None or (missing := [name for name in values if name not in lengths]):
        name = "'w'" if lengths is None else repr(missing[0])
        raise UserError(
            f"objective {objective!r} divides by the number of tokens and was not given that of "
            f"{name}: give `lengths`, or choose reduction 'sum' where the objective has one"
        )
    return {name: value / lengths[name] for name, value in values.items()}


def _log1mexp(x: Values) -> Values:
    """log(1 - exp(x)) for x < 0, exact near 0 and far below it, with finite gradients."""
    # A completion of probability exactly 1 has infinite odds: held at the nearest float below 1.
    x = jnp.minimum(x, -jnp.finfo(x.dtype).eps)
    near = x > -math.log(2)
    log_of_near = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    return jnp.where(near, log_of_near, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))
