import numpy as np
import pytest

from srpo_jax.evaluation import store
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
