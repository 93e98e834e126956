"""N-step self-revision: y_0 ~ pi(. | x), y_{k+1} ~ pi+(. | y_k, x), prefilling each token once.

(arXiv:2406.01660, section 4.) A prompt takes a row of a pool: its direct prompt is prefilled and y_0
decoded; then, N times, what an improve prompt has that the cache lacks is prefilled, and the next
completion decoded. A row whose completion is done goes on, or takes up the next prompt, while others still
decode. `plan` says what is prefilled and where in the cache it goes, `pool` are the programs, three for all
prompts of a shape, `engine` runs them.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.models.decoder import Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.revision import plan, programs
from srpo_jax.revision.engine import Engine, Spent
from srpo_jax.revision.plan import Shape
from srpo_jax.revision.prompt_arrays import PromptArrays
from srpo_jax.revision.queue import Queue
from srpo_jax.revision.sampling import Sampling


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

    A completion ends with what the prompts or the tokenizer name: a chat template may end an answer with
    another token than the tokenizer a text.

    What is drawn for a prompt depends on seed and its number in `rows` (by default its index) alone:
    batch size and order of work change nothing. foreseen: the `shapes` of a larger set, of which these
    prompts are a part; by default their own. progress is advanced by the prompts done; the time
    taken is added to `spent`.
    Raises UserError when a prompt and what must follow it do not fit the model's positions.
    """
    stops = [stop for prompt in prompts for stop in prompt.stops]
    ids = revise_ids(
        model,
        prompts,
        n_revisions,
        sampling,
        eos=tuple(dict.fromkeys((*stops, *tokenizer.stop_ids))),
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
    results: list[list[list[int]]] = [[] for _ in prompts]
    for i, ys in revising(
        model,
        prompts,
        n_revisions,
        sampling,
        eos=eos,
        seed=seed,
        rows=rows,
        foreseen=foreseen,
        spent=spent,
    ):
        results[i] = ys
        if progress is not None:
            progress.advance(1)
    return results


def revising(
    model: Decoder,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    eos: int | Sequence[int],
    seed: int = 0,
    rows: Sequence[int] | None = None,
    foreseen: Sequence[Shape] = (),
    spent: Spent | None = None,
) -> Iterator[tuple[int, list[list[int]]]]:
    """`revise_ids` of one prompt after another, (index, [revision][token]), in the order they are done.

    The same order on every process. UserError where there is no improve prompt for a revision.
    """
    stops = (eos,) if isinstance(eos, int) else tuple(eos)
    new = sampling.max_new_tokens
    needs = [prompt.room(new) if n_revisions else len(prompt.direct) for prompt in prompts]
    plan.check_fit(needs, new, model.config.max_length)
    if n_revisions:
        plan.check_improvable(prompts)
    numbers = np.array(range(len(prompts)) if rows is None else rows, np.uint32)
    keys = np.asarray(programs.keys(seed, numbers))
    arrays = PromptArrays.of(prompts)
    engine = Engine.of(model, sampling, stops, Spent() if spent is None else spent)
    # Programs that serve others, too, are compiled for full batches.
    size = sampling.batch_size if foreseen else len(prompts)
    need = plan.Need(new, n_revisions > 0)
    foreseen = foreseen or plan.shapes([prompts], need, sampling.batch_size)
    # One pool at a time, the largest first, so that what does not fit into memory fails at once.
    for shape, mine in plan.by_shape(prompts, need, sampling.batch_size, foreseen):
        yield from Queue(engine.pool(shape, arrays, keys, size), n_revisions, np.array(mine)).run()
