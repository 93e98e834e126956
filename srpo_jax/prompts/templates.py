"""The templates: what is put around x, and around a completion to improve."""

import dataclasses

X, Y = "\ue000", "\ue001"  # private-use characters: where x and the shown completion go


@dataclasses.dataclass(frozen=True)
class Template:
    """Both prompts. direct holds X once; improve holds X and, later, Y once.

    chat: each text is a turn, the user's and the assistant's in alternation, behind the system's;
    otherwise a prompt is a single text.
    """

    direct: tuple[str, ...] = (X,)
    improve: tuple[str, ...] = ()
    chat: bool = False
    system: str = ""
    improvement: str = ""  # for conversations: what the user says to an answer to get a better one

    @property
    def asked(self) -> str:
        """How the direct prompt is put, for people to read: "…" is x."""
        system = f"system {self.system!r}, " if self.system else ""
        return f"{system}each prompt as {self.direct[0].replace(X, '…')!r}"


_DESCRIBE = f"{X}\n\nDescribe this in one short phrase."
_SYSTEM = "You describe texts precisely and concisely."

TEMPLATES = {
    "plain": Template(
        direct=(f"{X}\n\nSummary of this text:\n",),
        improve=(
            f"{X}\n\nSummary of this text, a draft:\n{Y}\n\nSummary of this text, improved:\n",
        ),
    ),
    "chat": Template(
        direct=(_DESCRIBE,),
        improve=(f"{X}\n\nDescription: {Y}\n\nWrite a better description in one short phrase.",),
        chat=True,
        system=_SYSTEM,
    ),
    # The direct answer is the beginning of the improve prompt that shows it: the tree is smaller.
    "chained": Template(
        direct=(_DESCRIBE,),
        improve=(_DESCRIBE, Y, "Write a better description in one short phrase."),
        chat=True,
        system=_SYSTEM,
    ),
    # x is a conversation as it is: assistants, multi-turn data. A text is its first turn.
    "dialogue": Template(
        chat=True,
        improvement="Can you improve your answer? Write only the better answer.",
    ),
    # x says all that is asked, and the tokenizer has no chat template.
    "text": Template(
        direct=(f"{X}\n\n",),
        improve=(f"{X}\n\n{Y}\n\nThe same, improved:\n\n",),
    ),
    # The paper's task (section 5), its instruction moved behind the post so that prompts share it.
    "tldr": Template(
        direct=(f"{X}\n\nA precise and concise summary of the reddit POST above.\n\nTL;DR:\n",),
        improve=(
            f"{X}\n\nEXAMPLE SUMMARY: {Y}\n\nA precise and concise summary of the reddit POST "
            "above, better than the EXAMPLE SUMMARY.\n\nTL;DR:\n",
        ),
    ),
}
