"""The settings: their defaults, their sentences, and the way from a dictionary to typed values and back."""

import dataclasses
import json

import ml_collections
import pytest

from srpo_jax import config as config_module
from srpo_jax.config import Settings, command
from srpo_jax.data.document_sets import DocumentSet
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build, described

SECTIONS = tuple(f.name for f in dataclasses.fields(Settings) if f.name != "seed")
# As they were before settings had types: changing one changes the runs of people who rely on it.
DEFAULTS = {
    "data.fields": (),
    "data.format": "pairs",
    "data.held_out": "",
    "data.held_out_count": 0,
    "data.held_out_split": "",
    "data.overlong": "error",
    "data.refused": "error",
    "data.pack": True,
    "data.pairs": "",
    "data.row_length": 0,
    "data.split": "train",
    "data.template": "chat",
    "data.template_arguments": (),
    "data.template_date": "2024-07-26",
    "data.workers": 0,
    "data.cache": "",
    "evaluate.against": ("gold",),
    "evaluate.best_by": "mean",
    "alternate.cycles": 1,
    "alternate.phases": (),
    "alternate.reference": "moved",
    "evaluate.best_of": (),
    "evaluate.best_temperature": 1.0,
    "evaluate.best_top_p": 1.0,
    "evaluate.count": 64,
    "evaluate.documents": ("wikipedia", "aclsum"),
    "evaluate.judge_check": 200,
    "evaluate.max_prompt_tokens": 384,
    "evaluate.models": (),
    "evaluate.outputs": (),
    "evaluate.revisions": 3,
    "evaluate.skip": 0,
    "evaluate.split": "test",
    "evaluate.title": "",
    "judge.api_key_env": "OPENAI_API_KEY",
    "judge.backoff": 1.0,
    "judge.base_url": "",
    "judge.batch_size": 8,
    "judge.cache": "judge_cache.sqlite",
    "judge.combine": "mean",
    "judge.completion_price": 0.0,
    "judge.concurrency": 8,
    "judge.drop": (),
    "judge.dtype": "bfloat16",
    "judge.headers": (),
    "judge.label": "",
    "judge.label_mass": 0.1,
    "judge.max_tokens": 4096,
    "judge.max_tokens_name": "max_tokens",
    "judge.members": (),
    "judge.missing": "exclude",
    "judge.missing_share": 0.05,
    "judge.model": "",
    "judge.name": "embedding",
    "judge.others": (),
    "judge.normalise": True,
    "judge.parameters": (),
    "judge.prompt_price": 0.0,
    "judge.reasoning_effort": "",
    "judge.requests_per_minute": 0.0,
    "judge.retries": 6,
    "judge.reward_template": "",
    "judge.scale": 50.0,
    "judge.seed": 0,
    "judge.source": "",
    "judge.system": True,
    "judge.temperature": 0.0,
    "judge.template": "summary",
    "judge.timeout": 60.0,
    "judge.top_logprobs": 5,
    "judge.top_p": None,
    "judge.verdict": "auto",
    "lora.alpha": 32.0,
    "lora.dropout": 0.0,
    "lora.rank": 0,
    "lora.targets": ("query", "key", "value", "output", "gate", "up", "down"),
    "mesh.decode": 0,
    "mesh.expert": 1,
    "mesh.fsdp": -1,
    "mesh.replica": 1,
    "mesh.rules": (),
    "mesh.tensor": 1,
    "model.attention": "auto",
    "model.dtype": "bfloat16",
    "model.parameters": "float32",
    "model.remat": "full",
    "model.source": "smollm2-135m-instruct",
    "objective.alpha": 0.5,
    "objective.beta": 0.1,
    "objective.direct_weight": None,
    "objective.gamma": None,
    "objective.label_smoothing": None,
    "objective.name": "srpo",
    "objective.nll_weight": None,
    "objective.odds_weight": None,
    "objective.reduction": None,
    "online.beta": 0.05,
    "online.clip": 0.2,
    "online.count": 200,
    "online.discount": 1.0,
    "online.documents": "wikipedia",
    "online.epochs": 1,
    "online.fields": (),
    "online.format": "",
    "online.kl_rate": 0.1,
    "online.kl_target": 0.0,
    "online.max_prompt_tokens": 256,
    "online.minibatches": 1,
    "online.missing_end": 1.0,
    "online.objective": "rloo",
    "online.reward": "score",
    "online.samples": 4,
    "online.split": "train",
    "online.temperature": 1.0,
    "online.trace": 0.95,
    "online.value_clip": 0.0,
    "online.value_weight": 0.1,
    "online.whiten": True,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.99,
    "optimizer.clip_norm": 1.0,
    "optimizer.learning_rate": 0.0001,
    "optimizer.master": True,
    "optimizer.schedule": "cosine",
    "optimizer.decay_steps": 0,
    "optimizer.epsilon": None,
    "optimizer.warmup_steps": 10,
    "optimizer.weight_decay": 0.0,
    "pairs.choose": "extremes",
    "pairs.count": 200,
    "pairs.documents": "wikipedia",
    "pairs.draw": "answers",
    "pairs.edits": "any",
    "pairs.fields": (),
    "pairs.format": "",
    "pairs.goal": "preferences",
    "pairs.keep": 0.0,
    "pairs.labels": "soft",
    "pairs.margin": 0.0,
    "pairs.max_distance": 1.0,
    "pairs.max_prompt_tokens": 256,
    "pairs.samples": 2,
    "pairs.skip": 0,
    "pairs.split": "train",
    "pairs.temperature": 1.0,
    "pairs.top_p": 0.95,
    "reference.source": "",
    "reference.when": "before",
    "recipe.stages": (),
    "sampling.batch_size": 32,
    "sampling.max_new_tokens": 32,
    "sampling.refill": 0.125,
    "sampling.temperature": 0.0,
    "sampling.top_p": 1.0,
    "seed": 0,
    "train.accumulate": 1,
    "train.batch_size": 8,
    "train.checkpoint_every": 50,
    "train.evaluate_documents": 16,
    "train.evaluate_every": 0,
    "train.evaluate_split": "validation",
    "train.frozen": (),
    "train.writers": ("tensorboard",),
    "train.project": "srpo_jax",
    "train.keep_checkpoints": 2,
    "train.keep_every": 0,
    "train.keep_best": 0,
    "train.keep_best_by": "held_out/loss",
    "train.log_every": 1,
    "train.peak_tflops": 0.0,
    "train.profile_at": 0,
    "train.profile_steps": 3,
    "train.router_loss": 0.0,
    "train.steps": 100,
    "train.verify_checkpoints": True,
}
PLACEHOLDERS = (
    "label_smoothing",
    "reduction",
    "nll_weight",
    "gamma",
    "direct_weight",
    "odds_weight",
)


