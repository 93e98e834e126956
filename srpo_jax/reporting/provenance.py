"""Where numbers come from: the program's version and commit, its libraries, the machine."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

import srpo_jax

_LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


def facts(devices: str = "") -> tuple[tuple[str, str], ...]:
    """(label, value) lines for a report; `devices` says what accelerators were used."""
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    return (
        ("machine", f"{devices}, {machine}" if devices else machine),
        ("versions", f"{versions}, Python {platform.python_version()}"),
        ("program", f"srpo_jax {srpo_jax.__version__}, {commit()}"),
    )


def commit(folder: Path | None = None) -> str:
    """The commit of the working tree that `folder` (this package) is in, and whether it was changed."""
    folder = folder or Path(srpo_jax.__file__).parent
    found = _git(folder, "rev-parse", "HEAD")
    # A package installed inside somebody else's repository is not of its commit.
    if not found or not _git(folder, "ls-files", "__init__.py"):
        return "not in a Git repository"
    changed = " with changes" if _git(folder, "status", "--porcelain", "--", ".") else ""
    return f"commit {found[:12]}{changed}"


def _git(folder: Path, *arguments: str) -> str:
    """What git prints, "" where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
