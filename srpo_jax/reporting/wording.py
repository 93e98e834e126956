"""Numbers as a report writes them. No number is ever written "-0.0"."""

MINUS = "−"


def percent(share: float, digits: int = 1) -> str:
    """A fraction in percent, without the sign "%"."""
    return fixed(100 * share, digits)


def fixed(value: float, digits: int = 1) -> str:
    """A number with so many digits; thousands parted, a true minus, zero without a sign."""
    text = f"{abs(value):,.{digits}f}"
    negative = value < 0 and float(text.replace(",", "")) != 0
    return (MINUS if negative else "") + text


def points(difference: float, digits: int = 1) -> str:
    """A difference of fractions in points of percent, with its sign; none for zero."""
    text = percent(difference, digits)
    return text if text.startswith(MINUS) or not text.strip("0.") else "+" + text


def span(low: float, high: float, digits: int = 1) -> str:
    """An interval of fractions in percent: "35.0–46.0", "−1.0 to 2.0" where a sign would be misread."""
    ends = percent(low, digits), percent(high, digits)
    return " to ".join(ends) if low < 0 else "–".join(ends)


def p_value(p: float) -> str:
    """A p-value: "< 0.001", or three digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def amount(value: float) -> str:
    """A count or a price: whole numbers whole, others with two digits (or more where small)."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) >= 0.01 else f"{value:.2g}"


def short(text: str, most: int) -> str:
    """The text, or its beginning and "…" where it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
