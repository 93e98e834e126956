"""A folder with stand-ins of the clouds' tools."""

import os

import pytest

from tests.launch import clouds


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder, the current one, with stand-ins of the tools; calls are kept in its file `asked`."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, content in clouds.TOOLS.items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path