def changed(**changes):
    config = config_module.default()
    config_module.update(config, changes, "test")
    return config


def test_the_defaults_are_those_that_people_rely_on():
    flat = config_module.flatten(config_module.default().to_dict())
    assert flat == DEFAULTS
    kinds = lambda values: {key: type(value) for key, value in values.items()}
    assert kinds(flat) == kinds(DEFAULTS)


def test_the_dictionary_is_locked_and_waits_for_optional_values_of_their_type():
    config = config_module.default()
    with pytest.raises(AttributeError):
        config.train.stepps = 1
    with pytest.raises(TypeError):
        config.train.steps = "many"
    for key in PLACEHOLDERS:
        assert isinstance(config.objective.get_ref(key), ml_collections.FieldReference)
    config.objective.gamma = 2
    assert isinstance(config.objective.gamma, float)
    with pytest.raises(TypeError):
        config.objective.nll_weight = "much"


def test_settings_come_back_from_the_dictionary_as_they_went_in():
    assert config_module.checked(config_module.default()) == Settings()
    changes = {
        "seed": 3,
        "lora.rank": 4,
        "lora.targets": ("query",),
        "objective.gamma": 0.5,
        "objective.alpha": None,
        "mesh.replica": 2,
    }
    settings = config_module.checked(changed(**changes))
    flat = config_module.flatten(dataclasses.asdict(settings))
    assert flat == DEFAULTS | changes
    again = config_module.config_dict(settings)
    assert again.to_dict() == changed(**changes).to_dict()
    assert again.is_locked
    assert config_module.checked(again) == settings


