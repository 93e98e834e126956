"""The command line of the programs: what goes wrong is one line, and --help says what there is."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from srpo_jax import config as config_module
from srpo_jax.config import command
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import keep_compiled

ROOT = Path(__file__).parents[2]
TINY = "--config=configs/tiny.py"


def program(*arguments: str, name: str = ".train") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"srpo_jax{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_settings_lists_the_sections_asked_for():
    text = command.settings(("lora", "train"))
    flat = config_module.flatten(config_module.default().to_dict())
    listed = dict(re.findall(r"^  --config\.([\w.]+)=(.*?)(?:  .*)?$", text, re.MULTILINE))
    assert listed == {
        key: repr(value)
        for key, value in flat.items()
        if key.startswith(("lora.", "train.")) or key == "seed"
    }
    assert listed["train.steps"] == "100"


def test_help_prints_the_programs_purpose_and_its_settings():
    done = program("--help")
    assert done.returncode == 0, done.stderr
    assert "Trains a model on preference pairs" in done.stdout
    for flag in ("--config", "--workdir", "--config.objective.beta=0.1", "--config.mesh.fsdp=-1"):
        assert flag in done.stdout
    assert "--config.judge" not in done.stdout


def test_a_shipped_shape_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/shapes/llama-3.1-8b"
    assert command.shape(name) == str(ROOT / name)
    for other in ("configs/shapes/none", "smollm2-135m-instruct", str(tmp_path)):
        assert command.shape(other) == other
    (tmp_path / name).mkdir(parents=True)
    assert command.shape(name) == name


def test_a_shipped_configuration_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert list(command.shipped()) == names
    file = str(ROOT / "configs" / "tiny.py")
    for name in ("tiny", "tiny.py", "configs/tiny.py"):
        assert command.found(name) == file
    assert command.found("real_text:DIR") == f"{ROOT / 'configs' / 'real_text.py'}:DIR"
    with pytest.raises(UserError, match=r"--config=teeny is no file, nor one of .*quickstart"):
        command.found("teeny")
    (tmp_path / "tiny.py").write_text("")  # a file of one's own comes first
    assert command.found("tiny.py") == "tiny.py"
    assert command.found("configs/none.py") == "configs/none.py"
    (tmp_path / "xsum").mkdir()  # the workdir of a run, say
    assert command.found("xsum") == str(ROOT / "configs" / "xsum.py")


@pytest.mark.parametrize(
    ("returned", "said"),
    [("None", r"returns nothing \(is its `return` missing"), ("{}", "a plain")],
)
def test_a_file_that_returns_no_configuration_is_named(tmp_path, returned, said):
    (tmp_path / "own.py").write_text(f"def get_config():\n    return {returned}\n")
    with pytest.raises(UserError, match=rf"own\.py: get_config\(\) .*{said}"):
        command._Parser(name="config").parse(str(tmp_path / "own.py"))


def test_the_package_says_which_programs_there_are(tmp_path, monkeypatch, capsys):
    from srpo_jax import __main__ as listing

    monkeypatch.chdir(tmp_path)
    listing.main()
    said = capsys.readouterr().out
    for name in (
        "train",
        "evaluate",
        "pairs",
        "convert",
        "inspect",
        "plan",
        "quickstart",
        "theory",
    ):
        assert f"python -m srpo_jax.{name} " in said
    assert "--config=NAME: " in said


def entry_points():
    """Every module that `python -m` runs, by its name behind `srpo_jax`."""
    package = ROOT / "srpo_jax"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] == "__main__":
            yield ".".join(("", *parts[:-1]))
        elif '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            yield ".".join(("", *parts))


@pytest.mark.slow
@pytest.mark.parametrize("name", entry_points())
def test_an_argument_that_no_program_reads_is_refused_by_name(name):
    """A forgotten --, or a second folder, was passed over; the program did something else."""
    given = {".convert": ["import"], ".status": ["DIR"]}.get(name, [])
    done = program(*given, "stray", name=name)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "stray" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["plan", "inspect"])
def test_plan_and_inspect_take_no_arguments(name):
    module = importlib.import_module(f"srpo_jax.{name}")
    main = getattr(module, "main", None) or module._main
    with pytest.raises(UserError, match="topology=v5e-8 belongs to no flag"):
        main([name, "topology=v5e-8"])


def test_a_workdir_in_which_nothing_can_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*file is no folder"):
        keep_compiled(tmp_path / "file" / "run")


def test_a_program_that_is_asked_of_the_package_is_named_as_it_runs(capsys):
    from srpo_jax import __main__ as listing

    assert listing.main(["train", "--config=tiny"]) == 2
    assert "train is no argument here: python -m srpo_jax.train" in capsys.readouterr().err


def fails_with_one_line(said: str, *arguments: str) -> None:
    done = program(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert re.search(said, done.stderr), done.stderr


def test_an_unknown_setting_is_one_line(tmp_path):
    flag = "--config.objective.bta=1"
    fails_with_one_line(r"--config\.objective\.bta=1.*\"?bta", TINY, f"--workdir={tmp_path}", flag)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("--config is missing", ["--workdir=DIR"]),
        ("--workdir is missing", [TINY]),
        ("cannot read .*configs/none.py", ["--config=configs/none.py", "--workdir=DIR"]),
        ("steps", [TINY, "--workdir=DIR", "--config.train.steps=many"]),
        ("steps", [TINY, "--workdir=DIR", "--config.train.steps=1.5"]),
        ("wrokdir", [TINY, "--wrokdir=DIR"]),
        (r"no pairs at none\.jsonl", [TINY, "--workdir=DIR", "--config.data.pairs=none.jsonl"]),
        ("betaa", ["--config=FILE", "--workdir=DIR"]),
        ("FILE.* is a file", [TINY, "--workdir=FILE"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path, said, arguments):
    file = tmp_path / "my_config.py"
    file.write_text(
        "from srpo_jax.config import default\n\n\ndef get_config():\n"
        "    config = default()\n    config.objective.betaa = 1.0\n    return config\n"
    )
    names = {"DIR": str(tmp_path / "run"), "FILE": str(file)}
    for short, full in names.items():
        arguments = [argument.replace(short, full) for argument in arguments]
        said = said.replace(short, re.escape(full))
    fails_with_one_line(said, *arguments)
