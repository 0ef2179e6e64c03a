"""Imports point one way, and each kind of output lives in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gatepruner

ROOT = Path(gatepruner.__file__).parent
# A module may import from the levels above its own; modules of one level do not know each other.
LEVELS = (
    {"errors"},
    {"models"},
    {"graph"},
    {"edits"},
    {"folding"},
    {"norms"},
    {"base"},
    {"network"},
    {"recognition", "storage"},
    {"checkpoint"},
    {"ranking", "surgery", "cost"},
    {"device", "data", "evaluate", "curve", "export"},
    {"running"},
    {"training", "recalibration", "targets"},
    {"gates"},
    {"report"},
    {"cli"},
)
# Within one level, who may know whom as well.
ALSO: dict[str, set[str]] = {
    "data": {"device"},
    "evaluate": {"device", "data"},
    "curve": {"device", "data", "evaluate"},
}
OUTSIDE = ("__init__", "__main__", "demo")  # the package's own front, and its data
FILES = sorted(ROOT.rglob("*.py"))


def home(path: Path) -> str:
    """The module at the package's top that a file is or belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def level(module: str) -> int:
    return next(index for index, names in enumerate(LEVELS) if module in names)


def imported(tree: ast.AST) -> Iterator[str]:
    """The package's own modules that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("gatepruner."))


def wrong_imports(module: str, source: str) -> list[str]:
    known = {name for names in LEVELS for name in names}
    found = sorted(set(imported(ast.parse(source))) & known - {module})
    allowed = ALSO.get(module, set())
    return [name for name in found if level(name) >= level(module) and name not in allowed]


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
def test_a_file_imports_only_from_the_levels_above_it(path):
    if home(path) in OUTSIDE:
        return
    assert any(home(path) in names for names in LEVELS), f"{home(path)} has no level"
    assert wrong_imports(home(path), path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_is_silent_and_never_runs_pickled_code(path):
    source = path.read_text()
    assert home(path) in ("cli", "report") or not calls_print(source)
    assert not runs_pickled_code(source)


def test_relative_imports_are_not_used():
    relative = [
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("graph", "from gatepruner.network import Network", ["network"]),
        ("graph", "def late():\n    import gatepruner.cli", ["cli"]),
        ("graph", "from gatepruner import models, surgery", ["surgery"]),
        ("surgery", "from gatepruner.ranking import rank", ["ranking"]),
        ("surgery", "from gatepruner.errors import PlanError", []),
        ("data", "from gatepruner.evaluate import accuracy", ["evaluate"]),
    ],
)
def test_an_import_that_points_the_other_way_is_seen(module, source, wrong):
    assert wrong_imports(module, source) == wrong


def test_prints_and_unsafe_loads_are_seen():
    assert calls_print("def f():\n    print(1)")
    assert runs_pickled_code("torch.load(path, weights_only=False)")
    assert not runs_pickled_code("torch.load(path, weights_only=True)")