def test_a_tuple_holds_names_and_dictionaries(tmp_path):
    entries = ("tldr", {"source": "news.jsonl", "fields": ["gold=head"], "role": "out"})
    settings = config_module.checked(changed(**{"evaluate.documents": entries}))
    news = DocumentSet("news.jsonl", fields=("gold=head",), role="out")
    assert settings.evaluate.documents == ("tldr", news)
    config_module.save(settings, tmp_path / "config.json")
    assert config_module.read(tmp_path / "config.json") == settings
    for entry, said in (
        ({"source": "a", "role": "far"}, r"documents\.role='far' must be '', 'in' or 'out'"),
        ({"sauce": "a"}, r"documents\.sauce='a' is not a setting"),
        ({"name": "a"}, "a set of documents has no source"),
        (3, "must be a tuple of texts and dictionaries"),
    ):
        with pytest.raises(UserError, match=said):
            config_module.checked(changed(**{"evaluate.documents": (entry,)}))


def test_settings_are_frozen_and_checked_wherever_they_are_made():
    settings = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.train.steps = 1
    with pytest.raises(UserError, match=r"^config\.train\.steps=0 must be at least 1$"):
        dataclasses.replace(settings.train, steps=0)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("seed", -1, r"in \[0, 2147483648\)"),
        ("seed", 2**31, r"in \[0, 2147483648\)"),
        ("model.dtype", "half", "'float32' or 'bfloat16'"),
        ("model.parameters", "float16", "'float32' or 'bfloat16'"),
        ("model.remat", "some", "'none', 'dots', 'full' or 'offload'"),
        ("model.attention", "flash", "'auto', 'dense', 'blockwise' or 'pallas'"),
        ("lora.rank", -1, "0 or more"),
        ("mesh.replica", 0, "positive, or -1 for all that are left"),
        ("mesh.fsdp", -2, "positive, or -1 for all that are left"),
        ("mesh.decode", -2, "at least -1"),
        ("mesh.tensor", 0, "positive, or -1 for all that are left"),
        ("mesh.expert", 0, "positive, or -1 for all that are left"),
        ("train.router_loss", -0.1, "0 or more"),
        ("alternate.cycles", 0, "at least 1"),
        ("alternate.reference", "last", "'moved' or 'first'"),
        ("reference.when", "later", "'before' or 'first_epoch'"),
        ("data.format", "csv", "'pairs', 'summarize', 'tldr' or 'dialogue'"),
        ("data.template", "tldr2", "'plain', .*, 'dialogue', 'text' or 'tldr'"),
        ("data.template_arguments", ("a",), "each NAME=VALUE"),
        ("data.template_arguments", ("messages=[]",), "each NAME=VALUE"),
        ("data.template_date", "26 Jul 2024", "YYYY-MM-DD"),
        ("data.row_length", -1, "0 or more"),
        ("data.overlong", "cut", "'error' or 'drop'"),
        ("data.refused", "cut", "'error' or 'drop'"),
        ("data.workers", -1, "0 or more"),
        ("data.held_out_count", -1, "0 or more"),
        ("objective.name", "ppo", "'srpo', 'dpo', .* or 'reward'"),
        ("objective.beta", 0.0, "a number > 0"),
        ("objective.beta", float("nan"), "a number > 0"),
        ("objective.alpha", 1.5, r"a number in \[0, 1\]"),
        ("objective.label_smoothing", 0.5, r"a number in \[0, 0\.5\)"),
        ("objective.reduction", "median", "'sum' or 'mean'"),
        ("objective.nll_weight", -1.0, "a number >= 0"),
        ("objective.gamma", -1.0, "a number >= 0"),
        ("objective.direct_weight", -1.0, "a number >= 0"),
        ("objective.odds_weight", float("inf"), "a number >= 0"),
        ("train.steps", 0, "at least 1"),
        ("train.batch_size", 0, "at least 1"),
        ("train.accumulate", 0, "at least 1"),
        ("train.log_every", 0, "at least 1"),
        ("train.peak_tflops", -1.0, "0 or more"),
        ("train.profile_at", -1, "0 or more"),
        ("train.profile_steps", 0, "at least 1"),
        ("train.checkpoint_every", 0, "at least 1"),
        ("train.keep_checkpoints", 0, "at least 1"),
        ("train.keep_every", -1, "0 or more"),
        ("train.keep_best", -1, "0 or more"),
        ("train.writers", ("paper",), "each 'tensorboard', 'wandb' or 'mlflow'"),
        ("train.evaluate_every", -1, "0 or more"),
        ("train.evaluate_documents", -1, "0 or more"),
        ("train.evaluate_split", "dev", "'train', 'validation' or 'test'"),
        ("optimizer.learning_rate", -1.0, "0 or more"),
        ("optimizer.learning_rate", float("nan"), "0 or more"),
        ("optimizer.warmup_steps", -1, "0 or more"),
        ("optimizer.decay_steps", -1, "0 or more"),
        ("optimizer.schedule", "linear", "'cosine', 'constant' or 'wsd'"),
        ("optimizer.weight_decay", -0.1, "0 or more"),
        ("optimizer.b1", 1.0, r"in \[0, 1\)"),
        ("optimizer.b2", -0.1, r"in \[0, 1\)"),
        ("optimizer.clip_norm", 0.0, "positive"),
        ("optimizer.epsilon", 0.0, "positive"),
        ("online.objective", "grpo", "'rloo', 'copg' or 'ppo'"),
        ("online.format", "csv", "'', 'pairs', .*, 'documents' or 'turns'"),
        ("online.split", "dev", "'train', 'validation' or 'test'"),
        ("online.count", 0, "at least 1"),
        ("online.max_prompt_tokens", 0, "at least 1"),
        ("online.samples", 1, "at least 2"),
        ("online.temperature", 0.0, "positive"),
        ("online.reward", "likes", "'score', 'gold' or 'others'"),
        ("online.missing_end", -1.0, "0 or more"),
        ("online.beta", 0.0, "positive"),
        ("online.kl_target", -1.0, "0 or more"),
        ("online.kl_rate", 1.0, r"in \[0, 1\)"),
        ("online.epochs", 0, "at least 1"),
        ("online.minibatches", 0, "at least 1"),
        ("online.clip", 0.0, "positive"),
        ("online.value_clip", -0.1, "0 or more"),
        ("online.value_weight", -0.1, "0 or more"),
        ("online.discount", 1.1, r"in \[0, 1\]"),
        ("online.trace", -0.1, r"in \[0, 1\]"),
        ("sampling.max_new_tokens", 0, "at least 1"),
        ("sampling.temperature", -1.0, r"0 \(greedy\) or positive"),
        ("sampling.top_p", 0.0, r"in \(0, 1\]"),
        ("sampling.batch_size", 0, "at least 1"),
        ("sampling.refill", 0.0, r"in \(0, 1\]"),
        ("pairs.format", "csv", "'', 'pairs', .*, 'documents' or 'turns'"),
        ("pairs.split", "dev", "'train', 'validation' or 'test'"),
        ("pairs.count", 0, "at least 1"),
        ("pairs.skip", -1, "0 or more"),
        ("pairs.samples", 0, "at least 1"),
        ("pairs.draw", "words", "'answers', 'revisions', 'endings' or 'spans'"),
        ("pairs.goal", "sft", "'preferences', 'improve' or 'gold'"),
        ("pairs.choose", "two", "'extremes', 'nearest', 'first', 'all' or 'gold'"),
        ("pairs.margin", 0.5, r"in \[0, 0\.5\)"),
        ("pairs.max_distance", 0.0, r"in \(0, 1\]"),
        ("pairs.labels", "none", "'soft' or 'hard'"),
        ("pairs.edits", "worse", "'any' or 'better'"),
        ("pairs.keep", 1.0, r"in \[0, 1\)"),
        ("pairs.max_prompt_tokens", 0, "at least 1"),
        ("pairs.temperature", -1.0, r"0 \(greedy\) or positive"),
        ("pairs.top_p", 1.5, r"in \(0, 1\]"),
        ("evaluate.documents", (), "one at least"),
        ("evaluate.split", "dev", "'train', 'validation' or 'test'"),
        ("evaluate.count", 0, "at least 1"),
        ("evaluate.skip", -1, "0 or more|at least 0"),
        ("evaluate.max_prompt_tokens", 0, "at least 1"),
        ("evaluate.revisions", -1, "0 or more"),
        ("evaluate.models", ("a",), "each NAME=SOURCE"),
        ("evaluate.outputs", ("gold=a.jsonl",), "each NAME=SOURCE"),
        ("evaluate.against", ("gpt",), "each gold, own or baseline:NAME"),
        ("evaluate.best_by", "max", "'mean' or 'sum'"),
        ("evaluate.best_temperature", 0.0, "positive"),
        ("evaluate.best_top_p", 0.0, r"in \(0, 1\]"),
        ("evaluate.judge_check", -1, "0 or more"),
        ("judge.name", "oracle", "'embedding', 'llm', .* or 'longer'"),
        ("judge.dtype", "float16", "'float32' or 'bfloat16'"),
        ("judge.batch_size", 0, "at least 1"),
        ("judge.reward_template", "no", "'', 'plain', .* or 'tldr'"),
        ("judge.scale", 0.0, "positive"),
        ("judge.combine", "product", "'mean' or 'majority'"),
        ("judge.concurrency", 0, "at least 1"),
        ("judge.verdict", "guess", "'auto', 'logprobs', 'json' or 'text'"),
        ("judge.missing", "loss", "'exclude' or 'tie'"),
        ("judge.missing_share", 1.5, "in \\[0, 1\\]"),
        ("judge.timeout", 0.0, "positive"),
        ("judge.label_mass", 1.0, "in \\[0, 1\\)"),
        ("judge.temperature", -0.1, "0 or more"),
        ("judge.seed", -1, "0 or more"),
        ("judge.max_tokens", 0, "at least 1"),
        ("judge.max_tokens_name", "tokens", "'max_tokens' or 'max_completion_tokens'"),
        ("judge.top_logprobs", 0, "at least 1"),
        ("judge.requests_per_minute", -1.0, "0 or more"),
        ("judge.retries", -1, "0 or more"),
        ("judge.backoff", -1.0, "0 or more"),
        ("judge.prompt_price", -1.0, "0 or more"),
        ("judge.completion_price", -1.0, "0 or more"),
        ("judge.top_p", 0.0, "in \\(0, 1\\]"),
        # of another type
        ("train.steps", None, "a whole number"),
        ("train.steps", True, "a whole number"),
        ("model.source", None, "a text"),
        ("data.pack", None, "True or False"),
        ("data.pack", 1, "True or False"),
        ("data.fields", None, "a tuple of texts"),
        ("data.fields", ("a", 1), "a tuple of texts"),
        ("recipe.stages", ("sft",), "a tuple of dictionaries"),
        ("optimizer.clip_norm", None, "a number"),
        ("objective.beta", True, "a number, or None"),
    ],
)
def test_what_cannot_be_used_is_named(key, value, wanted):
    section, _, name = key.rpartition(".")
    values = {name: value}
    with pytest.raises(UserError, match=rf"^config\.{key}=.* must be {wanted}$") as error:
        build(Settings, {section: values} if section else values, "config")
    assert f"={value!r} " in str(error.value)


