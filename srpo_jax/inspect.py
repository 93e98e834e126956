"""The first pairs as the model will see them: texts, ids, tree, what is scored, lengths, what is left out.

    python -m srpo_jax.inspect --config=configs/NAME.py [--first=2] [--config.data.pairs=FILE]

Reads the data and the tokenizer that `train` would read with this configuration; no weights.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from srpo_jax import objectives
from srpo_jax.config import Settings, command
from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.models import loading
from srpo_jax.prompts import Renderer
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import refuse_arguments, run_program
from srpo_jax.training import pipeline
from srpo_jax.training.settings import DataSettings
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.prefix_tree import Tree

TEXT = 100  # characters of a node's text that are shown
BAR = 50


def inspect(settings: Settings, first: int) -> Iterator[str]:
    """Lines of the report. Raises UserError as `train` would for the same settings."""
    source = loading.open_source(settings.model.source)
    names = objectives.get(settings.objective.name).needs
    data = settings.data
    pairs = records.read_pairs(
        data.pairs,
        format=data.format,
        split=data.split,
        fields=data.fields,
        rejected=any("l" in name for name in names),
        distinct=any(name.startswith("l") for name in names),
    )
    renderer = Renderer(data.template, source.tokenizer, data.arguments)
    yield (
        f"{data.pairs}: {len(pairs):,} pairs; {settings.objective.name} scores {', '.join(names)} "
        f"under the template {data.template!r}{_given(data)}"
    )
    slots: list[int] = []
    scored: list[int] = []
    apart = 0
    left_out: Counter[str] = Counter()
    refused: list[str] = []
    for number, pair in enumerate(pairs):
        try:
            sequences = pipeline.pair_sequences(pair, renderer, names, f"{pair.at}{pair.line}")
        except UserError as error:
            if data.refused == "error":
                raise
            refused.append(str(error))
            continue
        tree = prefix_tree.build(sequences)
        if number < first:
            yield from show(pair, tree, names, source.tokenizer)
        longest = max(sum(map(len, segments)) for segments in sequences)
        if longest > source.config.max_length:
            left_out[f"longer than the model's {source.config.max_length} positions"] += 1
        elif data.row_length and len(tree.tokens) > data.row_length:
            left_out[f"more slots than config.data.row_length={data.row_length}"] += 1
        else:
            slots.append(len(tree.tokens))
            scored.extend(int(n) for n in tree.lengths)
            apart += sum(sum(map(len, segments)) for segments in sequences)
    said = [pair.chosen for pair in pairs]
    if any("l" in name for name in names):
        said += [pair.rejected for pair in pairs]
    if padded := sum(text != text.strip() for text in said):
        yield f"completions with white space around them, which is not learned: {padded:,}"
    for reason, count in left_out.items():
        yield f"{count:,} pairs {reason} (config.data.overlong={data.overlong!r})"
    if refused:
        yield f"{len(refused):,} pairs refused (config.data.refused='drop'), the first: {refused[0]}"
    if not slots:
        raise UserError(f"{data.pairs}: none of {len(pairs)} pairs fits")
    yield f"\ntokens of a completion: {_quantiles(scored)}"
    share = sum(slots) / apart
    yield f"slots of a tree: {_quantiles(slots)}; {share:.0%} of the tokens of separate sequences"
    yield from _histogram(slots)


def _given(data: DataSettings) -> str:
    return f" with {', '.join(data.template_arguments)}" if data.template_arguments else ""


def show(pair: Pair, tree: Tree, names: Sequence[str], tokenizer: Tokenizer) -> Iterator[str]:
    """One pair: its nodes, indented by depth, and what is scored."""
    yield f"\npair at {pair.at}{pair.line}, label_prob {pair.label_prob:g}: {len(tree.tokens)} slots"
    for number, run in enumerate(prefix_tree.runs(tree)):
        ids = tree.tokens[run.first : run.last]
        start, indent = int(tree.positions[run.first]), "  " * (run.depth + 1)
        text = "".join(_spelled(tokenizer, ids))
        yield f"{indent}node {number}, positions {start}-{start + len(ids) - 1}: {_short(text)}"
        yield f"{indent}  ids {_ids(ids)}"
    for i, name in enumerate(names):
        ids = tree.target_token[tree.targets_of(i)]
        text = "".join(_spelled(tokenizer, ids))
        yield f"  score {name}: {len(ids)} tokens {_short(text)}"
        yield f"    ids {_ids(ids)}"


def _spelled(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Texts of runs of ids; tokens that decode to nothing (special ones) by their names."""
    parts: list[str] = []
    run: list[int] = []
    for token in map(int, ids):
        if tokenizer.decode([token]):
            run.append(token)
            continue
        parts += [tokenizer.decode(run), tokenizer.token(token)]
        run = []
    return [*parts, tokenizer.decode(run)]


def _short(text: str) -> str:
    half = TEXT // 2
    return repr(text if len(text) <= TEXT else f"{text[:half]} … {text[-half:]}")


def _ids(ids: np.ndarray) -> str:
    shown = [str(i) for i in ids]
    return " ".join(shown if len(shown) <= 16 else [*shown[:8], "…", *shown[-8:]])


def _quantiles(values: Sequence[int]) -> str:
    low, middle, high, most = np.percentile(values, [5, 50, 95, 100])
    return f"{low:.0f} to {high:.0f} (5 to 95 %), median {middle:.0f}, longest {most:.0f}"


def _histogram(values: Sequence[int]) -> Iterator[str]:
    counts, edges = np.histogram(values, bins=min(12, len(set(values))))
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        yield f"{low:7.0f} - {high:5.0f} {'#' * round(BAR * count / counts.max())} {count}"


def _main(arguments: list[str]) -> None:
    refuse_arguments(arguments[1:])
    for line in inspect(command.given(), flags.FLAGS.first):
        print(line)


if __name__ == "__main__":
    flags.DEFINE_integer("first", 2, "pairs that are shown whole")
    command.define_config(("model", "data", "objective"), "file with the settings")
    run_program(_main)
