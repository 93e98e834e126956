import dataclasses
import io
import re

from rich.console import Console

from srpo_jax.reporting.table import markdown, print_table
from tests.reports import evidence, hostile, report, verdicts


def test_markdown_has_rates_counts_differences_texts_and_judges():
    text = markdown(report())
    assert "| SRPO | 100.0 (51.0–100.0) | 100.0 (51.0–100.0) | 100.0 (51.0–100.0) | 0.0 |" in text
    assert re.search(r"\| start policy \| 0 \| 16.7 \| .* \| 3 \| 0 \| 1 \| 2 \| 1 \|", text)
    assert re.search(
        r"\| start policy y\\_2 − start policy y\\_0 \| \+83.3 \| .* \| 0.250 \|", text
    )
    assert "| SRPO | 2 | 4.0 | 100.0 | 0.0 | 0.0 | 0.0 | 25.0 |" in text
    assert "| gold shuffled | Wikipedia | 86.0 | 81.0–90.0 | 400 |" in text
    assert "| clerk | model | 0.00 |" in text
    assert "Cost: requests 48, price 0.01." in text
    assert "the gold has 4.0 words" in text


def test_a_damage_that_the_judge_was_fitted_with_is_marked():
    clerk, model = evidence().judges
    fitted = dataclasses.replace(clerk.checks[0], held_out=False)
    text = markdown(report(judges=(dataclasses.replace(clerk, checks=(fitted,)), model)))
    assert "| gold shuffled † | Wikipedia |" in text


def test_markdown_says_what_to_be_warned_of():
    rows = [[0.5, 0.5, 0.5]] * 4
    text = markdown(report(tables=(*evidence().tables[-1:], verdicts("mine", rows=rows))))
    assert "model is a proxy" in text
    assert "clerk: the judge does not judge" in text
    assert "up to 25.0 % of completions end at the token limit" in text


def test_missing_verdicts_are_warned_of_with_their_reasons():
    assert "clerk gave no verdict on 8.3 % of 12 comparisons (refused 1)" in markdown(
        report(tables=(verdicts("srpo"),))
    )


def test_markdown_keeps_its_columns_whatever_is_named():
    for line in markdown(hostile()).splitlines():
        assert not re.search(r"(?<!\\)[<>]", line)
        if line.startswith("|"):
            assert line.endswith("|")


def test_no_number_is_minus_zero():
    made = report(tables=(verdicts("srpo", rows=[[0.5, 0.49999, 0.5]] * 4),))
    text = markdown(made)
    assert not re.search(r"[-−+]0\.0+(?![0-9])", text)


def test_the_terminal_table_fits_80_columns():
    console = Console(file=io.StringIO(), width=80, record=True)
    print_table(report(), console)
    text = console.export_text()
    assert re.search(r"SRPO +100\.0 +100\.0 +100\.0 +0\.0", text)
    assert "model is a proxy" in text
    assert "Cost: requests 48" in text


def test_the_terminal_survives_hostile_names():
    console = Console(file=io.StringIO(), width=80, record=True)
    print_table(hostile(), console)
    assert "[bold]" in console.export_text()
