"""The command line that all programs share: --config, --workdir, --config.key=value, --help."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from absl import flags
from ml_collections.config_flags import config_flags

from srpo_jax import config as config_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import run_program

ROOT = Path(__file__).parents[2]


def run(
    main: Callable[..., int | None],
    sections: tuple[str, ...],
    *,
    config: str | None = None,
    workdir: str | None = None,
    options: Mapping[str, str] | None = None,
) -> NoReturn:
    """Parses the command line and runs main(config, workdir, **options), which returns the exit status.

    sections: those of the configuration that the program reads, listed by --help. config, workdir:
    defaults of the flags, without which they must be given; config is relative to the repository.
    options: further flags that hold a text (None when not given), name -> help.
    """
    options = options or {}
    default = str(ROOT / config) if config else None
    config_flags.DEFINE_config_file(
        "config", default, f"file with the settings (default: {config})", lock_config=True
    )
    flags.DEFINE_string("workdir", workdir, "folder of the run; the same folder resumes it")
    for name, meaning in options.items():
        flags.DEFINE_string(name, None, meaning)
    # absl shows the flags of the module that is __main__, and that module's docstring.
    for name in ("config", "workdir", *options):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    program = sys.modules["__main__"]
    program.__doc__ = f"{program.__doc__}\n{settings(sections)}"

    def checked(_: list[str]) -> int | None:
        if flags.FLAGS.config is None:
            raise UserError("--config is missing: give a file of configs/, or your own")
        if not flags.FLAGS.workdir:
            raise UserError("--workdir is missing: give the folder this run is to live in")
        if Path(flags.FLAGS.workdir).is_file():
            raise UserError(f"--workdir={flags.FLAGS.workdir} is a file: give a folder")
        values = config_module.default()
        config_module.update(values, flags.FLAGS.config.to_dict(), "--config")
        return main(
            values,
            Path(flags.FLAGS.workdir),
            **{name: flags.FLAGS[name].value for name in options},
        )

    run_program(checked)


def settings(sections: tuple[str, ...]) -> str:
    """The settings of some sections with their defaults, a line each."""
    flat = config_module.flatten(config_module.default().to_dict())
    lines = [
        f"  --config.{key}={value!r}"
        for key, value in flat.items()
        if key.split(".")[0] in (*sections, "seed")
    ]
    return "\n".join(["Settings and their defaults (srpo_jax/config.py explains each):", *lines])
