"""What will be compared, before all of it is written: an estimate of what judging costs needs no more.

In place of completions that are not there stand texts of their greatest length, no two of them equal, so
that an estimate made of them is the most that judging can cost.
"""

from pathlib import Path

from srpo_jax.config import Settings
from srpo_jax.data import document_sets
from srpo_jax.evaluation import store, writing
from srpo_jax.evaluation.contestants import Contestants
from srpo_jax.evaluation.store import Chosen
from srpo_jax.models import loading
from srpo_jax.revision import samples
from srpo_jax.revision.samples import Written
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

CHARACTERS = 4  # a token, as the judge's estimate has it


def texts(
    settings: Settings, workdir: Path, who: Contestants
) -> tuple[list[Chosen], list[Written]]:
    """The documents, and what every contestant has written on them or, where it has not, stand-ins.

    Nothing is written, and of a model its tokenizer alone is read, to choose documents that it can read;
    a model that is not there yet has no say. Says what is taken for what. Raises UserError for sets and
    files of outputs that cannot be read.
    """
    own = settings.evaluate
    sets = document_sets.resolve(own.documents, own.split)
    if store.has_documents(workdir, sets):
        chosen = store.read_documents(workdir, sets)
    else:
        chosen, _ = writing.choose(settings, _there(who))
    found: list[Written] = []
    missing: list[str] = []
    for one in chosen:
        for name in who.names:
            path = store.samples_path(workdir, name, one.name)
            if name in who.outputs and not path.is_file():
                records = samples.outputs(
                    who.outputs[name], one.name, one.ids, one.all_ids or one.ids
                )
                revisions = tuple(tuple(record["revisions"]) for record in records)
                found.append(Written(name, one.name, one.ids, revisions))
                continue
            try:
                found.append(samples.written(path, name, one.name, one.ids))
            except UserError:
                missing.append(f"{name} on {one.name}")
                found.append(_stand_in(settings, name, one))
    if missing:
        status(
            f"not all written yet: {', '.join(missing)}. In its place stand {own.revisions + 1} different "
            f"completions a document of config.sampling.max_new_tokens={settings.sampling.max_new_tokens} "
            "tokens, so the following is about the most that it can be"
        )
    return chosen, found


def _there(who: Contestants) -> dict[str, str]:
    """The models whose tokenizer can be read, by name; says which cannot."""
    found = {}
    for name, source in who.models.items():
        try:
            loading.load_tokenizer(source)
        except UserError as error:
            status(f"documents are chosen without the model {name!r}: {error}")
        else:
            found[name] = source
    return found


def _stand_in(settings: Settings, name: str, chosen: Chosen) -> Written:
    length = CHARACTERS * settings.sampling.max_new_tokens
    ks = range(settings.evaluate.revisions + 1)
    revisions = tuple(
        tuple(f"{name} {i} {k} ".ljust(length, "x") for k in ks) for i in range(len(chosen.ids))
    )
    return Written(name, chosen.name, chosen.ids, revisions)
