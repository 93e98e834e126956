"""Draws what a packed row looks like, from the code that makes it: docs/images/tree.png.

    python -m benchmarks.drawing [--output=docs/images]

Two pairs with prompts of 10 and completions of 5 tokens; left: where the tokens of the first stand, right:
who sees whom in the row of both.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import workload
from benchmarks.workload import Workload
from srpo_jax import objectives
from srpo_jax.models import attention
from srpo_jax.trees.prefix_tree import Rows

OUTPUT = flags.DEFINE_string("output", "docs/images", "folder for tree.png")
WORK = Workload(pairs=2, prompt=10, completion=5)


def draw_tree(plot, rows: Rows, sequences) -> None:
    """Each slot of the first tree at its position, a line of the drawing for each branch."""
    places = {}
    for lane, (name, (prompt, completion)) in enumerate(sequences):
        tokens = (*prompt, *completion)
        for position in range(len(tokens) - 1):
            # A token is drawn with the first sequence that has this beginning.
            beginning = tokens[: position + 1]
            if beginning not in places:
                places[beginning] = lane
                scored = position >= len(prompt)
                plot.plot(position, -lane, "s", color="C1" if scored else "C0", markersize=7)
                above = places.get(tokens[:position], lane)
                plot.plot([position - 1, position], [-above, -lane], "k-", linewidth=0.6, zorder=0)
        plot.text(len(tokens) - 0.4, -lane, name, va="center", fontsize=9)
    used = int(rows.end[0][0])  # the first slot's descendants: the tree
    assert used == len(places), "the drawing must have the slots that the row has"
    separate = sum(len(prompt) + len(completion) for _, (prompt, completion) in sequences)
    plot.set_title(f"one pair: {used} slots instead of {separate} tokens", fontsize=10)
    plot.set(xlabel="position", yticks=[], xlim=(-1, None))
    for side in ("left", "right", "top"):
        plot.spines[side].set_visible(False)


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    needs = objectives.get("srpo").needs
    rows = workload.trees_batch(WORK, needs)["rows"]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10, 4), gridspec_kw={"width_ratios": [1.5, 1]}
    )
    pair = int(rows.pair[0, 0])
    draw_tree(left, rows, list(zip(needs, WORK.sequences(needs)[pair], strict=True)))
    right.imshow(
        np.asarray(attention.dense_mask(jnp.asarray(rows.end)))[0],
        cmap="Blues",
        interpolation="nearest",
    )
    right.set(title="who sees whom, two pairs in a row", xlabel="slot seen", ylabel="slot")
    right.title.set_fontsize(10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
    draw(Path(OUTPUT.value) / "tree.png")


if __name__ == "__main__":
    app.run(main)
