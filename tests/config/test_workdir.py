"""A folder belongs to one run."""

import pytest

from srpo_jax import config as config_module
from srpo_jax.config import Settings, workdir
from srpo_jax.config.attempt import MAY_CHANGE
from srpo_jax.config.workdir import claim, remember
from srpo_jax.runtime import files, locks
from srpo_jax.runtime.errors import UserError
from tests import processes


def test_the_same_settings_go_on(tmp_path):
    for _ in range(2):
        claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    assert config_module.read(tmp_path / "config.json") == Settings()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [("objective.beta", 0.7, r"objective\.beta=0\.1, now 0\.7"), ("mesh.fsdp", 4, None)],
)
def test_other_settings_are_named_unless_they_may_change(tmp_path, key, value, sentence):
    claim(tmp_path, Settings(), {}, ())
    changed = config_module.default()
    config_module.update(changed, {key: value}, "test")
    if sentence is None:
        claim(tmp_path, config_module.checked(changed), {}, ("mesh.",))
    else:
        with pytest.raises(UserError, match=sentence):
            claim(tmp_path, config_module.checked(changed), {}, ("mesh.",))


def test_pairs_that_moved_are_the_same_pairs(tmp_path):
    claim(tmp_path, Settings(), {"data": "a" * 64}, MAY_CHANGE)
    moved = config_module.default()
    moved.data.pairs = "elsewhere/*.jsonl"
    moved.model.remat = "none"  # more memory, or less, for the same numbers
    claim(tmp_path, config_module.checked(moved), {"data": "a" * 64}, MAY_CHANGE)
    assert config_module.read(tmp_path / "config.json").data.pairs == "elsewhere/*.jsonl"
    with pytest.raises(UserError, match=r"another data .* back, its files in the same order, or"):
        claim(tmp_path, config_module.checked(moved), {"data": "b" * 64}, MAY_CHANGE)


def test_another_fingerprint_is_named(tmp_path):
    claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    with pytest.raises(UserError, match="another data"):
        claim(tmp_path, Settings(), {"data": "b" * 64}, ())


def test_what_is_known_later_is_kept_and_compared_too(tmp_path):
    claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    for _ in range(
        2
    ):  # the first time, or of a run that an earlier version began, there is none yet
        remember(tmp_path, "weights", "b" * 64, "weights that are not trained,")
        claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    with pytest.raises(UserError, match=r"begun with weights .* other than now \(bbbb.*now cccc"):
        remember(tmp_path, "weights", "c" * 64, "weights that are not trained,")


def test_an_attempt_that_died_before_it_was_whole_does_not_count(tmp_path):
    claim(tmp_path, Settings(), {}, ())
    (tmp_path / "run.json").unlink()
    claim(tmp_path, Settings(seed=5), {}, ())
    assert config_module.read(tmp_path / "config.json").seed == 5


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seed": ', "\x00" * 40])
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name, content):
    claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*\): delete it"):
        claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    assert (tmp_path / name).read_text() == content
    (tmp_path / name).unlink()
    claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    claim(tmp_path, Settings(), {"data": "a" * 64}, ())
    assert config_module.read(tmp_path / "config.json") == Settings()


def test_settings_given_for_lost_ones_are_said_to_be(tmp_path, capsys):
    claim(tmp_path, Settings(), {}, ())
    (tmp_path / "config.json").unlink()
    claim(tmp_path, Settings(seed=3), {}, ())
    assert "config.json is missing: the settings given now" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed=3, now 0"):
        claim(tmp_path, Settings(), {}, ())


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    claim(tmp_path, Settings(), {}, ())
    before = (tmp_path / "config.json").read_text()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        claim(tmp_path, Settings(), {}, ())
    assert (tmp_path / "config.json").read_text() == before


def test_a_second_start_waits_and_is_then_refused(tmp_path, monkeypatch):
    """It would remove what the first one is saving, and write its metrics to a file that is no more."""
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    with (
        processes.holding(tmp_path / "lock"),
        pytest.raises(UserError, match="another process trains there: let it end"),
    ):
        workdir.alone(tmp_path).__enter__()