def test_arguments_are_for_chat_templates():
    with pytest.raises(
        UserError, match=r"template_arguments are for chat .*template='plain' is none"
    ):
        config_module.checked(
            changed(**{"data.template": "plain", "data.template_arguments": ("a=1",)})
        )


def test_every_check_is_tried_above():
    tried = test_what_cannot_be_used_is_named.pytestmark[0].args[1]
    checked = {key for key, *_ in tried}
    for name in SECTIONS:
        for key, said in described(getattr(Settings(), name)).items():
            # Adapters that are off need no good settings: tests/models/test_loading.py.
            assert not said.check or f"{name}.{key}" in checked or name == "lora"


def test_adapters_are_checked_where_there_are_any():
    for change, said in (
        ({"alpha": 0.0}, r"config\.lora\.alpha=0\.0 must be a number > 0"),
        ({"dropout": 1.0}, r"config\.lora\.dropout=1\.0 must be in \[0, 1\)"),
        ({"targets": ("qeury",)}, r"config\.lora\.targets: 'qeury'"),
        ({"targets": ()}, r"config\.lora\.targets is empty"),
    ):
        build(Settings, {"lora": {"rank": 0, **change}}, "config")
        with pytest.raises(UserError, match=said):
            build(Settings, {"lora": {"rank": 2, **change}}, "config")
    with pytest.raises(UserError, match=r"config\.lora\.alpha=None must be a number$"):
        build(Settings, {"lora": {"alpha": None}}, "config")


