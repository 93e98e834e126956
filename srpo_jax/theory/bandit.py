"""The exact tabular setting: one prompt, K completions, policies that are tables.

Here SRPO's answer is known in closed form (`solve`), IPO's too (`solve_ipo`), and any smooth
objective of `srpo_jax.objectives` can be minimised to machine precision (`fit`): the same code that
trains a language model, on the expected loss over pairs drawn from a behaviour policy. SRPO's
answer does not move with the behaviour policy; DPO's and IPO's do:

    python -m srpo_jax.theory --output=DIR      draws that, and prints it as a table

A preference matrix is [K, K] float, preference[a, b] = P(a better than b), with P + P^T = 1; it may
be intransitive. An improve policy is [K, K], row = shown completion. All in double precision.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srpo_jax import objectives
from srpo_jax.objectives.losses import IMPROVE_SCORES
from srpo_jax.runtime.errors import UserError
from srpo_jax.theory.tables import distribution, normalised, preference_matrix, total_variation

__all__ = [
    "SMOOTH_OBJECTIVES",
    "Pairs",
    "fit",
    "fit_pairs",
    "population",
    "sample",
    "solve",
    "solve_ipo",
    "total_variation",
]

SMOOTH_OBJECTIVES = tuple(
    name for name, one in objectives.OBJECTIVES.items() if name != "slic" and not one.rewards
)

# Which of (chosen, rejected) each score scores, and which one its prompt shows.
_SCORED_AND_SHOWN = {
    "w": (0, None),
    "l": (1, None),
    "w|l": (0, 1),
    "l|l": (1, 1),
    "w|w": (0, 0),
    "l|w": (1, 0),
}


# --- closed forms -------------------------------------------------------------------------------


def solve(
    preference: np.ndarray, reference: np.ndarray, reference_improve: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """SRPO's solution (Choi et al., arXiv:2406.01660): no behaviour policy appears in it.

        pi_improve(a|b) = ref_improve(a|b) exp(P(a>b) / beta) / Z(b)
        pi(y)           = ref(y) / Z(y), normalised

    Args:
      preference: [K, K], see the module's docstring.
      reference: [K] probabilities under the direct prompt, none of them 0.
      reference_improve: [K, K] probabilities under the improve prompt, row = shown completion.
      beta: KL strength, > 0.

    Returns:
      (pi [K], pi_improve [K, K]), float64.

    Raises:
      UserError: an input is not what it is said to be above.
    """
    preference = preference_matrix(preference)
    reference = distribution("reference", reference, len(preference))
    reference_improve = distribution("reference_improve", reference_improve, len(preference), 2)
    objectives.check_hyperparameters("ipo", beta=beta)
    log_improve = np.log(reference_improve) + preference.T / beta
    log_partition = np.logaddexp.reduce(log_improve, axis=1)
    return (
        normalised(np.log(reference) - log_partition),
        np.exp(log_improve - log_partition[:, None]),
    )


def solve_ipo(
    preference: np.ndarray, behaviour: np.ndarray, reference: np.ndarray, beta: float
) -> np.ndarray:
    """IPO's solution (Azar et al., arXiv:2310.12036): it moves with the behaviour policy mu.

        pi(y) = ref(y) exp(E_{b ~ mu}[P(y>b)] / beta), normalised

    Takes arrays as `solve` and `fit` do; returns pi [K], float64. Raises UserError as they do.
    """
    preference = preference_matrix(preference)
    behaviour = distribution("behaviour", behaviour, len(preference))
    reference = distribution("reference", reference, len(preference))
    objectives.check_hyperparameters("ipo", beta=beta)
    return normalised(np.log(reference) + preference @ behaviour / beta)


# --- any objective, minimised -------------------------------------------------------------------


class Pairs(NamedTuple):
    """Weighted labelled pairs of completions; each array is [N].

    chosen, rejected: int, which completion; label_prob: float, P(chosen is better); weight: float,
    how much of the data the pair is (any scale).
    """

    chosen: np.ndarray
    rejected: np.ndarray
    label_prob: np.ndarray
    weight: np.ndarray


def population(preference: np.ndarray, behaviour: np.ndarray, labels: str = "soft") -> Pairs:
    """All pairs that two independent draws from `behaviour` give, with their probabilities.

    labels "soft": a pair's label_prob is its preference [K*K pairs]; "hard": each pair is there
    under both labels, weighted by the label's probability [2*K*K pairs].
    """
    preference = preference_matrix(preference)
    behaviour = distribution("behaviour", behaviour, len(preference))
    a, b = (index.ravel() for index in np.indices(preference.shape))
    weight, prob = behaviour[a] * behaviour[b], preference[a, b]
    if labels == "soft":
        return Pairs(a, b, prob, weight)
    if labels == "hard":
        return Pairs(
            np.concatenate([a, b]),
            np.concatenate([b, a]),
            np.ones(2 * a.size),
            np.concatenate([weight * prob, weight * (1 - prob)]),
        )
    raise UserError(f"labels must be 'soft' or 'hard', and is {labels!r}")


def sample(preference: np.ndarray, behaviour: np.ndarray, count: int, seed: int) -> Pairs:
    """`count` pairs drawn from `behaviour` with hard labels drawn from `preference`.

    The order and the shape are those of `population(labels="hard")`; weight is how often each
    labelled pair was drawn.
    """
    pairs = population(preference, behaviour, labels="hard")
    drawn = np.random.default_rng(seed).multinomial(count, pairs.weight / pairs.weight.sum())
    return pairs._replace(weight=drawn.astype(np.float64))


def fit(
    objective_name: str,
    preference: np.ndarray,
    behaviour: np.ndarray,
    reference: np.ndarray,
    reference_improve: np.ndarray,
    *,
    labels: str = "soft",
    **hyper: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The policy that minimises an objective's expected loss over pairs from a behaviour policy.

    Args:
      objective_name: one of SMOOTH_OBJECTIVES.
      preference, reference, reference_improve: as in `solve`.
      behaviour: [K] probabilities, none of them 0: who wrote the pairs.
      labels: "soft" or "hard", see `population`; the minimiser is the same ("copg" takes
        soft ones: it reads log-odds).
      **hyper: the objective's hyperparameters.

    Returns:
      (pi [K], pi_improve [K, K], or None for an objective without improve scores), float64.

    Raises:
      UserError: an input is not what it is said to be, or the loss has no single finite minimiser.
    """
    one = objectives.get(objective_name)
    if labels == "soft" and not one.rewards and "l" not in one.needs:
        raise UserError(f"{objective_name!r} reads no label_prob: give labels='hard'")
    pairs = population(preference, behaviour, labels)
    reference = distribution("reference", reference, len(preference))
    return fit_pairs(objective_name, pairs, reference, reference_improve, **hyper)


