"""The files that a report leaves."""

import subprocess
import sys

import pytest

from srpo_jax.reporting.codec import from_json, to_json
from srpo_jax.reporting.report import write
from srpo_jax.runtime.errors import UserError
from tests.reports import report

FILES = {"win_rate.png", "table.md", "report.html", "results.json", "results.parquet"}


@pytest.fixture(scope="module")
def small():
    return report(judges=report().evidence.judges[:1], tables=report().evidence.tables[:2])


def test_write_leaves_the_files_and_nothing_else(tmp_path, small):
    files = write(small, tmp_path / "run" / "report")
    assert {path.name for path in files["report.html"].parent.iterdir()} == FILES == set(files)
    assert to_json(from_json(files["results.json"].read_text())) == to_json(small)


def test_a_report_without_verdicts_shows_the_texts(tmp_path):
    files = write(report(tables=()), tmp_path)
    assert set(files) == FILES - {"win_rate.png"}
    assert "srpo then says 1" in files["report.html"].read_text()


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, small):
    write(small, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="No space left"):
        write(report(title="another"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_is_named(tmp_path, small):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/report"):
        write(small, tmp_path / "file" / "report")


def test_a_report_needs_no_jax():
    code = "import sys, srpo_jax.reporting.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
