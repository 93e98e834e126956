"""Which judge compares completions, with what model, and how the endpoint of one is reached."""

import dataclasses

from srpo_jax.judges import secrets
from srpo_jax.prompts import TEMPLATES
from srpo_jax.runtime.settings import FRACTION, POSITIVE, Check, at_least, check, one_of, setting

NAMES = ("embedding", "llm", "reward", "shannon", "overlap", "ensemble", "shorter", "longer")
VERDICTS = ("auto", "logprobs", "json", "text")
_PARAMETERS = ("max_tokens", "max_completion_tokens")
_SHARE = Check(lambda value: 0 <= value <= 1, "in [0, 1]")


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """The judge: a model here, a language model behind an OpenAI-compatible endpoint, or several."""

    name: str = setting(
        "embedding",
        "a local proxy, an endpoint, a reward model, the text's likelihood, words shared with the gold, "
        "several of these, or only the length: see docs/evaluation.md",
        one_of(*NAMES),
    )
    label: str = setting("", "its name in reports; empty is `name`")
    others: tuple[str, ...] = setting(
        (),
        "further judges: names as above, with what else is set here, or JSON files with settings of "
        "this section",
    )
    cache: str = setting(
        "judge_cache.sqlite",
        "llm: file of the answers already paid for, in the workdir; empty for none",
    )
    missing: str = setting(
        "exclude", "what a pair without verdict counts as", one_of("exclude", "tie")
    )
    missing_share: float = setting(
        0.05, "llm: the run ends when a larger share of the pairs has no verdict", _SHARE
    )
    # A model here.
    source: str = setting(
        "",
        "reward: directory of a sequence classifier with one output, or workdir of a run with "
        "config.objective.name=reward; shannon: a model as "
        "config.model.source names it, none of those compared",
    )
    dtype: str = setting(
        "bfloat16",
        "reward, shannon: of matrix products; sums stay float32",
        one_of("float32", "bfloat16"),
    )
    batch_size: int = setting(8, "reward, shannon: texts computed at once", at_least(1))
    reward_template: str = setting(
        "",
        "reward: how prompts are put, as config.data.template; empty: as a run put them, else the "
        "tokenizer's chat template or, without one, plain text",
        one_of("", *TEMPLATES),
    )
    normalise: bool = setting(
        True,
        "reward: its scores have mean 0 and deviation 1 over the completions that its training preferred, "
        "where its directory says so",
    )
    scale: float = setting(
        50.0,
        "shannon: the preference is the sigmoid of this times a difference in nats a token of the text",
        POSITIVE,
    )
    # Several.
    members: tuple[str, ...] = setting((), "ensemble: the judges in it, as in `others`")
    combine: str = setting("mean", "ensemble: of its members' verdicts", one_of("mean", "majority"))
    # What is asked.
    template: str = setting(
        "summary", "llm: what the model is asked: summary, chat, or a file of your own"
    )
    verdict: str = setting(
        "auto",
        "llm: where the verdict is read: the labels' log probabilities, structured output or the text; "
        "auto is the first of these that the endpoint gives",
        one_of(*VERDICTS),
    )
    system: bool = setting(True, "llm: instructions as a system message; else before the question")
    label_mass: float = setting(
        0.1,
        "llm: least probability of all labels together for a verdict by log probabilities",
        FRACTION,
    )
    # Where.
    base_url: str = setting("", "llm: where it listens; empty is the client's default")
    model: str = setting("", "llm: its model's name")
    api_key_env: str = setting(
        "OPENAI_API_KEY", "llm: environment variable that holds the key; empty for none"
    )
    headers: tuple[str, ...] = setting(
        (), "llm: further headers, NAME=VALUE; in VALUE, $VARIABLE is one of the environment"
    )
    # Parameters of a request.
    temperature: float = setting(0.0, "llm: of the answer", at_least(0))
    seed: int = setting(0, "llm: of the answer", at_least(0))
    max_tokens: int = setting(4096, "llm: longest answer in tokens, thinking included", at_least(1))
    max_tokens_name: str = setting(
        "max_tokens", "llm: what the endpoint calls it", one_of(*_PARAMETERS)
    )
    top_p: float | None = setting(
        None, "llm: None is not sent", Check(lambda p: 0 < p <= 1, "in (0, 1]")
    )
    top_logprobs: int = setting(5, "llm: tokens whose log probability is asked for", at_least(1))
    reasoning_effort: str = setting("", "llm: empty is not sent")
    parameters: tuple[str, ...] = setting((), "llm: further parameters of a request, NAME=JSON")
    drop: tuple[str, ...] = setting(
        (),
        "llm: parameters that are not sent, where the endpoint refuses them: temperature, seed …",
    )
    # How.
    concurrency: int = setting(8, "llm: requests under way at once", at_least(1))
    requests_per_minute: float = setting(0.0, "llm: at most; 0 is no limit", at_least(0))
    timeout: float = setting(60.0, "llm: seconds until a request counts as lost", POSITIVE)
    retries: int = setting(6, "llm: times that a passing failure is tried again", at_least(0))
    backoff: float = setting(
        1.0, "llm: seconds before the first of them, doubled before each next", at_least(0)
    )
    # What it costs.
    prompt_price: float = setting(0.0, "llm: of a million tokens", at_least(0))
    completion_price: float = setting(0.0, "llm: of a million tokens", at_least(0))

    def __post_init__(self) -> None:
        check(self, "config.judge")
        secrets.check_url(self.base_url, "config.judge.base_url")
        secrets.check_headers(self.headers)
