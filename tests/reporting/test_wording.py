import pytest

from srpo_jax.reporting.wording import amount, fixed, p_value, percent, points, short, span


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.6215), "62.2"),
        (percent(-0.0001), "0.0"),
        (points(0.11), "+11.0"),
        (points(-0.029), "−2.9"),
        (points(-0.0004), "0.0"),
        (points(0.0004), "0.0"),
        (points(0.0), "0.0"),
        (points(12.706), "+1,270.6"),  # an end of Student's interval over two parts
        (span(0.35, 0.46), "35.0–46.0"),
        (span(-0.01, 0.02), "−1.0 to 2.0"),
        (p_value(0.0004), "< 0.001"),
        (p_value(0.05), "0.050"),
        (amount(11200340), "11,200,340"),
        (amount(29.374), "29.37"),
        (amount(0.0012), "0.0012"),
        (fixed(-1234.56), "−1,234.6"),
        (fixed(-0.04), "0.0"),
        (short("abcdef", 4), "abc…"),
        (short("abcd", 4), "abcd"),
    ],
)
def test_numbers_are_written_plainly(text, expected):
    assert text == expected
