"""The completions of each document, drawn from a policy and kept on disk as they come.

How the k samples of a document are related is config.pairs.draw: `answers` are independent; otherwise the
first is an answer, and each other one
    revisions   is drawn under the improve prompt that shows it,
    endings     begins as it does, up to a word drawn at random, and is written anew from there,
    spans       is it, but for up to SPAN words from there on.
The last two are edits without an editor: they come from the direct prompt alone.
config.sampling.max_new_tokens bounds what is written anew, not what is kept.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from srpo_jax.config import Settings
from srpo_jax.config.settings import HOW, REPLACED
from srpo_jax.data.documents import Document
from srpo_jax.models import decoding_mesh, loading
from srpo_jax.models.decoder import Decoder
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.revision import Branch, Sampling, Trunks, samples
from srpo_jax.runtime import distributed, metrics
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Progress

T = TypeVar("T")
WEIGHTS = "weights of model.source"  # their digest, in files that say what made them
SPAN = 3  # words written anew, at most
# Settings of config.pairs that decide what is drawn; the others choose among what was.
DECISIVE = (
    *("documents", "format", "fields", "split", "skip", "count", "max_prompt_tokens"),
    *("samples", "draw", "temperature", "top_p"),
)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn for a document: its samples, "" for an empty one; how many were cut off."""

    id: str
    texts: tuple[str, ...]
    cut: int


