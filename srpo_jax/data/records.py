"""Preference pairs as JSON lines: {"prompt", "chosen", "rejected", "label_prob"?}."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

from srpo_jax.errors import UserError

TEXTS = ("prompt", "chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class Pair:
    """prompt is x; label_prob the probability that chosen is better. line: where it was read."""

    prompt: str
    chosen: str
    rejected: str
    label_prob: float = 1.0
    line: int = dataclasses.field(default=0, compare=False)


def read_pairs(path: str | Path) -> list[Pair]:
    """All pairs of a file. The first malformed line ends it with a UserError naming file and line.

    Blank lines are skipped, other keys are ignored.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no pairs at {path}: set config.data.pairs to a JSON lines file")
    with path.open("rb") as lines:
        pairs = [_parse(text, f"{path}:{n}", n) for n, text in enumerate(lines, 1) if text.strip()]
    if not pairs:
        raise UserError(f"{path} holds no pairs")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Writes the file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        for pair in pairs:
            record = {name: getattr(pair, name) for name in (*TEXTS, "label_prob")}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(part, path)


def _parse(text: bytes, where: str, line: int) -> Pair:
    try:
        record = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: a pair is a JSON object, not {type(record).__name__}")
    for name in TEXTS:
        if not isinstance(record.get(name), str):
            raise UserError(f"{where}: {name!r} is missing or not a text")
        if not record[name].strip():
            raise UserError(f"{where}: {name!r} is empty")
        if any("\ud800" <= character <= "\udfff" for character in record[name]):
            raise UserError(f"{where}: {name!r} holds half of a character (a lone surrogate)")
    label_prob = record.get("label_prob", 1.0)
    if isinstance(label_prob, bool) or not isinstance(label_prob, int | float):
        raise UserError(f"{where}: 'label_prob' is not a number")
    if not 0 <= label_prob <= 1:
        raise UserError(f"{where}: 'label_prob' is {label_prob}, which is not between 0 and 1")
    prompt, chosen, rejected = (record[name] for name in TEXTS)
    return Pair(prompt, chosen, rejected, float(label_prob), line)