def fit_pairs(
    objective_name: str,
    pairs: Pairs,
    reference: np.ndarray,
    reference_improve: np.ndarray,
    **hyper: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `fit`, for given pairs (for example sampled ones) in place of the whole population.

    Raises UserError as `fit` does, and where the pairs leave a part of the policy undetermined.
    """
    reference = distribution("reference", reference)
    size = len(reference)
    reference_improve = distribution("reference_improve", reference_improve, size, 2)
    if max(np.max(pairs.chosen), np.max(pairs.rejected)) >= size:
        raise UserError(f"a pair has an action of {size} or more, and reference has {size} actions")
    hyper = {key: value for key, value in hyper.items() if value is not None}
    objectives.check_hyperparameters(objective_name, **hyper)
    objectives.check_label_prob(pairs.label_prob)
    objectives.check_log_odds(objectives.get(objective_name), pairs.label_prob, hyper)
    _check_has_minimiser(objective_name, hyper)
    _check_determined(objective_name, pairs, size)
    static = tuple(sorted((k, v) for k, v in hyper.items() if isinstance(v, str)))
    traced = {k: float(v) for k, v in hyper.items() if not isinstance(v, str)}
    has_improve = bool(set(IMPROVE_SCORES) & set(objectives.get(objective_name).needs))
    on_cpu = jax.default_device(jax.local_devices(backend="cpu")[0])  # TPUs have no float64
    with jax.enable_x64(True), on_cpu:
        # The commonest action: how the others compare with it is what the pairs say best.
        drawn = np.bincount(pairs.chosen, pairs.weight, size)
        held = int(np.argmax(drawn + np.bincount(pairs.rejected, pairs.weight, size)))
        log_reference = (np.log(reference), np.log(reference_improve))
        weighted = Pairs(*pairs[:3], weight=pairs.weight / np.sum(pairs.weight))
        problem = objective_name, static, has_improve, traced, weighted, log_reference, held
        derivatives = partial(_loss_derivatives, *problem)
        free = np.zeros((size - 1) * (size + 1 if has_improve else 1))
        free = _minimise(derivatives, free, objective_name)
        direct, improve = _log_policy(free, log_reference, has_improve, held)
    return np.exp(direct), np.exp(improve) if has_improve else None


def _check_has_minimiser(objective_name: str, hyper: Mapping[str, Any]) -> None:
    if objective_name not in SMOOTH_OBJECTIVES:
        rewards = objectives.get(objective_name).rewards
        why = "is of no policy" if rewards else "is piecewise linear and has many minimisers"
        raise UserError(
            f"the loss of {objective_name!r} {why}: the bandit can fit {', '.join(SMOOTH_OBJECTIVES)}"
        )
    if hyper.get("nll_weight"):
        return  # the likelihood anchor reaches every part of both policies
    if hyper.get("alpha") == 1:
        raise UserError(
            "alpha = 1 leaves the generative policy pi untrained (no term of the loss has it), so "
            "there is nothing to fit it to: choose alpha in (0, 1)"
        )
    if hyper.get("alpha") == 0:
        raise UserError(
            "alpha = 0 trains only the sum of the generative and the improve log-ratios, so that "
            "many pairs of policies minimise the loss: choose alpha in (0, 1)"
        )


def _check_determined(objective_name: str, pairs: Pairs, size: int) -> None:
    """UserError where the pairs compare too little: seen from who meets whom, not from rounding.

    The improve policy, showing b, is told of a only by pairs of a and b. A direct policy is told of
    all actions when comparisons connect them.
    """
    needs = set(objectives.get(objective_name).needs)
    if "l" not in needs:
        return
    met = np.eye(size, dtype=bool)
    drawn = pairs.weight > 0
    met[pairs.chosen[drawn], pairs.rejected[drawn]] = True
    met |= met.T
    if not needs & set(IMPROVE_SCORES):
        met = np.linalg.matrix_power(met.astype(np.float64), size) > 0
    if not met.all():
        a, b = np.argwhere(~met)[0]
        wanted = "compared" if needs & set(IMPROVE_SCORES) else "connected by comparisons"
        raise UserError(
            f"these pairs have many minimisers of {objective_name!r}: every two actions must be "
            f"{wanted}, and {a} and {b} are not"
        )


@partial(jax.jit, static_argnums=2)
def _log_policy(
    free: np.ndarray | Array,
    log_reference: tuple[np.ndarray, np.ndarray],
    has_improve: bool,
    held: int,
) -> tuple[Array, Any]:
    """Log-probabilities (direct [K], improve [K, K]) from unconstrained parameters.

    The parameters are logits added to the reference's, that of action `held` left out as 0: a
    constant added to all logits changes nothing, and Newton's method wants no such direction.

    To the direct logits h(y|y), the improve policy's log-ratio of repeating y, is added too. That
    is a change of coordinates (one to one, so that it moves no minimiser) under which all that
    SRPO squares is linear in the parameters: its loss is a parabola, and has one minimiser.
    """
    log_direct, log_improve = log_reference
    rows = free.reshape(-1, log_direct.shape[0] - 1)
    logits = jnp.insert(rows, held, 0.0, axis=1)
    if not has_improve:
        return jax.nn.log_softmax(log_direct + logits[0]), log_improve
    improve = jax.nn.log_softmax(log_improve + logits[1:])
    direct = jax.nn.log_softmax(log_direct + logits[0] + jnp.diagonal(improve - log_improve))
    return direct, improve


@partial(jax.jit, static_argnums=(0, 1, 2))
def _loss_derivatives(
    objective_name: str,
    static_hyper: tuple[tuple[str, str], ...],
    has_improve: bool,
    hyper: dict[str, float],
    pairs: Pairs,
    log_reference: tuple[np.ndarray, np.ndarray],
    held: int,
    free: np.ndarray,
) -> tuple[Array, Array, Array]:
    """(expected loss, its gradient [F], its Hessian [F, F]) at the parameters `free` [F]."""
    objective = objectives.get(objective_name)
    one_token = {name: jnp.ones_like(pairs.weight) for name in objective.needs}
    completions = (pairs.chosen, pairs.rejected)

    def scores(log_policy: tuple[Any, Any]) -> dict[str, Array]:
        table = jnp.vstack(log_policy)  # row 0: direct, row 1 + b: improve, showing b
        prompts, scored = [], []
        for name in objective.needs:
            which, shown = _SCORED_AND_SHOWN[name]
            prompts.append(
                jnp.zeros_like(pairs.chosen) if shown is None else 1 + completions[shown]
            )
            scored.append(completions[which])
        picked = table[jnp.stack(prompts), jnp.stack(scored)]
        return dict(zip(objective.needs, picked, strict=True))

    def expected_loss(free: Array) -> Array:
        policy = scores(_log_policy(free, log_reference, has_improve, held))
        loss, _ = objective(
            policy,
            scores(log_reference),
            jnp.asarray(pairs.label_prob),
            lengths=one_token,
            **hyper,
            **dict(static_hyper),
        )
        return jnp.vdot(pairs.weight, loss)

    def gradient(free: Array) -> tuple[Array, tuple[Array, Array]]:
        value, gradient = jax.value_and_grad(expected_loss)(free)
        return gradient, (value, gradient)

    hessian, (value, at_free) = jax.jacfwd(gradient, has_aux=True)(free)
    return value, at_free, hessian


def _minimise(
    derivatives: Callable[[np.ndarray], tuple[Array, Array, Array]],
    free: np.ndarray,
    objective_name: str,
) -> np.ndarray:
    """Newton's method with a line search; directions of negative curvature are walked downhill."""
    value, gradient, hessian = (np.asarray(x) for x in derivatives(free))
    small_steps = 0
    for _ in range(300):
        # In units of its own curvature an action that the behaviour hardly ever draws counts too.
        scale = np.sqrt(np.abs(np.diag(hessian))) + 1e-150
        curvature, axes = np.linalg.eigh(hessian / np.outer(scale, scale))
        floor = 1e-13 * np.abs(curvature).max()
        step = -(axes @ ((axes.T @ (gradient / scale)) / np.maximum(np.abs(curvature), floor)))
        step /= scale
        size = np.abs(step).max()
        small_steps = small_steps + 1 if size < 1e-6 else 0
        if size < 1e-10 or small_steps == 5:  # five small ones in a row are rounding errors
            if curvature.min() > 1e-12 * curvature.max():
                return free
            raise UserError(
                f"these pairs have many minimisers of {objective_name!r}, or none: every two "
                "actions must be compared, and no label_smoothing may exceed a preference"
            )
        # Far from the minimum the quadratic model says nothing about steps of many nats.
        step *= min(1.0, 5.0 / size)
        # The last steps change the value by less than its rounding error, which must not stop them.
        rounding = 1e-14 * max(abs(float(value)), 1e-12)
        for halvings in range(60):
            trial = free + step / 2**halvings
            new_value, new_gradient, new_hessian = (np.asarray(x) for x in derivatives(trial))
            if new_value <= value + 1e-4 * (gradient @ step) / 2**halvings + rounding:
                break
        free, value, gradient, hessian = trial, new_value, new_gradient, new_hessian
    raise UserError(
        f"found no finite minimiser of {objective_name!r} for these pairs: there is none where an "
        "action always wins or label_smoothing exceeds a preference, and double precision cannot "
        "see it where the behaviour almost never draws an action; soften the one or the other"
    )
