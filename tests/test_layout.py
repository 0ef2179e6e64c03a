"""Imports point one way, and each kind of output lives in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gatepruner

ROOT = Path(gatepruner.__file__).parent
# A folder, or a file at the package's top, may import from those before it.
ORDER = (
    *(
        "errors",
        "documents",
        "signals",
        "processes",
        "launching",
        "models",
        "networks",
        "images",
        "measuring",
        "pruning",
        "files",
        "learning",
    ),
    *("compression", "report", "cli"),
)
OUTSIDE = ("__init__", "__main__", "demo")  # the package's own front, and its data
FILES = sorted(ROOT.rglob("*.py"))


def parts(path: Path) -> tuple[str, ...]:
    """`("networks", "graph")` for `networks/graph.py`, `("networks",)` for its `__init__.py`."""
    found = path.relative_to(ROOT).with_suffix("").parts
    return found[:-1] if found[-1] == "__init__" and len(found) > 1 else found


def imported(tree: ast.AST) -> Iterator[str]:
    """The package's own modules that a file imports, wherever in it, as `networks.graph`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.partition(".")[2] for name in names if name.startswith("gatepruner."))


def wrong_imports(folder: str, source: str) -> list[str]:
    """What a file of a folder imports from folders that come after it."""
    later = ORDER[ORDER.index(folder) + 1 :]
    found = {name.split(".")[0] for name in imported(ast.parse(source))}
    return sorted(found.intersection(later))


def first_cycle(sources: Mapping[str, str]) -> list[str]:
    """Files that import each other in a circle, if there are any."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        names = imported(ast.parse(source))
        homes = {next((it for it in (n, n.rpartition(".")[0]) if it in sources), n) for n in names}
        graph[name] = homes & sources.keys() - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def calls_print(source: str) -> bool:
    return any(
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        for node in ast.walk(ast.parse(source))
    )


def runs_pickled_code(source: str) -> bool:
    return any(
        isinstance(node, ast.keyword)
        and node.arg == "weights_only"
        and not (isinstance(node.value, ast.Constant) and node.value.value is True)
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_folders_before_its_own(path):
    home = parts(path)[0]
    if home in OUTSIDE:
        return
    assert home in ORDER, f"{home} has no place in the order"
    assert wrong_imports(home, path.read_text()) == []


def test_no_files_import_each_other_in_a_circle():
    sources = {".".join(parts(path)): path.read_text() for path in FILES}
    assert first_cycle(sources) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_is_silent_and_never_runs_pickled_code(path):
    source = path.read_text()
    assert parts(path)[0] in ("cli", "report") or not calls_print(source)
    assert not runs_pickled_code(source)


def test_the_design_lists_the_folders_in_their_order():
    design = Path(__file__).parents[1] / "docs" / "design.md"
    section = design.read_text().partition("## Folders")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == ORDER


def test_relative_imports_are_not_used():
    relative = [
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize(
    ("folder", "source", "wrong"),
    [
        ("networks", "from gatepruner.pruning.ranking import rank", ["pruning"]),
        ("networks", "def late():\n    import gatepruner.cli", ["cli"]),
        ("measuring", "from gatepruner import models, learning", ["learning"]),
        ("pruning", "from gatepruner.networks.graph import trace", []),
        ("pruning", "from gatepruner.pruning.ranking import rank", []),
    ],
)
def test_an_import_that_points_the_other_way_is_seen(folder, source, wrong):
    assert wrong_imports(folder, source) == wrong


def test_a_circle_of_imports_is_seen():
    sources = {
        "a.x": "from gatepruner.a.y import f",
        "a.y": "def f():\n    from gatepruner.a import x",
        "a.z": "from gatepruner.a.x import g",
    }
    assert set(first_cycle(sources)) == {"a.x", "a.y"}
    assert first_cycle({**sources, "a.y": ""}) == []


def test_prints_and_unsafe_loads_are_seen():
    assert calls_print("def f():\n    print(1)")
    assert runs_pickled_code("torch.load(path, weights_only=False)")
    assert not runs_pickled_code("torch.load(path, weights_only=True)")
