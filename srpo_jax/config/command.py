"""The command line that all programs share: --config, --workdir, --config.key=value, --help."""

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections.config_flags import config_flags

from srpo_jax import config as config_module
from srpo_jax.config import Settings
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import refuse_arguments, run_program
from srpo_jax.runtime.settings import described

PACKAGE = Path(__file__).parents[1]
# Where the configurations are: in an installed package, in a checkout.
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")
WIDTH, COLUMN = 100, 40  # of --help, and where the meanings begin


def run(
    main: Callable[..., int | None],
    sections: tuple[str, ...],
    *,
    config: str | None = None,
    workdir: str | None = None,
    options: Mapping[str, str] | None = None,
    switches: Mapping[str, str] | None = None,
    instead: Mapping[str, tuple[str, Callable[[list[str], Path | None], None]]] | None = None,
) -> NoReturn:
    """Parses the command line and runs main(settings, workdir, **options), which returns the exit status.

    sections: those of the settings that the program reads, listed by --help. config, workdir:
    defaults of the flags, without which they must be given; config is the name of a shipped one.
    options: further flags that hold a text (None when not given), name -> help. switches: those that are on
    or off. instead: flags that take folders, name -> (help, what runs on these in place of main, without
    settings); the workdir is None where none is given.
    """
    options, switches, instead = options or {}, switches or {}, instead or {}
    define_config(sections, f"file with the settings (default: {config})", config)
    flags.DEFINE_string("workdir", workdir, "folder of the run; the same folder resumes it")
    for name, meaning in options.items():
        flags.DEFINE_string(name, None, meaning)
    for name, meaning in switches.items():
        flags.DEFINE_bool(name, False, meaning)
    for name, (meaning, _) in instead.items():
        flags.DEFINE_string(name, None, meaning)
    show_in_help("workdir", *options, *switches, *instead)

    def checked(arguments: list[str]) -> int | None:
        folder, further = flags.FLAGS.workdir, arguments[1:]
        asked = [name for name in instead if flags.FLAGS[name].value is not None]
        if len(asked) > 1:
            raise UserError(f"--{asked[0]} and --{asked[1]} are two things: give one of them")
        for name, (_, runs) in instead.items():
            if (first := flags.FLAGS[name].value) is not None:
                runs([first, *further], storage.folder(folder, "--workdir") if folder else None)
                return None
        refuse_arguments(further)
        values = given()
        if not flags.FLAGS.workdir:
            raise UserError("--workdir is missing: give the folder this run is to live in")
        chosen = {name: flags.FLAGS[name].value for name in (*options, *switches)}
        return main(values, storage.folder(flags.FLAGS.workdir, "--workdir"), **chosen)

    run_program(checked)


def define_config(sections: Sequence[str], meaning: str, default: str | None = None) -> None:
    """Defines --config, and lists these sections of it in the program's --help.

    default: the name of a shipped configuration.
    """
    file = found(default) if default else None
    config_flags.DEFINE_config_file("config", file, meaning, lock_config=True)
    flags.FLAGS["config"].parser = _Parser(name="config", lock_config=True)
    show_in_help("config")
    program = sys.modules["__main__"]
    program.__doc__ = f"{program.__doc__}\n{settings(sections)}"


class _Parser(config_flags.ConfigFileFlagParser):  # type: ignore[misc]  # of no known type
    """Takes the name of a shipped configuration, too."""

    def parse(self, path: object) -> object:
        config = super().parse(found(path) if isinstance(path, str) else path)
        if config is None or isinstance(config, dict):
            what = "nothing (is its `return` missing?)" if config is None else "a plain dict"
            raise UserError(
                f"--config={path}: get_config() returns {what}: it must return a ConfigDict, such as "
                "config.default() gives it to start from"
            )
        return config


def shipped() -> dict[str, Path]:
    """{name: file} of the configurations that come with the package."""
    folder = next((folder for folder in FOLDERS if (folder / "quickstart.py").is_file()), None)
    return {path.stem: path for path in sorted(folder.glob("*.py"))} if folder else {}


def found(config: str) -> str:
    """The file that is meant by --config: itself, or a shipped one by NAME, NAME.py or configs/NAME.py.

    What stands behind a colon is for the file. A folder of that name, such as a run's workdir, is not
    meant. Raises UserError for a name that is neither.
    """
    name, colon, rest = config.partition(":")
    if Path(name).is_file():
        return config
    known, path = shipped(), Path(name)
    if path.stem in known and str(path.parent) in (".", "configs") and path.suffix in ("", ".py"):
        return f"{known[path.stem]}{colon}{rest}"
    if not path.suffix and path.name == name:
        raise UserError(f"--config={name} is no file, nor one of {', '.join(known)}")
    return config


def shape(source: str) -> str:
    """A model's directory; configs/shapes/NAME is a shipped one where there is no such folder here."""
    path = Path(source)
    if path.exists() or path.parts[:2] != ("configs", "shapes"):
        return source
    shapes = (folder.joinpath(*path.parts[1:]) for folder in FOLDERS)
    return next((str(found) for found in shapes if (found / "config.json").is_file()), source)


def show_in_help(*names: str) -> None:
    """absl shows the flags of the module that is __main__, and that module's docstring."""
    for name in names:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def given() -> Settings:
    """The settings of the command line, checked; UserError without --config and for what is wrong."""
    if flags.FLAGS.config is None:
        raise UserError(
            f"--config is missing: give a file of your own, or one of {', '.join(shipped())}"
        )
    values = config_module.default()
    config_module.update(values, flags.FLAGS.config.to_dict(), "--config")
    return config_module.checked(values)


def settings(sections: Sequence[str]) -> str:
    """The settings of some sections with default and meaning, for people to read."""
    lines = ["Settings, their defaults and what they mean:"]
    whole = Settings()
    for name in ("seed", *sections):
        section = whole if name == "seed" else getattr(whole, name)
        prefix = "" if section is whole else f"{name}."
        if prefix:
            lines += ["", (section.__doc__ or "").splitlines()[0]]
        for key, said in described(section).items():
            flag = f"  --config.{prefix}{key}={getattr(section, key)!r}"
            lines += _columns(flag, said.sentence)
    return "\n".join(lines)


def _columns(flag: str, sentence: str) -> list[str]:
    """The sentence beside the flag, or below it where that is too long."""
    beside = textwrap.wrap(sentence, WIDTH - COLUMN, break_on_hyphens=False)
    if len(flag) > COLUMN - 2:
        return [flag, *(" " * COLUMN + line for line in beside)]
    return [flag.ljust(COLUMN) + beside[0], *(" " * COLUMN + line for line in beside[1:])]