def test_a_none_that_no_one_asked_for_is_named():
    """ml_collections takes None for every key, and whatever comes after it."""
    config = config_module.default()
    config.train.steps = None
    config.train.steps = "many"
    with pytest.raises(UserError, match=r"^config\.train\.steps='many' must be a whole number$"):
        config_module.checked(config)


def test_config_json_of_an_older_run_is_read_and_unknown_keys_are_named(tmp_path):
    path = tmp_path / "config.json"
    settings = config_module.checked(changed(**{"objective.beta": 0.3, "data.fields": ("a=b",)}))
    config_module.save(settings, path)
    assert config_module.read(path) == settings
    content = json.loads(path.read_text())
    del content["train"]["frozen"], content["recipe"]
    content["quickstart"] = {"beta": [0.1, 0.1]}  # a section of an earlier version
    path.write_text(json.dumps(content))
    assert config_module.read(path) == settings
    for wrong, said in (
        ({"model": {"sauce": "x"}}, r"config\.model\.sauce='x' is not a setting"),
        ({"modle": {"source": "x"}}, r"config\.modle=\{.*\} is not a setting"),
        ({"model": "tiny"}, r"config\.model='tiny' is not a setting"),
        ({"train": {"steps": 0}}, r"config\.train\.steps=0 must be at least 1"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=rf"config\.json: {said}$"):
            config_module.read(path)
    with pytest.raises(UserError, match="is missing: not the workdir of a training run"):
        config_module.read(tmp_path / "none.json")


def test_every_setting_says_what_it_means_and_help_shows_it():
    text = command.settings(SECTIONS)
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    assert list(described(Settings())) == ["seed"]
    for section in (Settings(), *(getattr(Settings(), name) for name in SECTIONS)):
        if not isinstance(section, Settings):
            assert list(described(section)) == [f.name for f in dataclasses.fields(section)]
        for said in described(section).values():
            assert said.meaning
            assert " ".join(said.sentence.split()) in words
    assert "--config.train.steps=100 updates in all; at least 1" in words
    for name in SECTIONS:
        assert type(getattr(Settings(), name)).__doc__.splitlines()[0] in text
