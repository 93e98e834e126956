"""Another judge's scores are kept without texts, and become win rates."""

import dataclasses
import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from srpo_jax.judges.scores import ScoreJudge
from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.codec import to_json
from srpo_jax.reporting.verdicts import OWN
from srpo_jax.runtime.errors import UserError
from tests.reports import documents, evidence, texts, verdicts

TOOL = Path(__file__).parents[2] / "tools" / "second_judge.py"
spec = importlib.util.spec_from_file_location("second_judge", TOOL)
second_judge = importlib.util.module_from_spec(spec)
spec.loader.exec_module(second_judge)


class Longer:
    """Scores the number of characters, a hundredth each."""

    unscored = "empty"

    def scores(self, prompts, completions):
        return np.array([len(text) / 100 if text else np.nan for text in completions])


JUDGE = ScoreJudge("length", "", Longer())


@pytest.fixture
def kept(tmp_path):
    made = evidence(sets=(documents(),), texts=(texts("srpo"),), tables=(verdicts("srpo"),))
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "results.json").write_text(to_json(assemble(made)), encoding="utf-8")
    return second_judge.scored(tmp_path, JUDGE, "length", (0, 2))


def test_scores_become_win_rates(kept):
    assert kept["scores"]["srpo"]["0"] == [len(f"srpo says {i}") / 100 for i in range(4)]
    assert kept["gold"] == [len(f"The human gold {i}.") / 100 for i in range(4)]
    over_gold, over_first = (1 / (1 + np.exp(-50 * d / 100)) for d in (-1, 5))
    line = second_judge.table([kept]).splitlines()[-1]
    assert f"| srpo | 2 | {100 * over_gold:.1f} (" in line
    assert f"| {100 * over_first:.1f} (" in line
    assert line.endswith("| 4 |")


def test_files_of_other_documents_are_pooled_and_of_the_same_refused(kept, tmp_path, capsys):
    other = kept | {"ids": [f"other/{i}" for i in range(4)]}
    files = []
    for name, content in (("a", kept), ("b", other)):
        files.append(tmp_path / f"{name}.json.gz")
        files[-1].write_bytes(gzip.compress(json.dumps(content).encode()))
    second_judge.main(["--show", *map(str, files)])
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 8 |")
    with pytest.raises(UserError, match="count twice"):
        second_judge.main(["--show", str(files[0]), str(files[0])])


def test_a_document_without_gold_is_compared_with_none(tmp_path):
    whole = documents()
    some = dataclasses.replace(whole, golds=(*whole.golds[:3], None))
    made = evidence(sets=(some,), texts=(texts("srpo"),), tables=(verdicts("srpo"),))
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "results.json").write_text(to_json(assemble(made)), encoding="utf-8")
    found = second_judge.scored(tmp_path, JUDGE, "length", (0,))
    assert found["gold"] == [len(gold) / 100 for gold in whole.golds[:3]] + [None]
    assert "of 3)" in second_judge.table([found])
    silent = found | {"gold": [None] * 4}
    assert second_judge.table([silent]).splitlines()[-1] == "| srpo | 0 | - | - | 4 |"


def test_what_is_not_of_one_judge_or_not_the_tools_own_is_refused(kept, tmp_path):
    other = kept | {"ids": ["a", "b", "c", "d"], "judge": "another"}
    with pytest.raises(UserError, match="different judges"):
        second_judge.table([kept, other])
    path = tmp_path / "kept.json.gz"
    for content in (b"no archive", gzip.compress(b"[]")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="name a file that this tool kept"):
            second_judge.main(["--show", str(path)])


def test_a_revision_that_was_not_written_is_named(kept, tmp_path):
    with pytest.raises(UserError, match="must be 0 to 2"):
        second_judge.scored(tmp_path, JUDGE, "length", (0, 3))


