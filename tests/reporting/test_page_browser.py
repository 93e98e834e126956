"""The page in a real browser, on a desk and on a phone."""

import numpy as np
import pytest

from srpo_jax.reporting.report import write
from tests.reporting.browser import chromium
from tests.reports import HOSTILE, documents, hostile, report, texts, verdicts

pytestmark = pytest.mark.slow

MANY = 60


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """60 documents; SRPO wins at the last revision on every third, and has no verdict on the first."""
    rows = np.array([[0.0, 0.5, float(i % 3 == 0)] for i in range(MANY)])
    rows[0] = np.nan
    models = ("start", "srpo", "dpo", "ipo")
    made = report(
        sets=(documents(count=MANY), documents("ACLSum", MANY, "out of distribution")),
        texts=tuple(texts(m, name, MANY) for name in ("Wikipedia", "ACLSum") for m in models),
        tables=tuple(
            verdicts(m, name, rows=(rows if m == "srpo" else np.roll(rows, 1, axis=0)).tolist())
            for name in ("Wikipedia", "ACLSum")
            for m in models
        ),
    )
    return write(made, tmp_path_factory.mktemp("report"))["report.html"]


def rows_of(browser):
    return browser.run(
        "return [...document.querySelectorAll('#rows [data-id]')].map(r => r.dataset.id)"
    )


def counted(browser):
    return browser.run("return document.getElementById('count').textContent")


@pytest.mark.parametrize("width", [1400, 390])
def test_nothing_is_cut_off_and_tables_scroll_in_their_own_box(browser, page, width):
    browser.open(page, "#documents&open=1", width=width)
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    inside, outside = browser.run(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inside <= outside == width
    cut = browser.run(
        "return [...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('.scroll, option, .columns')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert cut == []
    pictures = browser.run(
        "return [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert all(natural == 900 and 300 < shown <= width for natural, shown in pictures)
    # What a row opens to fits the window, however wide its table is.
    assert browser.run("return document.querySelector('.inside').offsetWidth") <= width
    assert browser.errors() == []


def test_text_is_dark_on_light(browser, page):
    browser.open(page, width=1400)
    ink, paper = browser.run(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    assert (ink, paper) == ("rgb(28, 31, 35)", "rgb(255, 255, 255)")


def test_a_heading_sorts_and_sorts_back_and_the_missing_come_last(browser, page):
    browser.open(page, width=1400)
    assert rows_of(browser)[:2] == ["Wikipedia/0", "Wikipedia/1"]
    browser.click("#rows [data-key=m1]")
    assert rows_of(browser)[:2] == ["Wikipedia/3", "Wikipedia/6"]
    assert browser.run("return document.querySelector('[aria-sort]').ariaSort") == "descending"
    browser.click("#rows [data-key=m1]")
    assert rows_of(browser)[:2] == ["Wikipedia/1", "Wikipedia/2"]
    assert "#documents&sort=m1&down=0" in browser.run("return location.hash")
    browser.click("#more")
    assert rows_of(browser)[-1] == "Wikipedia/0"


def test_filters_and_search_narrow_the_rows(browser, page):
    browser.open(page, "#documents&model=1&show=wins", width=1400)
    assert counted(browser) == "19 of 60 documents"
    browser.run(
        "const s = document.querySelector('[name=show]'); s.value = 'missing';"
        "s.dispatchEvent(new Event('input', { bubbles: true }));"
    )
    browser.wait("document.getElementById('count').textContent == '1 of 60 documents'")
    browser.open(page, width=1400)
    browser.type("[name=search]", "srpo then SAYS 17")
    browser.wait("document.getElementById('count').textContent == '1 of 60 documents'")
    assert rows_of(browser) == ["Wikipedia/17"]


def test_a_row_opens_by_keyboard_to_revisions_with_marks_and_verdicts(browser, page):
    browser.open(page, width=1400)
    browser.type("#rows tbody button", "\ue007")  # Enter
    text = browser.run("return document.querySelector('.inside').innerText")
    for expected in ("The human gold 0.", "revision 2, 4 words, unchanged", "cut off", "refused"):
        assert expected in text
    assert browser.run(
        "return [...document.querySelectorAll('.inside ins')].map(e => e.innerText)"
    ) == (["then"] * 4)
    assert browser.run("return document.activeElement.getAttribute('aria-expanded')") == "true"
    browser.click("[name=marks]")
    browser.wait("!document.querySelector('.inside ins')")


def test_a_hostile_text_is_only_text(browser, tmp_path):
    path = write(hostile(), tmp_path)["report.html"]
    browser.open(path, "#documents&open=0", width=1400)
    shown = browser.run("return document.querySelector('.document').textContent")
    assert shown.endswith(HOSTILE)
    assert browser.run("return document.scripts.length") == 2
    assert browser.errors() == []


def test_a_fragment_of_nonsense_is_no_error(browser, page):
    for fragment in (
        "#documents&set=99&view=-1&model=x&show=constructor&sort=zz&open=a,999",
        "#rates",
    ):
        browser.open(page, fragment, width=1400)
        assert counted(browser).startswith("60 of 60")
        assert browser.errors() == []
