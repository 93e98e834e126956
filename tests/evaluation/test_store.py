import numpy as np
import pytest

from srpo_jax.data.document_sets import DocumentSet
from srpo_jax.data.documents import Document
from srpo_jax.evaluation import store
from srpo_jax.evaluation.store import Chosen
from srpo_jax.reporting.verdicts import Key, VerdictTable
from srpo_jax.runtime.errors import UserError

TABLE = VerdictTable(Key("news", "start", "proxy", "gold"), np.array([[0.25, 1.0]]), None, ())


def test_verdicts_are_read_as_written(tmp_path):
    store.write_table(tmp_path, TABLE, "texts", "version 1")
    found = store.read_table(tmp_path, TABLE.key, "texts", "version 1")
    np.testing.assert_array_equal(found.probabilities, TABLE.probabilities)


@pytest.mark.parametrize(
    ("judged", "judge", "said"),
    [
        ("other texts", "version 1", "is about other texts"),
        ("texts", "version 2", r"the judge 'proxy' as it was before .* judge again"),
    ],
)
def test_verdicts_about_other_texts_or_by_another_version_are_refused(
    tmp_path, judged, judge, said
):
    store.write_table(tmp_path, TABLE, "texts", "version 1")
    with pytest.raises(UserError, match=said):
        store.read_table(tmp_path, TABLE.key, judged, judge)


def test_verdicts_by_a_judge_that_was_shown_other_golds_are_refused(tmp_path):
    store.write_table(tmp_path, TABLE, "texts", "version 1", "golds")
    store.read_table(tmp_path, TABLE.key, "texts", "version 1", "golds")
    with pytest.raises(UserError, match=r"is by other golds: judge again, with --stage=judge"):
        store.read_table(tmp_path, TABLE.key, "texts", "version 1", "corrected golds")
    # Who was not shown them says the same of any.
    store.write_table(tmp_path, TABLE, "texts", "version 1")
    store.read_table(tmp_path, TABLE.key, "texts", "version 1", "corrected golds")


def test_documents_of_another_split_are_refused(tmp_path):
    written = DocumentSet("news.jsonl", "news", split="validation")
    store.write_documents(tmp_path, [Chosen(written, (Document("1", "x", "y"),))])
    assert store.read_documents(tmp_path, [written])[0].ids == ("1",)
    asked = DocumentSet("news.jsonl", "news", split="test")
    with pytest.raises(UserError, match="is of the split 'validation', and 'test' is asked for"):
        store.read_documents(tmp_path, [asked])


def test_models_and_sets_whose_names_join_to_one_are_refused():
    sets = [DocumentSet("a", "news"), DocumentSet("b", "old-news")]
    store.require_apart(["srpo", "srpo-new"], sets)
    with pytest.raises(UserError, match="'srpo-old' on 'news' and the model 'srpo' on 'old-news'"):
        store.require_apart(["srpo", "srpo-old"], sets)
