"""What checks the annotations of the modules that tests/conftest.py names: beartype, on public functions.

Private ones are called with whatever tracing hands over, numpy constants among them.
"""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments and result checked at each call, unless it is private."""
    name = function.__name__
    private = name.startswith("_") and not name.startswith("__")
    return function if private else beartype(function)
