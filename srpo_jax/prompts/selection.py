"""Which documents are put to the models, with their prompts."""

from collections.abc import Hashable, Mapping, Sequence

from srpo_jax.data.documents import Document
from srpo_jax.prompts.renderer import Prompt, Renderer
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status


def select(
    documents: Sequence[Document],
    count: int,
    max_tokens: int,
    renderers: Mapping[str, Renderer],
    name: str,
    skip: int = 0,
) -> tuple[list[Document], dict[str, list[Prompt]]]:
    """`count` documents whose direct prompt has at most max_tokens tokens for every model.

    They are the first ones behind `skip` others of that length, which somebody else uses.

    renderers: of each model; without any, no document is too long. name: of the set, for messages. Returns
    the documents and each model's prompts. Says how many longer ones were passed over. Raises UserError
    when there are too few.
    """
    # Models that read alike share a renderer's work.
    alike: dict[Hashable, Renderer] = {r.fingerprint: r for r in renderers.values()}
    chosen: list[Document] = []
    prompts: dict[Hashable, list[Prompt]] = {key: [] for key in alike}
    longer = 0
    for document in documents:
        if len(chosen) == skip + count:
            break
        rendered = {key: _prompt(r, document, name) for key, r in alike.items()}
        if any(len(prompt.direct) > max_tokens for prompt in rendered.values()):
            longer += 1
            continue
        chosen.append(document)
        for key, prompt in rendered.items():
            prompts[key].append(prompt)
    if len(chosen) < skip + count:
        asked = f"{skip} to skip and {count} more" if skip else str(count)
        raise UserError(
            f"{name} has {len(chosen)} documents of at most {max_tokens} prompt tokens, fewer "
            f"than the {asked} asked for: lower the count or raise max_prompt_tokens"
        )
    behind = f" behind the first {skip}" if skip else ""
    status(
        f"{name}: {count} documents{behind}, {longer} longer than {max_tokens} tokens passed over"
    )
    return chosen[skip:], {m: prompts[r.fingerprint][skip:] for m, r in renderers.items()}


def _prompt(renderer: Renderer, document: Document, name: str) -> Prompt:
    try:
        return renderer.prompt(document.prompt)
    except UserError as error:
        raise UserError(f"document {document.id!r} of {name}: {error}") from error
