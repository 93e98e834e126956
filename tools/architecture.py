"""Draws the rooms of srpo_jax and who imports whom: docs/images/architecture.png.

    python tools/architecture.py [--output=docs/images/architecture.png]

Everything is read from the code: a room is a folder of the package, the modules beside the rooms are the
programs, an arrow is an import of one room by another. A room lies above all that it imports. Arrows that
follow from others (A -> C where A -> B -> C) are left out. The sentence in a box is the first of the room's
docstring. Of some arrangements that are tried, always the same, that with the fewest crossings is drawn.
"""

import argparse
import ast
import itertools
import json
import random
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "srpo_jax"
PROGRAMS, GROUND = (
    "programs",
    "runtime",
)  # the top and the bottom of the house, alone on their layers

Graph = Mapping[str, frozenset[str]]  # room -> the rooms that it imports
Edge = tuple[str, str]

# --- the code: rooms, sentences, imports --------------------------------------------------------------


def rooms(package: Path = PACKAGE) -> dict[str, list[Path]]:
    """room -> its files. The modules beside the rooms are those of PROGRAMS."""
    found = {PROGRAMS: sorted(p for p in package.glob("*.py") if not p.name.startswith("_"))}
    for folder in sorted(package.iterdir()):
        if (folder / "__init__.py").is_file():
            found[folder.name] = sorted(folder.rglob("*.py"))
    return found


