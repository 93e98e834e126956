"""Which judge compares completions, and how the endpoint of a judging model is reached."""

import dataclasses

from srpo_jax.runtime.settings import at_least, check, one_of, setting


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """The judge: a local proxy, or a language model behind an OpenAI-compatible endpoint."""

    name: str = setting("embedding", "the local proxy, or an endpoint", one_of("embedding", "llm"))
    base_url: str = setting("", "llm: where it listens; empty is the client's default")
    model: str = setting("", "llm: its model's name")
    api_key_env: str = setting(
        "OPENAI_API_KEY", "llm: environment variable that holds the key; empty for none"
    )
    concurrency: int = setting(8, "llm: requests under way at once", at_least(1))
    cache: str = setting(
        "judge_cache.sqlite",
        "llm: file of the verdicts already paid for, in the workdir; empty for none",
    )

    def __post_init__(self) -> None:
        check(self, "config.judge")
