"""Results are kept whole, but for the documents."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.codec import to_json
from srpo_jax.reporting.compare import read
from tests.reports import report
from tools import keep_results

TOOL = Path(__file__).parents[2] / "tools" / "keep_results.py"


def ran(*arguments):
    command = [sys.executable, TOOL, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=TOOL.parents[1], timeout=300
    )


def test_verdicts_and_lengths_stay_and_texts_of_others_go(tmp_path):
    given = report().evidence
    given = dataclasses.replace(given, facts=(("model x", "/runs/x, weights ab"), *given.facts))
    tables = tuple(map(keep_results.shortened, given.tables))
    whole = assemble(dataclasses.replace(given, tables=tables), report().rules)
    for table, short in zip(given.tables, tables, strict=True):
        np.testing.assert_allclose(short.probabilities, table.probabilities, rtol=5e-6)
        draws = [values == 0.5 for values in (short.probabilities, table.probabilities)]
        np.testing.assert_array_equal(*draws)
    folder = tmp_path / "run" / "report"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(to_json(whole), encoding="utf-8")
    done = ran(tmp_path / "kept", f"run={tmp_path / 'run'}")
    assert done.stdout.startswith("run: "), done.stderr
    kept = read(tmp_path / "kept" / "run.json.gz")
    # What needs the golds' words stays as it was measured, and cannot be measured again.
    assert kept.styles == whole.styles
    again = dataclasses.replace(assemble(kept.evidence, whole.rules), styles=whole.styles)
    assert to_json(again).partition('"curves"')[2] == to_json(whole).partition('"curves"')[2]
    for documents in kept.evidence.sets:
        assert not "".join((*documents.prompts, *filter(None, documents.golds))).strip("· \n")
    assert kept.evidence.texts == whole.evidence.texts
    assert kept.evidence.facts == (("model x", "x, weights ab"), *given.facts[1:])


def test_where_things_lay_is_left_out():
    command = (
        "python -m srpo_jax.evaluate --config=configs/a.py:/home/me/texts:out:1 --workdir=/runs/b "
        "--config.evaluate.models=('x=/runs/x@40','y=gs://bucket/runs/y','z=runs/z')"
    )
    assert keep_results.nowhere(command) == (
        "python -m srpo_jax.evaluate --config=configs/a.py:texts:out:1 --workdir=b "
        "--config.evaluate.models=('x=x@40','y=y','z=runs/z')"
    )
    assert keep_results.nowhere("/runs/x/dpo, weights ab, float32") == "dpo, weights ab, float32"


def test_a_folder_without_a_report_is_named(tmp_path):
    done = ran(tmp_path / "kept", f"run={tmp_path}")
    assert done.returncode
    assert "results.json cannot be read" in done.stderr