def sentence(package: Path, room: str) -> str:
    """The first sentence of a room's docstring; for the programs, their names."""
    if room == PROGRAMS:
        return ", ".join(path.stem for path in rooms(package)[PROGRAMS])
    said = ast.get_docstring(ast.parse((package / room / "__init__.py").read_text("utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def graph(package: Path = PACKAGE) -> Graph:
    """Which room imports which, imports within functions and for types alone included."""
    where = rooms(package)
    programs = {path.stem for path in where[PROGRAMS]}
    found: dict[str, set[str]] = {room: set() for room in where}
    for room, files in where.items():
        for name in itertools.chain.from_iterable(map(_imported, files)):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if top == package.name and (other in where or other in programs):
                found[room].add(PROGRAMS if other in programs else other)
    return {room: frozenset(others - {room}) for room, others in found.items()}


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# --- the graph: layers, thinned arrows ----------------------------------------------------------------


def layers(graph: Graph) -> list[list[str]]:
    """Rooms from the top to the bottom, each above all that it imports and as low as that allows.

    Raises ValueError, naming them, for rooms that import each other in a circle.
    """
    height = {room: 0 for room in (GROUND,) if room in graph and not graph[room]}
    while len(height) < len(graph):
        ready = [r for r in graph if r not in height and graph[r] <= height.keys()]
        if not ready:
            circle = sorted(graph.keys() - height.keys())
            raise ValueError(f"imports go in a circle among {', '.join(circle)}")
        height |= {r: 1 + max((height[other] for other in graph[r]), default=0) for r in ready}
    top = max(height.values()) + 1
    height |= {room: top for room in (PROGRAMS,) if room in graph}
    found = [[r for r in graph if height[r] == level] for level in range(top, -1, -1)]
    return [row for row in found if row]


def reached(graph: Graph, room: str) -> frozenset[str]:
    """All that a room imports, directly or through others."""
    return graph[room].union(*(reached(graph, other) for other in graph[room]))


def thinned(graph: Graph) -> list[Edge]:
    """The arrows that do not follow from others."""
    return [
        (room, other)
        for room in graph
        for other in sorted(graph[room])
        if not any(other in reached(graph, between) for between in graph[room] - {other})
    ]


def content(package: Path = PACKAGE) -> str:
    """What a drawing shows, but for the sizes: a drawing with another content is out of date."""
    imports = graph(package)
    shown = {
        "layers": layers(imports),
        "arrows": thinned(imports),
        "sentences": {room: sentence(package, room) for room in imports},
    }
    return json.dumps(shown)


# --- the arrangement: where each box stands -----------------------------------------------------------

# A long arrow passes each layer between its ends through a point of its own, named (from, to).
Node = str | Edge
BOX, POINT, GAP = 3.2, 0.3, 0.35  # widths of a box and of a point, and the least space between


def arranged(graph: Graph) -> tuple[list[list[Node]], list[list[Node]]]:
    """(layers with the points of long arrows, each arrow's way from layer to layer); few crossings."""
    rows: list[list[Node]] = [list[Node](row) for row in layers(graph)]
    level = {node: i for i, row in enumerate(rows) for node in row}
    ways: list[list[Node]] = []
    for room, other in thinned(graph):
        between = range(level[room] + 1, level[other])
        for i in between:
            rows[i].append((room, other))
        ways.append([room, *[(room, other)] * len(between), other])
    best = min((_improved(rows, ways, seed) for seed in range(40)), key=lambda r: _cost(r, ways))
    return best, ways


def _improved(
    rows: Sequence[Sequence[Node]], ways: list[list[Node]], seed: int
) -> list[list[Node]]:
    """A shuffled arrangement, with nodes of a layer exchanged for as long as that helps."""
    shuffle = random.Random(seed).sample
    here = [shuffle(sorted(row, key=str), len(row)) for row in rows]
    cost, better = _cost(here, ways), True
    while better:
        better = False
        for row in here:
            for i, j in itertools.combinations(range(len(row)), 2):
                row[i], row[j] = row[j], row[i]
                if (new := _cost(here, ways)) < cost:
                    cost, better = new, True
                else:
                    row[i], row[j] = row[j], row[i]
    return here


def _cost(rows: list[list[Node]], ways: list[list[Node]]) -> tuple[int, float]:
    """(crossings, how far arrows go sideways)."""
    place = [{n: i - (len(row) - 1) / 2 for i, n in enumerate(row)} for row in rows]
    level = {n: i for i, row in enumerate(rows) for n in row if isinstance(n, str)}
    steps: dict[int, list[tuple[float, float]]] = {}
    for way in ways:
        first = level[str(way[0])]
        for i, (a, b) in enumerate(itertools.pairwise(way), first):
            steps.setdefault(i, []).append((place[i][a], place[i + 1][b]))
    pairs = (pair for step in steps.values() for pair in itertools.combinations(step, 2))
    crossings = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in pairs)
    return crossings, sum(abs(a - b) for step in steps.values() for a, b in step)


def centres(rows: list[list[Node]], ways: list[list[Node]]) -> list[dict[Node, float]]:
    """The x of each node by layer: near those that its arrows lead to, in order, without overlap."""
    at = [dict(zip(row, _spread(row, [0.0] * len(row)), strict=True)) for row in rows]
    level = {n: i for i, row in enumerate(rows) for n in row if isinstance(n, str)}
    near: list[dict[Node, list[tuple[int, Node]]]] = [{n: [] for n in row} for row in rows]
    for way in ways:
        for i, (a, b) in enumerate(itertools.pairwise(way), level[str(way[0])]):
            near[i][a].append((i + 1, b))
            near[i + 1][b].append((i, a))
    for _ in range(30):
        for i, row in enumerate(rows):
            wanted = [
                sum(at[j][other] for j, other in near[i][n]) / len(near[i][n])
                if near[i][n]
                else at[i][n]
                for n in row
            ]
            at[i] = dict(zip(row, _spread(row, wanted), strict=True))
    return at


def _wide(node: Node) -> float:
    if not isinstance(node, str):
        return POINT
    return 2.2 * BOX if node in (PROGRAMS, GROUND) else BOX


def _spread(row: Sequence[Node], wanted: Sequence[float]) -> list[float]:
    """As near to `wanted` as the order and the widths allow: least squares (pool adjacent violators)."""
    width = [_wide(node) for node in row]
    offset = [0.0]
    for a, b in itertools.pairwise(width):
        offset.append(offset[-1] + (a + b) / 2 + GAP)
    pools: list[tuple[float, int]] = []  # (mean, how many)
    for target, left in zip(wanted, offset, strict=True):
        mean, count = target - left, 1
        while pools and pools[-1][0] > mean:
            other, more = pools.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        pools.append((mean, count))
    free = [mean for mean, count in pools for _ in range(count)]
    return [a + b for a, b in zip(free, offset, strict=True)]


# --- the drawing --------------------------------------------------------------------------------------

HEIGHT, STEP = 1.15, 1.9  # of a box, and from layer to layer
CONTENT = "Description"  # where the image file says what it shows
COLOURS = {"programs": "#33415c", "model": "#d6e4f5", "plain": "#e3f1df", "runtime": "#e9e6e1"}


def draw(path: Path, package: Path = PACKAGE) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    imports = graph(package)
    rows, ways = arranged(imports)
    at = centres(rows, ways)
    left = min(min(x.values()) for x in at) - BOX / 2 - 0.2
    right = max(max(x.values()) for x in at) + BOX / 2 + 0.2
    bottom = -(len(rows) - 1) * STEP - HEIGHT / 2 - 0.75
    size = (right - left, HEIGHT / 2 + 0.2 - bottom)
    figure, plot = pyplot.subplots(figsize=(0.8 * size[0], 0.8 * size[1]))
    plot.set(xlim=(left, right), ylim=(bottom, HEIGHT / 2 + 0.2), aspect="equal")
    plot.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    for i, row in enumerate(rows):
        for node in row:
            if isinstance(node, str):
                _box(plot, node, at[i][node], -i * STEP, imports, package)
    for points in _lines(rows, ways, at):
        _arrow(plot, points)
    plot.text(
        (left + right) / 2,
        bottom + 0.3,
        "An arrow: imports. Blue: computes with a model; green: no model, no mesh. Arrows that follow "
        "from others are left out (every room may import runtime).",
        ha="center",
        va="center",
        fontsize=9,
        color="#555555",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        path, dpi=110, facecolor="white", metadata={"Software": None, CONTENT: content(package)}
    )
    pyplot.close(figure)


def _box(plot, room: str, x: float, y: float, imports: Graph, package: Path) -> None:
    from matplotlib.patches import FancyBboxPatch

    kind = "model" if "models" in (room, *reached(imports, room)) else "plain"
    colour = COLOURS.get(room, COLOURS[kind])
    wide = _wide(room)
    style = "round,pad=0,rounding_size=0.12"
    corner = (x - wide / 2, y - HEIGHT / 2)
    plot.add_patch(
        FancyBboxPatch(corner, wide, HEIGHT, boxstyle=style, fc=colour, ec="#8a8f98", lw=0.8)
    )
    ink = "white" if room == PROGRAMS else "#1d2433"
    files = rooms(package)[room]
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
    top = y + HEIGHT / 2 - 0.2
    plot.text(x - wide / 2 + 0.14, top, room, va="center", fontsize=12, weight="bold", color=ink)
    plot.text(
        x + wide / 2 - 0.14,
        top,
        f"{len(files)} files, {round(lines, -2):,} lines",
        va="center",
        ha="right",
        fontsize=7,
        color=ink,
        alpha=0.7,
    )
    said = textwrap.fill(sentence(package, room), round(11 * wide))
    plot.text(
        x - wide / 2 + 0.14, top - 0.22, said, va="top", fontsize=9, color=ink, linespacing=1.2
    )


def _lines(
    rows: list[list[Node]], ways: list[list[Node]], at: list[dict[Node, float]]
) -> Iterator[list[tuple[float, float]]]:
    """The points (x, y) of each way; arrows leave and reach a box beside each other, in order."""
    level = {n: i for i, row in enumerate(rows) for n in row if isinstance(n, str)}

    def port(room: str, neighbours: list[tuple[float, int]], number: int) -> float:
        wide = 0.75 * _wide(room)
        order = [n for _, n in sorted(neighbours)]
        place = (order.index(number) + 1) / (len(order) + 1) - 0.5
        return at[level[room]][room] + place * wide

    leaving: dict[str, list[tuple[float, int]]] = {}
    reaching: dict[str, list[tuple[float, int]]] = {}
    for number, way in enumerate(ways):
        first, last = level[str(way[0])], level[str(way[-1])]
        leaving.setdefault(str(way[0]), []).append((at[first + 1][way[1]], number))
        reaching.setdefault(str(way[-1]), []).append((at[last - 1][way[-2]], number))
    for number, way in enumerate(ways):
        first = level[str(way[0])]
        points = [(port(str(way[0]), leaving[str(way[0])], number), -first * STEP - HEIGHT / 2)]
        for i, node in enumerate(way[1:-1], first + 1):
            points += [(at[i][node], -i * STEP + y) for y in (HEIGHT / 2, -HEIGHT / 2)]
        end = -level[str(way[-1])] * STEP + HEIGHT / 2
        points.append((port(str(way[-1]), reaching[str(way[-1])], number), end))
        yield points


def _arrow(plot, points: list[tuple[float, float]]) -> None:
    """Curves between layers, straight through a layer."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    vertices, codes = [points[0]], [Curve.MOVETO]
    for i, ((x0, y0), (x1, y1)) in enumerate(itertools.pairwise(points)):
        if i % 2:
            vertices.append((x1, y1))
            codes.append(Curve.LINETO)
            continue
        middle = (y0 + y1) / 2
        vertices += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    plot.add_patch(
        FancyArrowPatch(
            path=Curve(vertices, codes),
            arrowstyle="-|>,head_length=4.5,head_width=2.2",
            shrinkA=0,
            shrinkB=0,
            fc="#5b6472",
            ec="#5b6472",
            lw=1.0,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/architecture.png")
    output = parser.parse_args().output
    draw(output)
    print(f"{output} drawn")


if __name__ == "__main__":
    main()