def test_results_without_texts_are_judged_by_the_file_of_their_documents(kept, tmp_path):
    whole = documents()
    silent = dataclasses.replace(
        whole,
        prompts=("",) * 4,
        golds=tuple(gold and re.sub(r"\S", "·", gold) for gold in whole.golds),
    )
    made = evidence(sets=(silent,), texts=(texts("srpo"),), tables=(verdicts("srpo"),))
    results = tmp_path / "kept.json.gz"
    results.write_bytes(gzip.compress(to_json(assemble(made)).encode()))
    with pytest.raises(UserError, match="name their file by --documents"):
        second_judge.scored(results, JUDGE, "length", (0, 2))

    def written(golds):
        rows = zip(whole.ids, whole.prompts, golds, strict=True)
        lines = [json.dumps({"id": i, "prompt": x, "gold": y}) for i, x, y in rows]
        path = tmp_path / "documents.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    same = second_judge.scored(results, JUDGE, "length", (0, 2), written(whole.golds))
    assert same == kept
    with pytest.raises(UserError, match="has another gold than in the results"):
        second_judge.scored(results, JUDGE, "length", (0, 2), written(("another",) * 4))


def test_a_conversation_is_judged_as_a_report_has_it(tmp_path):
    turns = ("user", "A?"), ("assistant", "B."), ("user", "C?")
    said = [{"role": role, "content": content} for role, content in turns]
    path = tmp_path / "documents.jsonl"
    path.write_text(json.dumps({"id": "one", "prompt": said, "gold": "D."}), encoding="utf-8")
    kept = dataclasses.replace(documents(count=1), ids=("one",), prompts=("",), golds=("··",))
    found = second_judge.with_texts(kept, path)
    assert found.prompts == ("User: A?\n\nAssistant: B.\n\nUser: C?",)


def test_two_judges_beside_each_other(kept):
    first = evidence(
        sets=(documents(),),
        texts=(texts("srpo"),),
        tables=(
            verdicts("srpo", rows=[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0] * 3, [1.0] * 3]),
            verdicts("srpo", opponent=OWN, rows=[[0.5, 1.0, 1.0]] * 3 + [[0.5, 0.0, 0.0]]),
        ),
    )
    *_, over_gold, over_own = second_judge.beside([kept], [first]).splitlines()
    # By length y_2 is worse than the gold and better than y_0, of every document: of four verdicts
    # the first judge says two of the former too, and three of the latter.
    second = 100 / (1 + np.exp(-50 * 5 / 100))
    assert over_gold.startswith("| srpo | y_2 over the gold | 50.0 (")
    assert over_gold.endswith("| 50 % | 0.00 | 4 |")
    assert "| y_2 over y_0 | 75.0 (" in over_own
    assert f"| {second:.1f} (" in over_own
    assert over_own.endswith("| 75 % | 0.00 | 4 |")
    with pytest.raises(UserError, match="of other documents"):
        second_judge.beside([kept | {"ids": ["other"]}], [first])


def test_longer_and_shorter_revisions_are_told_apart(kept):
    # y_2 has a word more, as many others, one less, and what y_0 had.
    written = [["a b", "", "a b c"], ["a b", "", "a c"], ["a b", "", "a"], ["a b", "", "a b"]]
    first = evidence(
        sets=(documents(),),
        texts=(dataclasses.replace(texts("srpo"), revisions=tuple(map(tuple, written)), cut=()),),
        tables=(
            verdicts("srpo"),
            verdicts("srpo", opponent=OWN, rows=[[0.5, 1.0, p] for p in (1.0, 0.75, 0.25, 0.5)]),
        ),
    )
    rows = second_judge.by_length([kept], [first]).splitlines()[2:]
    second = 100 / (1 + np.exp(-50 * 5 / 100))
    for row, what, said in zip(
        rows, ("more words", "as many, others", "fewer words"), (100, 75, 25), strict=True
    ):
        assert row.startswith(f"| srpo | y_2 | {what} | {said:.1f} (")
        assert f"| {second:.1f} (" in row
        assert row.endswith("| 1 (25 %) |")
