"""Which documents are put to the models, with their prompts."""

from srpo_jax.data import documents
from srpo_jax.data.documents import Document
from srpo_jax.prompts.renderer import Prompt, Renderer
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status


def select(
    name: str, split: str, count: int, max_tokens: int, renderer: Renderer
) -> tuple[list[Document], list[Prompt]]:
    """The first `count` documents whose direct prompt has at most max_tokens tokens.

    Says how many longer ones were passed over. Raises UserError when there are too few.
    """
    chosen: list[Document] = []
    prompts: list[Prompt] = []
    longer = 0
    for document in documents.load(name, split):
        if len(chosen) == count:
            break
        prompt = renderer.prompt(document.prompt)
        if len(prompt.direct) > max_tokens:
            longer += 1
            continue
        chosen.append(document)
        prompts.append(prompt)
    if len(chosen) < count:
        raise UserError(
            f"{name} has {len(chosen)} {split} documents of at most {max_tokens} prompt tokens, fewer "
            f"than the {count} asked for: lower the count or raise max_prompt_tokens"
        )
    status(
        f"{name} ({split}): {count} documents, {longer} longer than {max_tokens} tokens passed over"
    )
    return chosen, prompts
