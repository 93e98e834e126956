"""Every command in the documentation and in the configurations' docstrings can be given."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from ml_collections.config_flags import config_flags

from srpo_jax import config as config_module
from srpo_jax.config import command
from srpo_jax.runtime import program
from srpo_jax.runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
COMMAND = re.compile(r"python -m ((?:srpo_jax|benchmarks|tools)[\w.]*)((?:\\\n|[^\n`#;&|])*)")
SETTING = re.compile(r"--config\.(?!key=)([\w.]+)=(\"[^\"\n]+\"|[^\s\]`),;\"']+)")
# A setting by its name alone; what of the rest of srpo_jax.config is named too.
NAMED = re.compile(r"(?<![\w./])(?:--)?config\.([a-z_]+(?:\.[a-z_]+)?)(?![\w(])")
NO_SETTINGS = {"json", "key", "checked", "recipe.stages"}
SOME_FILE = ("", "…", "NAME", "configs/NAME.py", "mine.py")  # stands for the reader's own


def texts():
    for page in PAGES:
        yield page, page.read_text("utf-8")
    for config in CONFIGS:
        yield config, ast.get_docstring(ast.parse(config.read_text("utf-8"))) or ""


def commands():
    """(module, its arguments) of every command that is written out."""
    for place, text in texts():
        for module, rest in COMMAND.findall(text):
            rest = re.sub(r"\[(--[^\]]*)\]", r"\1", rest.replace("\\\n", " "))
            try:
                words = shlex.split(rest)
            except ValueError:  # a sentence goes on behind it
                words = rest.split()
            arguments = [word.rstrip(".,") for word in words if word.startswith("--")]
            arguments = [word if "(" in word else word.rstrip(")") for word in arguments]
            module = module.rstrip(".")
            yield pytest.param(
                module, arguments, id=f"{place.stem}: {module} {' '.join(arguments)}"
            )


def given(monkeypatch, *arguments, name="train"):
    """The settings of a command line, as a program would have them."""
    fresh = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", fresh)
    line = [name, *arguments]
    config_flags.DEFINE_config_file("config", flag_values=fresh, sys_argv=line, lock_config=True)
    for flag in ("workdir", "output"):
        flags.DEFINE_string(flag, None, "", flag_values=fresh)
    flags.DEFINE_integer("verbosity", 0, "", flag_values=fresh)
    program._parse(line)
    return command.given()


@pytest.mark.parametrize(("module", "arguments"), commands())
def test_a_command_that_is_written_out_can_be_given(module, arguments, monkeypatch):
    found = importlib.util.find_spec(module)
    if found.submodule_search_locations:
        found = importlib.util.find_spec(f"{module}.__main__")
    # A program may leave its flags to a module beside it.
    source = "".join(path.read_text("utf-8") for path in Path(found.origin).parent.glob("*.py"))
    file = next((a.removeprefix("--config=") for a in arguments if a.startswith("--config=")), "")
    settings = [a for a in arguments if a.startswith("--config.")]
    for argument in arguments:
        flag = argument.lstrip("-").split("=")[0].split(".")[0]
        known = flag in ("config", "workdir") or re.search(rf"[\"'](--)?{flag}[\"']", source)
        assert known, f"{module} has no --{flag}"
    path = file.partition(":")[0]
    shipped = (ROOT / path).is_file() or (ROOT / "configs" / f"{path}.py").is_file()
    assert shipped or path in SOME_FILE, f"there is no {path}"
    if (ROOT / path).is_file():
        settings.insert(0, f"--config={ROOT}/{file}")
    elif settings:
        settings.insert(0, f"--config={ROOT}/configs/tiny.py")
    if settings and ":" not in file:  # what stands behind a colon is for the file's own code
        given(monkeypatch, *settings)


@pytest.mark.parametrize(
    ("key", "value"), sorted({found for _, text in texts() for found in SETTING.findall(text)})
)
def test_a_setting_that_is_advised_can_be_given(key, value, monkeypatch):
    value = value.strip(".'\"")
    given(monkeypatch, f"--config={ROOT}/configs/tiny.py", f"--config.{key}={value}")


def test_every_setting_that_is_named_exists():
    keys = set(config_module.flatten(config_module.default().to_dict()))
    known = keys | {key.partition(".")[0] for key in keys} | NO_SETTINGS
    for place, text in texts():
        assert not set(NAMED.findall(text)) - known, place


def optional():
    whole = config_module.flatten(config_module.default().to_dict())
    for key in whole:
        config = config_module.default()
        try:
            config_module.update(config, {key: None}, "test")
            config_module.checked(config)
        except UserError:
            continue
        yield key


@pytest.mark.parametrize("key", sorted(optional()))
def test_what_may_be_none_is_none(key, monkeypatch):
    tiny = f"--config={ROOT}/configs/tiny.py"
    section, _, name = key.rpartition(".")
    for arguments in ([f"--config.{key}=None"], [f"--config.{key}", "None"]):
        read = given(monkeypatch, tiny, *arguments)
        assert getattr(getattr(read, section), name) is None


def test_what_may_not_be_none_is_named(monkeypatch, capsys):
    tiny = f"--config={ROOT}/configs/tiny.py"
    with pytest.raises(UserError, match=r"config\.train\.steps=None must be a whole number"):
        given(monkeypatch, tiny, "--config.train.steps=None")
    with pytest.raises(SystemExit):
        given(monkeypatch, tiny, "--config.objective.alhpa=None")
    assert 'has no key "alhpa": did you mean "alpha"?' in capsys.readouterr().err