def draw(
    settings: Settings,
    renderer: Renderer,
    documents: Sequence[Document],
    prompts: Sequence[Prompt],
    path: Path,
    weights: str,
) -> list[Drawn]:
    """config.pairs.samples completions of each document, a line each in the JSON lines file `path`.

    weights: a digest of the model's, "" where it is not known. All processes decode, process 0 reads and
    writes; a file of an interrupted attempt is gone on with. The list is process 0's. Raises UserError for
    a file that other settings, weights or documents have made.
    """
    own = settings.pairs
    ids = [document.id for document in documents]
    source = loading.pinned(settings.model.source)  # a run may go on while this is interrupted
    distributed.require_alike(prompts, "puts other prompts")  # it would draw its own rows of them
    header = _header(settings) | {"source": source, "prompts": _digest(prompts)}
    if weights:
        header[WEIGHTS] = weights
    done = distributed.from_main(lambda: _begin(path, header, ids))
    if done < len(ids):
        own_model = settings.model
        given = source, own_model.dtype, settings.mesh, settings.seed
        model = decoding_mesh.load(*given)
        new, positions = settings.sampling.max_new_tokens, model.config.max_length
        _check_lengths(own.draw, ids, prompts, new, positions)
        sampler = _Sampler(model, renderer, _sampling(settings), settings.seed, own.samples)
        size = max(1, settings.sampling.batch_size // own.samples)
        with Progress("sample pairs", len(ids), unit="documents", done=done) as progress:
            for first in range(done, len(ids), size):
                batch = range(first, min(first + size, len(ids)))
                drawn = sampler.draw(own.draw, batch, [prompts[i] for i in batch], ids)
                records = [dataclasses.asdict(one) for one in drawn]
                distributed.from_main(functools.partial(samples.append, path, records))
                progress.advance(len(batch))
    return _read(path) if metrics.is_main() else []


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """k samples a document. Sample j of document i is row i * k + j: what it draws depends on no other."""

    model: Decoder
    renderer: Renderer
    sampling: Sampling
    seed: int
    k: int

    def draw(
        self, how: str, batch: Sequence[int], prompts: Sequence[Prompt], ids: Sequence[str]
    ) -> list[Drawn]:
        k, places = self.k, range(len(batch))
        trunks = Trunks.of(
            self.model,
            [p.direct for p in prompts],
            self.sampling,
            eos=self.renderer.stop_ids,
            seed=self.seed,
        )
        rows = [i * k + j for i in batch for j in range(k)]
        if how == "answers":
            asked = [
                Branch(place, prompts[place].direct, rows[place * k + j])
                for place in places
                for j in range(k)
            ]
            texts, cut = self._write(trunks, asked)
        else:
            asked = [Branch(place, prompts[place].direct, rows[place * k]) for place in places]
            drafts, first_cut = self._write(trunks, asked)
            # A place for each sample but the first, document after document.
            shown = [(place, rows[place * k + j]) for place in places for j in range(1, k)]
            others, other_cut = self._related(how, trunks, prompts, drafts, shown)
            texts, cut = _beside(drafts, others, k), _beside(first_cut, other_cut, k)
        return [
            Drawn(ids[i], tuple(texts[k * place :][:k]), sum(cut[k * place :][:k]))
            for place, i in enumerate(batch)
        ]

    def _related(
        self,
        how: str,
        trunks: Trunks,
        prompts: Sequence[Prompt],
        drafts: Sequence[str],
        shown: Sequence[tuple[int, int]],
    ) -> tuple[list[str], list[bool]]:
        """Samples that show, or begin as, a draft. shown: (place of prompt and draft, row) of each."""
        encode = self.renderer.completion
        if how == "revisions":
            asked = [Branch(i, prompts[i].improve(encode(drafts[i])), row) for i, row in shown]
            return self._write(trunks, asked)
        kept = [_kept(drafts[i], self.seed, row) for i, row in shown]
        begun = [encode(" ".join(beginning), ended=False) for beginning, _ in kept]
        asked = [
            Branch(i, (*prompts[i].direct, *ids), row)
            for (i, row), ids in zip(shown, begun, strict=True)
        ]
        texts, cut = self._write(trunks, asked, begun)
        if how == "endings":
            return texts, cut
        # Of what was written, the span alone stays: where the rest would have ended says nothing.
        spans = []
        for (i, _), (beginning, span), text in zip(shown, kept, texts, strict=True):
            end = len(beginning) + span
            spans.append(" ".join(text.split()[:end] + drafts[i].split()[end:]))
        return spans, [False] * len(spans)

    def _write(
        self,
        trunks: Trunks,
        branches: Sequence[Branch],
        begun: Sequence[Sequence[int]] | None = None,
    ) -> tuple[list[str], list[bool]]:
        """Texts, and whether each was cut off. begun: the tokens that branches end and texts begin with."""
        written = trunks.write(branches)
        before = begun or [()] * len(branches)
        decode = self.renderer.tokenizer.decode
        texts = [decode([*ids, *y]).strip() for ids, y in zip(before, written, strict=True)]
        return texts, [len(y) == self.sampling.max_new_tokens for y in written]


def _beside(first: Sequence[T], others: Sequence[T], k: int) -> list[T]:
    """The first of each document before its k - 1 others."""
    return [
        one
        for place, begin in enumerate(first)
        for one in (begin, *others[(k - 1) * place :][: k - 1])
    ]


def _kept(draft: str, seed: int, row: int) -> tuple[list[str], int]:
    """(words that are kept from the draft's beginning, number of words to write anew), drawn."""
    words = draft.split()
    rng = np.random.default_rng([seed, row])
    return words[: rng.integers(max(1, len(words)))], int(rng.integers(1, SPAN + 1))


def _check_lengths(
    how: str, ids: Sequence[str], prompts: Sequence[Prompt], new: int, positions: int
) -> None:
    """UserError naming the first document whose prompts, with what is shown or kept, leave no room."""
    for name, prompt in zip(ids, prompts, strict=True):
        # Endings and spans stand behind what is kept of an answer.
        before = {"answers": len(prompt.direct), "revisions": prompt.room(new)}
        need = before.get(how, len(prompt.direct) + new) + new
        if need > positions:
            raise UserError(
                f"document {name!r} needs {need} tokens with its completions, the model has {positions} "
                "positions: lower config.pairs.max_prompt_tokens or config.sampling.max_new_tokens"
            )


def _sampling(settings: Settings) -> Sampling:
    own = settings.pairs
    return dataclasses.replace(settings.sampling, temperature=own.temperature, top_p=own.top_p)


def _header(settings: Settings) -> dict[str, Any]:
    pairs = dataclasses.asdict(settings.pairs)
    return {
        "model": dataclasses.asdict(settings.model),  # of it and of sampling see `_what`
        "seed": settings.seed,
        "template": settings.data.template,
        "template_arguments": [*settings.data.template_arguments, settings.data.template_date],
        "sampling": dataclasses.asdict(settings.sampling),
        "pairs": {key: pairs[key] for key in DECISIVE},
    }


def _what(header: Mapping[str, Any]) -> dict[str, Any]:
    """Without what does not change the samples: a run out of memory goes on with fewer rows at a time."""
    kept = dict(header)
    for section in header.keys() & {"model", "sampling"}:
        values, left_out = header[section].items(), HOW + REPLACED
        kept[section] = {k: v for k, v in values if not f"{section}.{k}".startswith(left_out)}
    return kept


def _digest(prompts: Sequence[Prompt]) -> str:
    """Of all that the model sees, whatever the documents are called."""
    ids = [(prompt.direct, prompt.before, prompt.after) for prompt in prompts]
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]


def _begin(path: Path, header: dict[str, Any], ids: list[str]) -> int:
    """How many documents an interrupted attempt with the same settings has sampled.

    What an earlier version did not keep yet, it had.
    """
    kept = json.loads(json.dumps(header))
    before, records = samples.read(path, mend=True) if path.is_file() else (None, [])
    if before is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        samples.append(path, [header])
    elif (now := _what(kept)) | (old := _what(before)) != now:
        key = next(key for key, value in old.items() if now.get(key) != value)
        raise UserError(
            f"{path} was sampled with other settings ({key}: {before[key]!r}): delete it, or use another "
            "--output"
        )
    if [record["id"] for record in records] != ids[: len(records)]:
        raise UserError(
            f"{path} was sampled from other documents: delete it, or use another --output"
        )
    return len(records)


def _read(path: Path) -> list[Drawn]:
    _, records = samples.read(path)
    return [Drawn(record["id"], tuple(record["texts"]), record["cut"]) for record in records]
