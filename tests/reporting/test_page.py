"""The page as text: well formed, offline, escaped. In a browser: test_page_browser.py."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from srpo_jax.reporting.page import render
from tests.reports import HOSTILE, NAN, documents, hostile, report, texts, verdicts


class Page(HTMLParser):
    """Collects the tags with their attributes, the text, what scripts hold, and what is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def source():
    return render(report())


def test_the_page_is_well_formed_and_loads_nothing(source):
    page = Page(source)
    assert page.open == []
    assert not any(tag in {"link", "iframe", "object"} for tag, _ in page.tags)
    sources = [attributes["src"] or "" for _, attributes in page.tags if "src" in attributes]
    assert sources
    assert all(each.startswith("data:image/png;base64,") for each in sources)
    rest = re.sub(r"base64,[^\"]*", "", source)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", rest)


def test_only_the_pages_own_script_may_run(source):
    page = Page(source)
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == [
        "application/json",
        None,
    ]
    own = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert f"script-src 'sha256-{own}'" in policy
    assert "default-src 'none'" in policy
    assert "innerHTML" not in page.scripts[1]


def test_the_page_shows_rates_counts_differences_judges_and_facts(source):
    text = Page(source).text
    assert "Wikipedia (in distribution): SRPO has the highest of 3 win rates" in text
    assert "100.0 51.0–100.0" in text
    assert "model is a proxy: it stands in for human readers" in text
    assert "y 2 − start policy y 0 +83.3" in text
    assert "Position: both orders agree on" in text
    assert "Cost: requests 48, price 0.01." in text
    assert "Which is better?" in text
    assert "machine 2 cores" in text
    assert "8 documents with 72 completions; this file has about" in text
    assert not re.search(r"[-−+]0\.0+(?![0-9])", text)


def test_every_text_and_verdict_is_in_the_pages_data(source):
    data = Page(source).data
    first = data["sets"][0]
    assert first["golds"][1] == "The human gold 1."
    # The third equals the second and is not stored again.
    assert first["written"]["1"]["texts"][1] == ["srpo says 1", "srpo then says 1", None]
    assert first["written"]["1"]["cut"][0] == [1, 0, 0]
    assert data["tables"][0]["p"][3] == [None, 0.0, 0.0]
    assert data["tables"][0]["missing"] == {"3,0": "refused"}
    assert [view["against"] for view in data["views"][:2]] == [
        "the human gold",
        "its own completion before revision",
    ]


def test_text_of_others_is_shown_and_never_interpreted():
    source = render(hostile())
    page = Page(source)
    assert page.open == []
    assert source.count("<script") == 2
    assert source.count("</script") == 2
    assert source.count("</style") == 1
    assert page.text.count("alert(1)") >= 9
    assert page.data["sets"][0]["prompts"] == [HOSTILE]
    assert "49" not in re.sub(r"\d*\.\d+", "", page.text)  # {{ 7 * 7 }} was not computed


def test_the_page_counts_the_documents_that_were_judged():
    page = render(
        report(
            sets=(documents(golds=("one", "two", "three", None)),),
            texts=(texts("start"),),
            tables=(verdicts("start", rows=[[0.0, 1.0, 1.0]] * 3 + [[NAN] * 3]),),
        )
    )
    assert re.search(r", on\s+3 Wikipedia documents \(in distribution\)", page)


def test_the_page_says_nothing_of_a_proxy_where_no_judge_is_one():
    made = report().evidence
    source = render(report(judges=made.judges[:1], tables=made.tables[:2]))
    assert "proxy" not in Page(source).text


def test_what_was_revised_fewer_times_has_no_rate_after_all_revisions():
    few = dataclasses.replace(texts("mine"), revisions=(("one",),) * 4, cut=())
    made = report(
        sets=(documents(),),
        texts=(texts("srpo"), few),
        tables=(
            verdicts("srpo", rows=[[0.0, 0.0, 0.0]] * 4),
            verdicts("mine", rows=[[1.0]] * 4),
        ),
    )
    summary = Page(render(made)).text.partition("win rate in %")[2].partition("Win rates")[0]
    assert summary.count("100.0") == 2  # the rate unrevised, and its interval's upper end
