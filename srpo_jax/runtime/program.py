"""What all programs share: reading the command line, and ending with one sentence on a failure."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import Unavailable, UserError

USER_ERROR = 2
INTERRUPTED = 130
# Of an OSError: no room, no right to write, a file where a folder was named, or the disk is at fault.
# Others are this package's mistakes.
PLACE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR),
    *(errno.EIO, errno.ESTALE),
)


def run_program(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Parses absl flags, runs `main` and exits.

    Exit status: what `main` returns (None: 0); 2 after a `UserError`, a mistake on the command line, or
    where a file cannot be written, which is said in one line `error: …` on standard error; 1 after such a
    line where a store of objects does not answer, or who reads the output (`head`, say) has ended; 130
    after Ctrl-C. Any other exception is this package's mistake and keeps its traceback.

    Args:
        main: takes the arguments that are no flags, the program's name first.
    """
    app.run(lambda arguments: _guarded(main, arguments), flags_parser=_parse)
    raise AssertionError("absl's app.run exits")


def refuse_arguments(stray: Sequence[str]) -> None:
    """UserError naming the first of the arguments that belong to no flag, where a program takes none."""
    if stray:
        raise UserError(f"{stray[0]} belongs to no flag: write --NAME=VALUE (--help lists them)")


def keep_compiled(workdir: Path) -> None:
    """Programs that take a while to compile are kept in WORKDIR/compiled, for the next start.

    JAX_COMPILATION_CACHE_DIR names another folder, which several runs may share. Raises UserError where
    nothing can be written in the workdir.
    """
    storage.check_writable(workdir, "--workdir")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(storage.absolute(workdir) / "compiled"))


def _guarded(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    try:
        code = main(arguments) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        code = _say(f"error: {error}", 1 if isinstance(error, Unavailable) else USER_ERROR)
    except KeyboardInterrupt:
        code = _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _say("the output is read no further: ended", 1)
    except OSError as error:
        # A store's client has no number for "no such bucket" and "no right to", but words.
        in_words = error.errno is None and isinstance(error, FileNotFoundError | PermissionError)
        if not in_words and error.errno not in PLACE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        what = str(error) if in_words else f"{where}{error.strerror}"
        again = "put that right, and the same command goes on"
        code = _say(f"error: {what}: {again}", USER_ERROR)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    if jax.distributed.is_initialized():
        # A usual exit would wait for the other processes, which wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _say(sentence: str, code: int) -> int:
    print(" ".join(sentence.split()), file=sys.stderr)
    return code


def _parse(arguments: Sequence[str]) -> list[str]:
    flags.FLAGS.set_gnu_getopt()  # flags may stand behind other arguments
    arguments, nones = _without_none(arguments)
    try:
        rest = flags.FLAGS(list(arguments))
        _refuse_sections(arguments)
        _check_config_files()
        _set_none(nones)
    except SystemExit:  # --help has been answered; absl would exit with 1
        sys.exit(0)
    except UserError as error:
        sys.exit(_say(f"error: {error}", USER_ERROR))
    except flags.Error as error:
        said = _in_config_file(error) or f"{error} (--help lists the flags)"
        sys.exit(_say(f"error: {said}", USER_ERROR))
    except Exception as error:
        sentence = _in_config_file(error) or _unknown_key(error, [*arguments, *nones])
        if sentence is None:
            raise
        sys.exit(_say(f"error: {sentence}", USER_ERROR))
    if flags.FLAGS["verbosity"].using_default_value:
        # absl's default tells all that JAX and Orbax do inside.
        flags.FLAGS["verbosity"].value = logging.WARNING
        flags.FLAGS["verbosity"].using_default_value = False
    return rest


_NONE = re.compile(r"--?(\w+)\.([\w.]+)=None")


def _without_none(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments, and those of the form --config.KEY=None (or two words): no parser takes these."""
    kept: list[str] = []
    nones: list[str] = []
    for argument in arguments:
        joined = f"{kept[-1]}=None" if kept and argument == "None" else argument
        if not _NONE.fullmatch(joined):
            kept.append(argument)
            continue
        if joined != argument:
            kept.pop()
        nones.append(joined)
    return kept, nones


def _set_none(nones: Sequence[str]) -> None:
    """Whether a setting may be None is checked with its section."""
    for argument in nones:
        flag, path = re.fullmatch(_NONE, argument).groups()  # type: ignore[union-attr]
        if flag not in flags.FLAGS:
            raise flags.UnrecognizedFlagError(argument)
        if (target := flags.FLAGS[flag].value) is None:
            return  # no --config at all
        *sections, key = path.split(".")
        for section in sections:
            target = getattr(target, section)
        getattr(target, key)  # which names a key that is not there
        setattr(target, key, None)


def _refuse_sections(arguments: Sequence[str]) -> None:
    """UserError for --config.SECTION=…: what it does not name would silently lose the file's values."""
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if name in flags.FLAGS and "." in name and isinstance(flags.FLAGS[name].value, ConfigDict):
            raise UserError(f"{argument}: {name} is a section: set its keys, --{name}.KEY=VALUE")


def _unknown_key(error: Exception, arguments: Sequence[str]) -> str | None:
    """Sentence on the override `--config.….key=…` whose key ml_collections did not find."""
    if not isinstance(error, AttributeError | KeyError | ValueError):
        return None
    text = str(error).replace("\\n", "\n")  # the error is a quoted error
    key = re.sub(r"\W", "", text.splitlines()[0])
    for argument in arguments:
        whole = argument.lstrip("-").split("=")[0].partition(".")[2]
        if not argument.startswith("-") or not whole:
            continue
        if key in whole.split("."):
            similar = re.search(r'Did you mean "(\w+)"', text)
            advice = f'did you mean "{similar[1]}"?' if similar else "--help lists them all"
            return f'{argument}: the configuration has no key "{key}": {advice}'
        if whole in text:  # train.steps.x: a key of what is no section
            return f'{argument}: the configuration has no key "{whole}": --help lists them all'
    return None


def _in_config_file(error: BaseException) -> str | None:
    """Sentence on what a configuration file's own code raised, with file and line."""
    while "Error whilst parsing config file" in str(error) and error.__context__:
        error = error.__context__  # ml_collections, and absl then, put it into a text
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    if isinstance(error, AttributeError) and error.name == "get_config":
        return f"{getattr(error.obj, '__file__', '--config')} has no function get_config()"
    frames = list(traceback.walk_tb(error.__traceback__))
    # ml_collections calls the file's module so.
    own = [one for one in frames if str(one[0].f_globals.get("__name__")).endswith("_config")]
    if own:
        frame, line = own[-1]
        where = f"{frame.f_code.co_filename}:{line}"
        lines = str(error.args[0] if error.args else error).splitlines() or [""]
        advice = f" ({lines[-1]})" if lines[-1].startswith("Did you mean") else ""
        reason = lines[0].partition(" Other fields present")[0]
        return f"{where}: {type(error).__name__}: {reason}{advice}"
    if "get_config() takes" in str(error):
        return f"the file of --config takes nothing behind a colon: {error}"
    return None


def _check_config_files() -> None:
    """ml_collections keeps a missing file to itself until the configuration is first used."""
    for name in flags.FLAGS:
        try:
            getattr(flags.FLAGS[name].value, "keys", None)
        except OSError as error:
            found = re.findall(r"\[Errno \d+\] (.+?): '(.+?)'", str(error))
            what = f"cannot read {found[-1][1]}: {found[-1][0]}" if found else str(error)
            raise UserError(f"--{name}: {what}") from error
