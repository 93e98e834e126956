"""The house: rooms, no circle, short files and functions. The layers stand in pyproject.toml."""

import ast
import graphlib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "srpo_jax"
ROOMS = sorted(folder.parent for folder in PACKAGE.glob("*/__init__.py"))
FILES = sorted(
    path for name in ("srpo_jax", "benchmarks", "tools") for path in (ROOT / name).rglob("*.py")
)
MOST_ROOMS, MOST_LINES, MOST_IN_A_FUNCTION = 15, 400, 60

# What is longer, and why: {"path": reason} and {"path:function": reason}. An entry that is not needed any
# more fails.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", ["srpo_jax", "benchmarks"])
def test_modules_import_each_other_in_no_circle(package):
    """Imports inside functions count; those for the type checker alone do not, as they never run."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    needs = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(needs).prepare()  # CycleError names the circle


def test_there_are_few_rooms_and_each_says_what_it_may_import():
    assert len(ROOMS) <= MOST_ROOMS
    for room in ROOMS:
        said = " ".join(
            (ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "").split()
        )
        assert "May import: " in said, room
        assert "Imported by: " in said, room


def test_beside_the_rooms_there_are_programs_only():
    for path in PACKAGE.glob("*.py"):
        assert path.name == "__init__.py" or '__name__ == "__main__"' in path.read_text(), path


def test_files_are_short():
    long = {name(path) for path in FILES if len(path.read_text().splitlines()) > MOST_LINES}
    assert long == set(LONG_FILES)


def test_functions_are_short():
    long = {
        f"{name(path)}:{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_IN_A_FUNCTION
    }
    assert long == set(LONG_FUNCTIONS)


def test_tests_mirror_the_package():
    """tests/ROOM/test_MODULE.py, or test_MODULE_SUBJECT.py; the programs' tests are in tests/programs."""
    for path in (ROOT / "tests").glob("*/test_*.py"):
        room = path.parent.name
        if room in ("benchmarks", "launch", "tools"):
            tested = ROOT / room
        else:
            tested = PACKAGE if room == "programs" else PACKAGE / room
        modules = {found.stem for found in tested.iterdir() if not found.name.startswith("_")}
        subject = path.stem.removeprefix("test_")
        assert any(subject == m or subject.startswith(f"{m}_") for m in modules), name(path)
