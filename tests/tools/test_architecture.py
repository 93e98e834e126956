"""The drawing of the rooms: it is made, is up to date, and its layers are those of the imports."""

import struct

import pytest

from tools import architecture

IMPORTS = architecture.graph()


def kept_content(png: bytes) -> str:
    """What a drawing says of itself, read from the chunks of the file (PNG, 5.3 and 11.3.4.3)."""
    at = 8
    while at < len(png):
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        name, _, value = png[at + 8 : at + 8 + length].partition(b"\0")
        if kind == b"tEXt" and name == architecture.CONTENT.encode():
            return value.decode("latin-1")
        at += 12 + length
    raise AssertionError("the drawing does not say what it shows")


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_drawing_in_the_documentation_is_up_to_date():
    png = (architecture.ROOT / "docs/images/architecture.png").read_bytes()
    assert kept_content(png) == architecture.content(), "run: python tools/architecture.py"


def test_the_same_code_is_drawn_alike(tmp_path):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    architecture.draw(first)
    architecture.draw(again)
    assert first.read_bytes() == again.read_bytes()


def test_every_import_leads_down():
    rows = architecture.layers(IMPORTS)
    level = {room: i for i, row in enumerate(rows) for room in row}
    assert level.keys() == IMPORTS.keys()
    assert rows[0] == ["programs"]
    assert rows[-1] == ["runtime"]
    for room, others in IMPORTS.items():
        assert all(level[other] > level[room] for other in others)


def test_thinned_arrows_lead_to_the_same_rooms():
    arrows = architecture.thinned(IMPORTS)
    kept = {room: frozenset(b for a, b in arrows if a == room) for room in IMPORTS}
    for room in IMPORTS:
        assert architecture.reached(kept, room) == architecture.reached(IMPORTS, room)


def test_every_room_has_its_sentence():
    for room in IMPORTS:
        assert architecture.sentence(architecture.PACKAGE, room)


def test_imports_are_read_however_they_are_written(tmp_path):
    package = tmp_path / "house"
    write(
        package,
        {
            "__init__.py": "from house.top import x",
            "go.py": "import os\nfrom house import top\nfrom house import go_too",
            "go_too.py": "import house.middle.stair",
            "top/__init__.py": '"""The top, it is said. And more."""',
            "top/room.py": "def f():\n    from house.middle.stair import step\n",
            "middle/__init__.py": "",
            "middle/stair.py": "from house.runtime import errors, mesh\nfrom house.middle import x",
            "runtime/__init__.py": "",
        },
    )
    found = architecture.graph(package)
    assert found == {
        "programs": {"top", "middle"},
        "top": {"middle"},
        "middle": {"runtime"},
        "runtime": set(),
    }
    assert architecture.layers(found) == [["programs"], ["top"], ["middle"], ["runtime"]]
    assert architecture.thinned(found)[0] == ("programs", "top")
    assert ("programs", "middle") not in architecture.thinned(found)
    assert architecture.sentence(package, "top") == "The top, it is said"


def test_a_circle_is_named():
    circle = {"a": frozenset("b"), "b": frozenset("a"), "c": frozenset()}
    with pytest.raises(ValueError, match="circle among a, b"):
        architecture.layers(circle)
