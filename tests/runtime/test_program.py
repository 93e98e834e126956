import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from srpo_jax.runtime import program, storage

PROGRAM = '''
"""Trains nothing."""

import sys

import ml_collections
from absl import flags
from ml_collections import config_flags

from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import run_program

config = config_flags.DEFINE_config_file("config")
workdir = flags.DEFINE_string("workdir", None, "Where the run is kept.", required=True)


def main(arguments):
    print(config.value.steps, arguments[1:])
    if workdir.value == "bad":
        raise UserError("bad: no such\\nfolder")
    if workdir.value == "bug":
        raise ValueError("a mistake")
    if workdir.value == "stop":
        raise KeyboardInterrupt
    return 3 if workdir.value == "three" else None


run_program(main)
'''

CONFIG = """
import ml_collections


def get_config():
    return ml_collections.ConfigDict({"steps": 1, "mesh": {"fsdp": 1}})
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "config.py").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, str(folder / "program.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("workdir", "code", "said"),
    [
        ("good", 0, ""),
        ("three", 3, ""),
        ("bad", 2, "error: bad: no such folder\n"),
        ("stop", 130, "interrupted\n"),
    ],
)
def test_ends_as_main_does(tmp_path: Path, workdir: str, code: int, said: str) -> None:
    config = f"--config={tmp_path / 'config.py'}"
    done = run(tmp_path, config, f"--workdir={workdir}", "--config.steps=5", "rest")
    assert (done.returncode, done.stdout, done.stderr) == (code, "5 ['rest']\n", said)


def test_a_mistake_in_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, f"--config={tmp_path / 'config.py'}", "--workdir=bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "--config.mesh.fdsp=2",
            'error: --config.mesh.fdsp=2: the configuration has no key "fdsp": did',
        ),
        ("--config.zzz=2", 'error: --config.zzz=2: the configuration has no key "zzz"'),
        ("--config.steps=x", "error: flag --config.steps=x"),
        ("--config.steps.x=2", 'error: --config.steps.x=2: the configuration has no key "steps.x"'),
        ("--config.mesh.=2", 'error: --config.mesh.=2: the configuration has no key "mesh."'),
        ("--config.mesh={'x': 2}", "error: --config.mesh={'x': 2}: config.mesh is a section"),
        ("--nope=1", "error: Unknown command line flag 'nope'"),
        ("--config=none.py", "error: --config: cannot read none.py: No such file or directory"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    tmp_path: Path, argument: str, said: str
) -> None:
    done = run(tmp_path, f"--config={tmp_path / 'config.py'}", "--workdir=good", argument)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "argument", "said"),
    [
        ("x = (\n", "", r"own.py:1: SyntaxError: "),
        (
            "import nothing_here\n",
            "",
            r"own.py:1: ModuleNotFoundError: No module named 'nothing_here'",
        ),
        ("x = 1\n", "", r"own.py has no function get_config\(\)"),
        (
            "def get_config(x):\n    y = int(x)\n",
            ":z",
            r"own.py:2: ValueError: invalid literal .*'z'",
        ),
        (
            "def get_config():\n    pass\n",
            ":z",
            "the file of --config takes nothing behind a colon",
        ),
    ],
)
def test_a_mistake_in_a_configuration_file_is_one_sentence(
    tmp_path: Path, capsys, monkeypatch, content: str, argument: str, said: str
) -> None:
    (tmp_path / "own.py").write_text(content)
    monkeypatch.setattr(program.flags, "FLAGS", flags.FlagValues())
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    config_flags.DEFINE_config_file("config", flag_values=program.flags.FLAGS)
    with pytest.raises(SystemExit) as ended:
        program._parse(["program", f"--config={tmp_path / 'own.py'}{argument}"])
    assert ended.value.code == program.USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: ({re.escape(str(tmp_path))}/)?{said}", line), line


def test_help_is_no_failure(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "Trains nothing." in done.stdout
    assert "Where the run is kept." in done.stdout


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError])
def test_what_a_store_says_in_words_is_one_sentence(kind, capsys) -> None:
    def main(_: list[str]) -> None:
        raise kind("The specified bucket does not exist")

    assert program._guarded(main, []) == program.USER_ERROR
    assert capsys.readouterr().err == (
        "error: The specified bucket does not exist: put that right, and the same command goes on\n"
    )


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("UNAVAILABLE: Error reading: Couldn't connect to server", 1),
        ("Cannot connect to host 127.0.0.1:9 ssl:False", 1),
        ("PERMISSION_DENIED: Error reading: HTTP response code: 403", program.USER_ERROR),
        ("An error occurred (NoSuchBucket) when calling ListObjectsV2", program.USER_ERROR),
        ("Parameter validation failed:\nInvalid bucket name", program.USER_ERROR),
    ],
)
def test_a_store_that_is_away_may_be_asked_again_and_one_that_refuses_not(said, code) -> None:
    def main(_: list[str]) -> None:
        with storage.asking("s3://bucket/run"):
            raise RuntimeError(said)

    assert program._guarded(main, []) == code


def test_a_folder_of_this_machine_that_fails_is_the_users_to_mend(tmp_path) -> None:
    def main(_: list[str]) -> None:
        storage.folder(tmp_path / ("long" * 100), "--workdir")

    assert program._guarded(main, []) == program.USER_ERROR


@pytest.mark.slow
def test_an_output_that_is_read_no_further_is_no_mistake(tmp_path) -> None:
    script = tmp_path / "many.py"
    script.write_text(
        "from srpo_jax.runtime.program import run_program\n"
        "run_program(lambda _: [print(i) for i in range(100_000)] and None)\n"
    )
    done = subprocess.run(
        f"{sys.executable} {script} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "0\n"
    assert done.stderr == "the output is read no further: ended\n"
