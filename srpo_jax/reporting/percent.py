"""How the report writes fractions."""

from __future__ import annotations

import math


def percent(share: float, digits: int = 1, signed: bool = False) -> str:
    """A fraction as percent without the sign "%": .123 is "12.3"; NaN is "–".

    What rounds to nothing is "0.0", never "-0.0" or "+0.0". `signed` writes the plus of a change.
    """
    if math.isnan(share):
        return "–"
    text = f"{100 * share:{'+' if signed else ''}.{digits}f}"
    return text if any(digit in "123456789" for digit in text) else text.lstrip("+-")
