"""The bandit's pictures: what moves the answer of SRPO, IPO and DPO, and what does not.

Run as `python -m srpo_jax.theory`; `--help` lists the options.
"""

import argparse
import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo_jax import objectives
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.theory import bandit

# Intransitive preferences, P(row better than column): a cycle of three, and four actions of which
# A beats B and C narrowly and loses to D, which both of them beat widely.
EXAMPLES: dict[str, np.ndarray] = {
    "cycle": np.array([[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]]),
    "four": np.array(
        [[0.5, 0.6, 0.6, 0.4], [0.4, 0.5, 0.9, 0.8], [0.4, 0.1, 0.5, 0.9], [0.6, 0.2, 0.1, 0.5]]
    ),
}
OBJECTIVES = ("srpo", "ipo", "dpo")
COLOURS = ("#4c566a", "#0072b2", "#e69f00", "#009e73", "#cc79a7")
BETAS = np.geomspace(0.05, 5.0, 60)


def behaviours(size: int) -> dict[str, np.ndarray]:
    """Full-support behaviour policies [K] over `size` actions: uniform, and 80 % on each action."""
    mostly = np.full((size, size), 0.2 / (size - 1)) + np.eye(size) * (0.8 - 0.2 / (size - 1))
    named = {f"80 % {_letter(action)}": mostly[action] for action in range(size)}
    return {"uniform": np.full(size, 1 / size), **named}


def answers(
    preference: np.ndarray, beta: float, alpha: float
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray | None]]]:
    """objective -> behaviour -> (fitted pi [K], its closed form [K] or None where there is none).

    The reference is uniform under both prompts.
    """
    size = len(preference)
    reference, improve = np.full(size, 1 / size), np.full((size, size), 1 / size)
    exact, _ = bandit.solve(preference, reference, improve, beta)
    table: dict[str, dict[str, tuple[np.ndarray, np.ndarray | None]]] = {}
    for name in OBJECTIVES:
        table[name] = {}
        hyper: dict[str, Any] = {"beta": beta, "alpha": alpha} if name == "srpo" else {"beta": beta}
        for label, behaviour in behaviours(size).items():
            pi, _ = bandit.fit(name, preference, behaviour, reference, improve, **hyper)
            closed = {
                "srpo": exact,
                "ipo": bandit.solve_ipo(preference, behaviour, reference, beta),
            }
            table[name][label] = (pi, closed.get(name))
    return table


def largest_move(fits: Mapping[str, tuple[np.ndarray, np.ndarray | None]]) -> float:
    """The largest total variation between the answers for two behaviour policies."""
    pairs = itertools.combinations([pi for pi, _ in fits.values()], 2)
    return max(bandit.total_variation(p, q) for p, q in pairs)


def report(example: str, preference: np.ndarray, beta: float, alpha: float) -> str:
    """The answers as a table of text."""
    lines = [f"example {example!r}, beta {beta:g}, alpha {alpha:g}, uniform reference"]
    header = " ".join(f"{'pi(' + _letter(a) + ')':>7}" for a in range(len(preference)))
    lines.append(f"  {'objective':<10}{'behaviour':<10} {header}   distance to closed form")
    for name, fits in answers(preference, beta, alpha).items():
        for label, (pi, closed) in fits.items():
            gap = "(none known)" if closed is None else f"{bandit.total_variation(pi, closed):.0e}"
            lines.append(f"  {name:<10}{label:<10} {' '.join(f'{p:7.4f}' for p in pi)}   {gap}")
        lines.append(f"  {name:<10}moves by {largest_move(fits):.4f} between behaviour policies")
    return "\n".join([*lines, "  (distances are total variations)"])


def draw_behaviours(path: Path, preference: np.ndarray, beta: float, alpha: float) -> None:
    """Bars: the fitted answers by behaviour policy; lines across them: the closed forms."""
    figure = Figure(figsize=(11, 3.4))
    axes = figure.subplots(1, len(OBJECTIVES), sharey=True)
    for axis, (name, fits) in zip(axes, answers(preference, beta, alpha).items(), strict=True):
        width = 0.8 / len(fits)
        for k, (label, (pi, closed)) in enumerate(fits.items()):
            at = np.arange(len(pi)) + (k - (len(fits) - 1) / 2) * width
            axis.bar(at, pi, 0.9 * width, color=COLOURS[k % len(COLOURS)], label=label)
            if closed is not None:
                ends = at - width / 2, at + width / 2
                axis.hlines(closed, *ends, color="black", linewidth=1.5, zorder=3)
        axis.set_title(
            f"{name.upper()}: moves by {largest_move(fits):.2f} (total variation)", fontsize=10
        )
        axis.set_xticks(range(len(preference)), [_letter(a) for a in range(len(preference))])
        axis.set_xlabel("completion")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(rf"$\pi(y)$ at the optimum, $\beta$ = {beta:g}")
    axes[0].plot([], [], color="black", label="closed form")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 0.87, 1))
    figure.legend(handles, labels, title="pairs written by", loc="center right", frameon=False)
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")


