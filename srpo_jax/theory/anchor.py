"""What the likelihood anchor of `srpo` (objective.nll_weight) does to the closed form.

The paper's loss has one minimiser whoever wrote the pairs. The anchor adds the likelihood of the chosen
completion, under the direct prompt and under the improve prompt that shows the rejected one; its own
minimiser is the policy of the winners (`winners`), and that is the behaviour policy's affair. Between the
two the minimiser leaves the closed form, to first order, by (`slope`)

    d log pi = nll_weight / (|y| beta^2) * a direction that depends on the behaviour policy

with |y| the tokens of a completion, 1 here. As in `bandit`: one prompt, K completions, tables.

    python -m srpo_jax.theory.anchor      prints how far, for growing weights, and how far behaviours part
"""

import argparse

import numpy as np

from srpo_jax.runtime.errors import UserError
from srpo_jax.theory import bandit
from srpo_jax.theory.bandit_picture import EXAMPLES, behaviours, largest_move, one_sentence
from srpo_jax.theory.tables import distribution, preference_matrix

WEIGHTS = (0.0001, 0.001, 0.01, 0.1, 1.0)


def winners(preference: np.ndarray, behaviour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Who wins: the distribution [K] of w over pairs of two draws from `behaviour` [K], and [K, K],
    row = l, that of w where l was beaten. Where the anchor alone pulls pi and pi_improve to."""
    preference = preference_matrix(preference)
    behaviour = distribution("behaviour", behaviour, len(preference))
    joint = 2 * preference * np.outer(behaviour, behaviour)  # [w, l]
    return joint.sum(axis=1), (joint / joint.sum(axis=0)).T


def slope(
    preference: np.ndarray,
    behaviour: np.ndarray,
    reference: np.ndarray,
    reference_improve: np.ndarray,
    *,
    beta: float,
    alpha: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(d log pi [K], d log pi_improve [K, K]) / d nll_weight where nll_weight is 0.

    Arguments as those of `bandit.solve` and `bandit.fit`, alpha in (0, 1). The squares are quadratic in
    e(a|b), the move of log pi_improve(a|b) less that of (b|b), and in c(y), that of log pi(y) less that
    of (y|y), so the move solves linear equations: for each pair of actions two of its own, and one
    for each c, whose matrix is diagonal up to a constant. Raises UserError as they do.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha={alpha:g} leaves a part of the policy free: choose it in (0, 1)")
    pi, improve = bandit.solve(preference, reference, reference_improve, beta)
    mu = distribution("behaviour", behaviour, len(pi))
    joint = 2 * np.asarray(preference) * np.outer(mu, mu)  # [w, l]: how often w beats l
    pair = 2 * np.outer(mu, mu)
    pull = joint.sum(axis=1) - pi
    # [a, b]: the pull on e(a|b), and its halves that keep and that change sign with a and b swapped.
    force = joint - improve.T * (2 * mu - pi)
    even, odd = (force + force.T) / 2, (force - force.T) / 2
    share = 2 * (1 - alpha) / (2 - alpha)
    c = (pull - share * odd.sum(axis=1)) / (2 * alpha * share * beta**2 * mu)
    apart = c[:, None] - c[None, :]
    difference = odd / (pair * beta**2 * (2 - alpha)) - share * apart
    e = (difference + even / (pair * alpha * beta**2)) / 2
    np.fill_diagonal(e, 0.0)
    repeated = -(improve.T * e).sum(axis=0)  # the move of log pi_improve(b|b)
    direct = c + repeated
    return direct - pi @ direct, (e + repeated).T


def report(example: str, beta: float, alpha: float) -> str:
    """Rows: weights; how far pi moves from the closed form (total variation), what the slope says of
    it, and how far two behaviour policies part."""
    preference = EXAMPLES[example]
    size = len(preference)
    reference = np.full(size, 1 / size), np.full((size, size), 1 / size)
    exact, _ = bandit.solve(preference, *reference, beta)
    lines = [
        f"example {example!r}, beta {beta:g}, alpha {alpha:g}: pi by nll_weight, largest of "
        f"{len(behaviours(size))} behaviour policies (total variation)",
        "  nll_weight   moves by   to first order   behaviours part by   from the winners",
    ]
    for weight in WEIGHTS:
        fits, first, left = {}, [], []
        for label, mu in behaviours(size).items():
            pi, _ = bandit.fit(
                "srpo", preference, mu, *reference, beta=beta, alpha=alpha, nll_weight=weight
            )
            fits[label] = (pi, None)
            direct, _ = slope(preference, mu, *reference, beta=beta, alpha=alpha)
            first.append(0.5 * np.abs(weight * exact * direct).sum())
            left.append(bandit.total_variation(pi, winners(preference, mu)[0]))
        moved = max(bandit.total_variation(pi, exact) for pi, _ in fits.values())
        lines.append(
            f"  {weight:<10g} {moved:10.4f} {max(first):16.4f} {largest_move(fits):20.4f} "
            f"{max(left):18.4f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_jax.theory.anchor",
        description="How far SRPO's likelihood anchor (objective.nll_weight) moves its exact answer.",
    )
    parser.add_argument("--beta", type=float, default=0.3, help="KL strength (%(default)s)")
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="weight of the improve loss (%(default)s)"
    )
    options = parser.parse_args(arguments)
    with one_sentence():
        for example in EXAMPLES:
            print(report(example, options.beta, options.alpha), end="\n\n")


if __name__ == "__main__":
    main()
