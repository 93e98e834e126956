"""Another batch size is asked for by name, and kept."""

import pytest

from srpo_jax.runtime import files
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.batch_sizes import FILE, of_run


def test_a_run_whose_size_never_changed_keeps_nothing(tmp_path):
    assert of_run(tmp_path, 4, 4, 7, asked=False) == [(0, 4)]
    assert not (tmp_path / FILE).exists()


def test_sizes_are_kept_with_the_steps_they_begin_behind(tmp_path):
    with pytest.raises(UserError, match=r"batch_size was 4 and is 8: --change_batch .* step 7;"):
        of_run(tmp_path, 4, 8, 7, asked=False)
    assert of_run(tmp_path, 4, 8, 7, asked=True) == [(0, 4), (7, 8)]
    assert of_run(tmp_path, 8, 8, 9, asked=False) == [(0, 4), (7, 8)]
    assert of_run(tmp_path, 8, 2, 9, asked=True) == [(0, 4), (7, 8), (9, 2)]
    # Of two changes behind one step the second counts.
    assert of_run(tmp_path, 2, 4, 9, asked=True) == [(0, 4), (7, 8), (9, 4)]


def test_a_start_that_was_killed_before_it_wrote_its_settings_does_not_count(tmp_path):
    of_run(tmp_path, 4, 8, 7, asked=True)
    assert of_run(tmp_path, 4, 4, 7, asked=False) == [(0, 4)]
    assert of_run(tmp_path, 4, 4, 12, asked=False) == [(0, 4)]


def test_where_an_older_checkpoint_is_used_the_size_changes_there(tmp_path):
    of_run(tmp_path, 4, 8, 7, asked=True)
    assert of_run(tmp_path, 8, 8, 5, asked=False) == [(0, 4), (5, 8)]
    assert of_run(tmp_path, 8, 8, 7, asked=False) == [(0, 4), (5, 8)]


def test_a_damaged_file_is_named(tmp_path):
    files.write_json(tmp_path / FILE, {"sizes": []})
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match=r"batch_sizes\.json is damaged .*: bring it back"):
        of_run(tmp_path, 4, 4, 7, asked=False)
