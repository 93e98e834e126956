import pytest

from srpo_jax.reporting.percent import percent


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.1234,), "12.3"),
        ((0.1234, 0), "12"),
        ((-0.0,), "0.0"),
        ((-0.0004,), "0.0"),
        ((-0.004, 0), "0"),
        ((-0.0006,), "-0.1"),
        ((0.0004, 1, True), "0.0"),
        ((0.031, 1, True), "+3.1"),
        ((-0.031, 1, True), "-3.1"),
        ((1.0, 0), "100"),
        ((float("nan"),), "–"),
    ],
)
def test_percent(arguments, text):
    assert percent(*arguments) == text