def draw_hyperparameters(path: Path, preference: np.ndarray, beta: float) -> None:
    """Panels: pi and pi_improve against beta; distance left by descent against alpha."""
    size = len(preference)
    reference, improve = np.full(size, 1 / size), np.full((size, size), 1 / size)
    solved = [bandit.solve(preference, reference, improve, b) for b in BETAS]
    figure = Figure(figsize=(11, 3.4))
    left, middle, right = figure.subplots(1, 3)
    for action in range(size):
        colour = COLOURS[1 + action % (len(COLOURS) - 1)]
        left.plot(BETAS, [pi[action] for pi, _ in solved], color=colour, label=_letter(action))
        improved = [pi_improve[0, action] for _, pi_improve in solved]
        middle.plot(BETAS, improved, color=colour, label=f"{_letter(action)} | A")
    left.set_title(r"generative policy $\pi(y)$", fontsize=10)
    middle.set_title(r"self-improvement policy $\pi^\dagger(y\,|\,\mathrm{A})$", fontsize=10)
    for axis in (left, middle):
        axis.set_xscale("log")
        axis.set_xlabel(r"$\beta$")
        axis.set_ylim(0, 1)
        axis.legend(frameon=False, fontsize=8)
    _draw_descent(right, preference, beta)
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")


def descend(
    preference: np.ndarray, beta: float, alphas: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """SRPO by plain gradient descent on tables of logits from the reference: what is left to learn.

    Uniform reference and behaviour. Gives the distances of (pi, pi_improve) to the exact answer
    after `steps` steps of size 1 / beta^2, mean total variation over shown completions, [alphas].
    """
    size = len(preference)
    uniform, improve = np.full(size, 1 / size), np.full((size, size), 1 / size)
    exact = bandit.solve(preference, uniform, improve, beta)
    shown, other = (index.ravel() for index in np.indices(preference.shape))
    label_prob = jnp.asarray(preference[shown, other])
    objective = objectives.get("srpo")

    def loss(logits: Array, alpha: Array) -> Array:
        log_policy = jax.nn.log_softmax(logits)  # row 0: direct, row 1 + b: improve, showing b
        scores = {"w": log_policy[0, shown], "l": log_policy[0, other]}
        for name, prompt, completion in (
            ("w|l", other, shown),
            ("l|l", other, other),
            ("w|w", shown, shown),
            ("l|w", shown, other),
        ):
            scores[name] = log_policy[1 + prompt, completion]
        reference = {name: jnp.full_like(score, -np.log(size)) for name, score in scores.items()}
        return objective(scores, reference, label_prob, beta=beta, alpha=alpha)[0].mean()

    def train(alpha: Array) -> Array:
        step = lambda _, logits: logits - jax.grad(loss)(logits, alpha) / beta**2
        logits = jax.lax.fori_loop(0, steps, step, jnp.zeros((1 + size, size)))
        return jax.nn.softmax(logits)

    tables = np.asarray(jax.jit(jax.vmap(train))(jnp.asarray(alphas)))
    distances = 0.5 * np.abs(tables - np.vstack([exact[0], exact[1]])).sum(axis=-1)
    return distances[:, 0], distances[:, 1:].mean(axis=1)


def _draw_descent(axis: Axes, preference: np.ndarray, beta: float) -> None:
    alphas = np.linspace(0, 1, 41)
    for steps, style in ((20, "--"), (100, "-")):
        curves = descend(preference, beta, alphas, steps)
        for curve, name, colour in zip(
            curves, (r"\pi", r"\pi^\dagger"), ("#4c566a", "#d55e00"), strict=True
        ):
            axis.plot(alphas, curve, style, color=colour, label=f"${name}$, {steps} steps")
    axis.set_title(rf"distance still to go, $\beta$ = {beta:g}", fontsize=10)
    axis.set_xlabel(r"$\alpha$")
    axis.set_ylabel("total variation to the exact answer", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables and writes the pictures; exits with status 2 on a UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m srpo_jax.theory",
        description="SRPO, IPO and DPO minimised exactly under several behaviour policies, on "
        "intransitive preferences: SRPO's answer does not move, the others' do. Prints tables and "
        "writes bandit_EXAMPLE.png and bandit_hyperparameters.png. Takes about 20 seconds.",
    )
    parser.add_argument("--output", type=Path, default=Path("bandit"), help="folder (%(default)s)")
    parser.add_argument("--beta", type=float, default=0.3, help="KL strength (%(default)s)")
    parser.add_argument(
        "--alpha", type=float, default=0.5, help="weight of the improve loss (%(default)s)"
    )
    options = parser.parse_args(arguments)
    with one_sentence():
        make_folder(options.output)
        for name, preference in EXAMPLES.items():
            print(report(name, preference, options.beta, options.alpha), end="\n\n")
            path = options.output / f"bandit_{name}.png"
            draw_behaviours(path, preference, options.beta, options.alpha)
        draw_hyperparameters(
            options.output / "bandit_hyperparameters.png", EXAMPLES["cycle"], options.beta
        )


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Ends the program with status 2 and the sentence of a UserError."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def make_folder(path: Path) -> None:
    """Makes the folder for pictures; UserError where a file is in the way or it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={path}: {error.strerror}: give another folder") from error
    storage.check_writable(path, "--output")


def _letter(action: int) -> str:
    return chr(ord("A") + action)
