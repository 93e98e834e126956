"""Keys of endpoints stay in the environment: settings are written to config.json, and reports show them."""

import re
import urllib.parse
from collections.abc import Iterable, Sequence

from srpo_jax.runtime.errors import UserError

_SECRET = re.compile(
    r"auth|key|token|secret|passw|sig\b|signature|cookie|credential", re.IGNORECASE
)
_INSTEAD = (
    "put it in an environment variable, and name that in config.judge.api_key_env, or as $NAME in "
    "config.judge.headers"
)


def check_url(url: str, setting: str) -> None:
    """UserError for an address with a password or a key in it, which the sentence does not repeat."""
    try:
        parts = urllib.parse.urlsplit(url)
        names = [name for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)]
        inside = parts.username is not None or any(map(_SECRET.search, names))
    except ValueError as error:
        raise UserError(f"{setting} is no address") from error
    if inside:
        raise UserError(
            f"{setting} holds a password or a key, which would stand in config.json: {_INSTEAD}"
        )


def check_headers(entries: Sequence[str]) -> None:
    """UserError for a header that by its name is secret and whose value stands in the settings."""
    for entry in entries:
        name, _, value = entry.partition("=")
        if _SECRET.search(name) and value and "$" not in value:
            raise UserError(
                f"config.judge.headers has the value of {name.strip()!r}, which would stand in "
                f"config.json: {_INSTEAD}"
            )


def hidden(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets: an endpoint may repeat what it was sent."""
    for secret in secrets:
        if len(secret) >= 4:  # shorter ones are words that stand anywhere
            text = text.replace(secret, "…")
    return text
