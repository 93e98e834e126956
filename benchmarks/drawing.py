"""Draws what a packed row looks like, from the code that makes it: docs/images/tree.png.

    python -m benchmarks.drawing [--output=docs/images]

Two pairs with prompts of 10 and completions of 5 tokens; left: where the slots of the first stand, right:
who sees whom in the row of both. Some slots are marked in both, with `end`, which says who sees them.
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
PROMPT, COMPLETION, SEEN = "#5b8ec4", "#e8a04c", "#cfe0f2"
MARKS = ("#c0262d", "#7b3fa0", "#1f8a4c", "#111111")


def draw_tree(plot, rows: Rows, sequences) -> dict[int, tuple[int, int]]:
    """Each slot of the first tree at its position, a line of the drawing for each branch.

    Returns slot -> (position, line).
    """
    slots = {}  # beginning of a sequence -> slot; the row's order is that of the sequences
    at = {}
    for lane, (name, (prompt, completion)) in enumerate(sequences):
        tokens = (*prompt, *completion)
        for position in range(len(tokens) - 1):
            # A token is drawn with the first sequence that has this beginning.
            beginning = tokens[: position + 1]
            if beginning in slots:
                continue
            slot = slots[beginning] = len(slots)
            at[slot] = position, lane
            assert rows.tokens[0, slot] == tokens[position]
            colour = COMPLETION if position >= len(prompt) else PROMPT
            plot.plot(position, -lane, "s", color=colour, markersize=12)
            plot.text(position, -lane, slot, ha="center", va="center", fontsize=7, color="white")
            if position:
                _, above = at[slots[tokens[:position]]]
                plot.plot([position - 1, position], [-above, -lane], "k-", linewidth=0.6, zorder=0)
        plot.text(len(tokens) - 0.2, -lane, name, va="center", fontsize=10)
    used = int(rows.end[0][0])  # the first slot's descendants: the tree
    assert used == len(slots), "the drawing must have the slots that the row has"
    separate = sum(len(prompt) + len(completion) for _, (prompt, completion) in sequences)
    plot.set_title(f"one pair: {used} slots instead of {separate} tokens", fontsize=11)
    last = max(position for position, _ in at.values())
    plot.set(xlabel="position", yticks=[], xticks=range(0, last + 1, 3), xlim=(-0.7, last + 2.5))
    plot.set_ylim(-len(sequences) + 0.4, 0.7)
    for side in ("left", "right", "top"):
        plot.spines[side].set_visible(False)
    return at


def draw_mask(plot, rows: Rows) -> None:
    from matplotlib.colors import ListedColormap

    seen = np.asarray(attention.dense_mask(jnp.asarray(rows.end)))[0]
    used = np.count_nonzero(rows.end[0])
    plot.imshow(
        np.where(seen, 1.0, 0.0)[:used, :used],
        cmap=ListedColormap(["white", SEEN]),
        interpolation="nearest",
    )
    plot.set_title("who sees whom, two pairs in a row", fontsize=11)
    plot.set(xlabel="slot seen (k)", ylabel="slot that sees (q)", xticks=range(0, used, 15))
    plot.set_yticks(range(0, used, 15))


def mark(left, right, rows: Rows, at: dict[int, tuple[int, int]]) -> None:
    """Marks where the tree parts, in both halves: q sees k exactly when k <= q < end[k]."""
    lanes = [lane for _, lane in at.values()]
    parting = [slot for slot in at if slot and lanes[slot] != lanes[slot - 1]]
    # The first slot, the one where w and l part, and two with which a branch begins.
    chosen = (0, at[parting[0]][0] - 1, parting[1], parting[2])
    for slot, colour in zip(chosen, MARKS, strict=True):
        end = int(rows.end[0, slot])
        position, lane = at[slot]
        left.plot(position, -lane, "s", mfc="none", mec=colour, markersize=15, mew=2)
        label = f"slot {slot}: end {end}, seen by {slot} … {end - 1}"
        right.plot([slot, slot], [slot - 0.5, end - 0.5], color=colour, linewidth=2.5, label=label)
    right.legend(fontsize=8, loc="upper right", frameon=False, borderaxespad=0.8)


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    needs = objectives.get("srpo").needs
    rows = workload.trees_batch(WORK, needs)["rows"]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 4.6), gridspec_kw={"width_ratios": [1.45, 1]}
    )
    pair = int(rows.pair[0, 0])
    at = draw_tree(left, rows, list(zip(needs, WORK.sequences(needs)[pair], strict=True)))
    draw_mask(right, rows)
    mark(left, right, rows, at)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
    draw(Path(OUTPUT.value) / "tree.png")


if __name__ == "__main__":
    app.run(main)
