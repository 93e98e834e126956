"""The report: data that survives JSON, and files a reader can trust."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from srpo_jax.reporting import figure as report_figure
from srpo_jax.reporting.report import (
    Curve,
    Interval,
    JudgeCheck,
    Report,
    Sample,
    from_json,
    markdown,
    print_table,
    to_json,
    write,
)
from srpo_jax.runtime.errors import UserError

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'text' | [bold] {{ 7 * 7 }} $x$"


def curve(
    method: str, documents: str = "Wikipedia", rates: tuple[float, ...] = (0.4, 0.5)
) -> Curve:
    return Curve(
        method,
        documents,
        "in distribution" if documents == "Wikipedia" else "out of distribution",
        tuple(Interval(rate, rate - 0.05, rate + 0.06) for rate in rates),
        tuple(9.0 + k for k in range(len(rates))),
        tuple(0.25 * (k > 0) for k in range(len(rates))),
    )


def make_report(**changes: object) -> Report:
    base = Report(
        title="Does the model improve its own answer?",
        judge_name="MiniLM and friends",
        judge_description="Similarity, less penalties.",
        judge_is_proxy=True,
        gold_words={"Wikipedia": 8.3, "ACLSum": 26.9},
        document_counts={"Wikipedia": 1024, "ACLSum": 96},
        checks=(JudgeCheck("gold shuffled", "Wikipedia", 0.86, 0.81, 0.9, 400),),
        curves=(curve("SRPO"), curve("DPO", rates=(0.42, 0.391)), curve("SRPO", "ACLSum")),
        samples=(
            Sample(
                "Wikipedia",
                "A long document.",
                "The human gold.",
                {"SRPO": ("first try", "second try"), "DPO": ("only try", "only try")},
                {"SRPO": (0.41, 0.58), "DPO": (0.46, 0.46)},
            ),
        ),
        facts=(("machine", "2 cores"),),
        command="python -m srpo_jax.quickstart",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


class Page(HTMLParser):
    """Collects the tags with their attributes, the text, and what is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(make_report(), tmp_path_factory.mktemp("run") / "report")


def test_json_round_trip_restores_an_equal_report():
    report = make_report(command=HOSTILE)
    assert from_json(to_json(report)) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("curves"), r"lacks the keys \['curves'\]"),
        (lambda data: data["curves"][0].update(role="somewhere"), "role must be one of"),
        (lambda data: data["curves"][0]["mean_words"].pop(), "of one length"),
        (
            lambda data: data["curves"][1]["win_rates"][0].update(mean="high"),
            r"win_rates\[0\].mean",
        ),
        (lambda data: data["facts"][0].append("more"), r"facts\[0\] needs 2 entries, got 3"),
        (lambda data: data.update(judge_is_proxy=1), "judge_is_proxy is 1"),
        (lambda data: data["gold_words"].update(ACLSum=True), "gold_words.ACLSum is True"),
    ],
)
def test_json_that_is_no_report_is_named(change, message):
    data = json.loads(to_json(make_report()))
    change(data)
    with pytest.raises(UserError, match=message):
        from_json(json.dumps(data))


def test_text_that_is_no_json_is_named():
    with pytest.raises(UserError, match=r"results\.json"):
        from_json("{")


@pytest.mark.parametrize("values", [(float("nan"), 0.0, 1.0), (0.5, -0.1, 0.6), (50.0, 45.0, 55.0)])
def test_an_interval_holds_fractions(values):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Interval(*values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curves": ()}, "at least one curve"),
        ({"curves": (curve("SRPO"), curve("SRPO"))}, "given twice"),
        ({"document_counts": {"Wikipedia": 1}}, "entry for 'ACLSum'"),
    ],
)
def test_a_report_refuses_what_it_cannot_show(changes, message):
    with pytest.raises(ValueError, match=message):
        make_report(**changes)


def test_a_sample_needs_a_probability_for_every_revision():
    with pytest.raises(ValueError, match="one probability per revision"):
        Sample("Wikipedia", "x", "gold", {"SRPO": ("a", "b")}, {"SRPO": (0.5,)})


