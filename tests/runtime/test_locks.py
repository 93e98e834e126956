import errno

import pytest

from srpo_jax.runtime import locks
from srpo_jax.runtime.errors import UserError
from tests import processes


def test_a_second_process_waits_and_is_then_refused(tmp_path, monkeypatch, capsys):
    file = tmp_path / "new" / "lock"
    file.parent.mkdir()
    with processes.holding(file) as other:
        monkeypatch.setattr(locks, "PATIENCE", 0.0)
        with pytest.raises(UserError, match=r"^somebody writes: let it end, or use another pen$"):
            locks.alone(file, "somebody writes", "another pen").__enter__()
        monkeypatch.setattr(locks, "PATIENCE", 60.0)
        monkeypatch.setattr(locks.time, "sleep", lambda _: other.communicate())  # it ends
        with locks.alone(file, "somebody writes", "another pen"):
            assert "somebody writes; waiting for it to end" in capsys.readouterr().out


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    for _ in range(2):
        with locks.alone(tmp_path / "lock", "somebody writes", "another pen"):
            pass
    assert capsys.readouterr().out.count(f"{tmp_path}: there are no locks here") == 1
