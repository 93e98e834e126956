"""N-step self-revision: y_0 ~ pi(. | x), y_{k+1} ~ pi+(. | y_k, x), prefilling each token once.

(arXiv:2406.01660, section 4.) The direct prompt is prefilled and y_0 decoded; then, N times, what an
improve prompt has that the cache lacks is prefilled, and the next completion decoded. `plan` says what that
is and where in the cache it goes, `engine` runs it. Three jitted programs serve any number of revisions.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.models.decoder import Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.revision import programs
from srpo_jax.revision.engine import Engine, Spent
from srpo_jax.revision.plan import Plan, Shape, check_fit, shapes, start
from srpo_jax.revision.sampling import Sampling

Array = jax.Array


class Progress(Protocol):
    """What is told how far the work is; runtime.metrics.Progress is one."""

    def advance(self, steps: int) -> None: ...


def revise(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    foreseen: Sequence[Shape] = (),
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[list[str]]:
    """For each prompt the texts [y_0, …, y_N]; only the last revision is shown, not the history.

    What is drawn for a prompt depends on seed and its number in `rows` (by default its index) alone:
    batch size and order of work change nothing. foreseen: the `shapes` of a larger set, of which these
    prompts are a part; by default their own. progress is advanced by the prompts done; the time
    taken is added to `spent`.
    Raises UserError when a prompt and what must follow it do not fit the model's positions.
    """
    ids = revise_ids(
        model,
        prompts,
        n_revisions,
        sampling,
        eos=tokenizer.stop_ids,
        seed=seed,
        rows=rows,
        foreseen=foreseen,
        progress=progress,
        spent=spent,
    )
    return [[tokenizer.decode(y).strip() for y in row] for row in ids]


def revise_ids(
    model: Decoder,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    eos: int | Sequence[int],
    seed: int = 0,
    rows: Sequence[int] | None = None,
    foreseen: Sequence[Shape] = (),
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[list[list[int]]]:
    """`revise` in token ids, [prompt][revision][token], without end of sequence.

    eos: what ends a completion, one token or any of several.
    """
    stops = (eos,) if isinstance(eos, int) else tuple(eos)
    new = sampling.max_new_tokens
    needs = [prompt.room(new) for prompt in prompts]
    check_fit(needs, new, model.config.max_length)
    numbers = jnp.array(range(len(prompts)) if rows is None else rows, jnp.uint32)
    keys = programs.keys(seed, numbers)
    engine = Engine.of(model, sampling, stops, Spent() if spent is None else spent)
    foreseen = foreseen or shapes([prompts], new, sampling.batch_size)
    results: list[list[list[int]]] = [[] for _ in prompts]
    # Rows of a batch are padded to its longest; the longest batch first, so that what does not fit into
    # memory fails at once.
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].direct))
    for first in range(0, len(prompts), sampling.batch_size):
        chosen = by_length[first : first + sampling.batch_size]
        # A short last batch repeats a row rather than compile another program.
        full = chosen + chosen[-1:] * (engine.rows(len(prompts)) - len(chosen))
        written = revise_batch(
            engine, [prompts[i] for i in full], n_revisions, keys[np.array(full)], foreseen
        )
        for i, row in enumerate(chosen):
            results[row] = [ys[i] for ys in written]
        if progress is not None:
            progress.advance(len(chosen))
    return results


def revise_batch(
    engine: Engine,
    prompts: Sequence[Prompt],
    n_revisions: int,
    keys: Array,
    foreseen: Sequence[Shape] = (),
) -> list[list[list[int]]]:
    """[revision][row][token]; keys: one a row."""
    plan = Plan.of(prompts, n_revisions, engine.max_new_tokens, foreseen)
    rows = plan.direct()
    logits, cache = engine.prefill(rows)
    ys, answer = engine.decode(cache, logits, start(rows, keys, 0))
    cache = plan.keep(cache, answer)
    written = [ys]
    for revision in range(1, n_revisions + 1):
        rows = plan.improve(revision, ys)
        logits, cache = engine.extend(cache, rows)
        ys, _ = engine.decode(cache, logits, start(rows, keys, revision))
        written.append(ys)
    return written