def test_write_leaves_the_four_files_and_nothing_else(written):
    folder = written["report.html"].parent
    assert {path.name for path in folder.iterdir()} == {
        "win_rate.png",
        "table.md",
        "report.html",
        "results.json",
    }
    assert from_json(written["results.json"].read_text()) == make_report()


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    write(make_report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write(make_report(title="another"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/report"):
        write(make_report(), tmp_path / "file" / "report")


@pytest.mark.parametrize("sets", [1, 2, 3])
def test_the_picture_is_wide_and_white_and_shows_each_method_in_its_colour(sets):
    names = ("Wikipedia", "ACLSum", "Debian")[:sets]
    report = make_report(
        curves=tuple(curve(method, name) for name in names for method in ("SRPO", "IPO")),
        gold_words=dict.fromkeys(names, 9.0),
        document_counts=dict.fromkeys(names, 50),
        samples=(),
    )
    pixels = imread(io.BytesIO(report_figure.draw(report)))[..., :3]
    assert pixels.shape[1] == (1170 if sets == 1 else 1800)
    assert (pixels[[0, -1]] == 1).all()
    assert (pixels[:, [0, -1]] == 1).all()
    for look in report_figure.looks(report).values():
        colour = np.array([int(look.colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - colour).max(-1) < 0.01).sum() > 100


@pytest.mark.parametrize("rates", [(0.5,), (0.0, 1.0), (0.05,) * 30])
def test_curves_of_any_length_and_height_can_be_drawn(rates):
    flat = tuple(Interval(rate, rate, rate) for rate in rates)
    one = dataclasses.replace(curve("mine", rates=(0.4,) * len(rates)), win_rates=flat)
    picture = report_figure.draw(make_report(curves=(one, curve("SRPO")), judge_name=HOSTILE * 3))
    assert imread(io.BytesIO(picture)).shape[1] == 1170


def test_a_known_method_looks_the_same_in_every_report():
    alone = report_figure.looks(make_report(curves=(curve("DPO"),), samples=()))
    crowd = report_figure.looks(make_report(curves=tuple(map(curve, ("mine", "IPO", "DPO")))))
    assert alone["DPO"] == crowd["DPO"]
    assert len({look.colour for look in crowd.values()}) == len(crowd)


def test_labels_are_spread_by_the_least_that_parts_them():
    assert report_figure.spread([10.0, 20.0], 5.0) == [10.0, 20.0]
    assert report_figure.spread([10.0, 11.0, 30.0], 5.0) == pytest.approx([8.0, 13.0, 30.0])
    assert report_figure.spread([1.0, 1.0, 1.0], 2.0) == pytest.approx([-1.0, 1.0, 3.0])


def test_the_page_is_well_formed_and_loads_nothing(written):
    page = Page(written["report.html"].read_text())
    assert page.open == []
    assert not any(tag in {"script", "link", "iframe"} for tag, _ in page.tags)
    sources = [attributes["src"] or "" for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    rest = re.sub(r"base64,[^\"]*", "", written["report.html"].read_text())
    assert not re.search(r"https?:|url\(|@import", rest)


def test_the_page_shows_figures_samples_and_that_the_judge_is_a_proxy(written):
    text = Page(written["report.html"].read_text()).text
    assert "MiniLM and friends is a proxy: it stands in for human readers" in text
    assert "40.0 35.0–46.0 50.0 45.0–56.0 +10.0" in text
    assert "−2.9" in text
    assert "The human gold. Document, 3 words A long document." in text
    assert "second try 0.58" in text
    assert "only try 0.46, unchanged" in text
    assert "1,024 Wikipedia documents" in text


def test_the_page_says_nothing_of_a_proxy_where_the_judge_is_none(tmp_path):
    files = write(make_report(judge_is_proxy=False, judge_name="gpt"), tmp_path)
    for name in ("report.html", "table.md"):
        assert "proxy" not in files[name].read_text()


def test_text_of_others_is_shown_and_never_interpreted(tmp_path):
    sample = Sample("Wikipedia", HOSTILE, HOSTILE, {HOSTILE: (HOSTILE, "")}, {HOSTILE: (0.5, 0.5)})
    report = make_report(
        title=HOSTILE,
        judge_name=HOSTILE,
        judge_description=HOSTILE,
        curves=(curve(HOSTILE),),
        samples=(sample,),
        facts=((HOSTILE, HOSTILE),),
        command=HOSTILE,
    )
    source = write(report, tmp_path)["report.html"].read_text()
    page = Page(source)
    assert "<script" not in source
    assert page.open == []
    assert page.text.count("alert(1)") >= 9
    assert "(empty)" in page.text
    assert "49" not in re.sub(r"\d*\.\d+", "", page.text)  # {{ 7 * 7 }} was not computed


def test_markdown_tables_have_the_figures_and_keep_their_columns():
    text = markdown(make_report(checks=(JudgeCheck("a | b", "Wikipedia", 0.86, 0.81, 0.9, 400),)))
    assert "| SRPO | 40.0 (35.0–46.0) | 50.0 (45.0–56.0) | +10.0 |" in text
    assert "| DPO | 9.0 | 10.0 (25 % unchanged) |" in text
    assert "| a \\| b | Wikipedia | 86.0 | 81.0–90.0 | 400 |" in text
    assert "the gold has 26.9 words" in text


def test_a_shorter_curve_leaves_its_last_cells_empty():
    report = make_report(curves=(curve("SRPO"), curve("start", rates=(0.2,))))
    assert "| start policy | 20.0 (15.0–26.0) |  | +0.0 |" in markdown(report)


def test_the_terminal_table_fits_80_columns_with_five_revisions():
    report = make_report(curves=(curve("start", rates=(0.31, 0.32, 0.33, 0.34, 0.35, 0.36)),))
    console = Console(file=io.StringIO(), width=80, record=True)
    print_table(report, console)
    text = console.export_text()
    assert re.search(r"start policy +31\.0 +32\.0 +33\.0 +34\.0 +35\.0 +36\.0 +\+5\.0", text)
    assert "gold shuffled" in text
    assert "is a proxy" in text


def test_a_report_needs_no_jax():
    code = "import sys, srpo_jax.reporting.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
