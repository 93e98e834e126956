"""The documentation names files and modules that exist, and its worked example is what the code gives."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
# What a page may mean by a path: from the root, from the package, or from the page itself.
BASES = (ROOT, ROOT / "srpo_jax")
MADE = ("runs/", "DIR/", "WORKDIR/", "metrics.jsonl")  # by the programs, at the user's
METRICS = ("held_out/", "revision/", "reference/")  # names of numbers, no files


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_file_named_exists(page):
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text))
    named |= {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    missing = [
        name
        for name in sorted(named)
        if not name.startswith((*MADE, *METRICS))
        and "NAME" not in name
        and not any((base / name).exists() for base in (*BASES, (ROOT / page).parent))
    ]
    # docs/running.md
    workdir = {
        "checkpoints/",
        "model/",
        "documents/",
        "samples/",
        "judge_scores/",
        "tensorboard/",
        "verdicts/",
        "report/",
    }
    assert not set(missing) - workdir - {"compiled/"}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_program_named_exists(page):
    for module in set(re.findall(r"python -m ([\w.]+)", (ROOT / page).read_text("utf-8"))):
        assert importlib.util.find_spec(module), module


def test_the_pair_of_the_page_on_architecture():
    page = str(ROOT / "docs/architecture.md")
    result = doctest.testfile(page, module_relative=False, encoding="utf-8")
    assert result.attempted > 5
    assert not result.failed
