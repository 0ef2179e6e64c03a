"""The documents: links lead somewhere, options, API and notebook are those that there are."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import gatepruner
from gatepruner.cli import COMMANDS, app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "gatepruner" / "demo" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHARED = "What the commands share"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or titles that are not there."""
    broken = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        there = target.exists() and (not anchor or anchor in anchors(target))
        broken += [] if there else [link]
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#no-title) [c](page.md#a-title) [d](none.md)")
    assert broken_links(page) == ["#no-title", "none.md"]


def section(title: str) -> str:
    """The text of `docs/cli.md` under a title of the second level."""
    text = (ROOT / "docs" / "cli.md").read_text()
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![\w-])", text))


def params(name: str) -> list:
    return typer.main.get_command(app).commands[name].params


NAMES = [command.__name__ for command in COMMANDS]


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_and_every_described_option_is_there(name):
    described = options_in(section(name))
    known = {option for one in params(name) for option in one.opts if option.startswith("--")}
    elsewhere = {option for each in NAMES for one in params(each) for option in one.opts}
    switched_off = {option for one in params(name) for option in one.secondary_opts}
    assert sorted(known - described - options_in(section(SHARED)) - {"--output"}) == []
    assert sorted(described - known - switched_off - elsewhere) == []
    rows = re.findall(r"^\| (`--.*?) \|", section(name), re.MULTILINE)
    assert sorted(options_in(" ".join(rows)) - known - switched_off) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_in_the_tables_are_those_of_the_command(name):
    defaults = {one.opts[0]: one.default for one in params(name) if one.opts}
    rows = re.findall(r"^\| `(--[\w-]+) [A-Z]+`[^|]*\| (.*) \|$", section(name), re.MULTILINE)
    told = {option: re.search(r"\(([\d,.]+)\)", text) for option, text in rows}
    numbers = {option: float(found[1].replace(",", "")) for option, found in told.items() if found}
    assert numbers == {option: defaults[option] for option in numbers}


PUBLIC = [name for name in gatepruner.__all__ if name != "__version__"]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(gatepruner, name))]


def test_the_reference_has_every_public_name_once():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    named = re.findall(r"^::: gatepruner\.(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(PUBLIC)


def undocumented(function: Any) -> set[str]:
    """Arguments that a function takes or that its docstring describes, but not both."""
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?:    .*\n?)*)", text, re.MULTILINE)
    told = re.findall(r"^    (\w+): ", section[1], re.MULTILINE) if section else []
    return set(told) ^ set(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_documents_its_arguments(name):
    assert undocumented(getattr(gatepruner, name)) == set()


def test_an_argument_without_a_description_is_seen():
    def scaled(image, *, factor):
        """Scale.

        Args:
            image: what to scale.
            by: how much.
        """

    assert undocumented(scaled) == {"factor", "by"}
    assert undocumented(lambda image: image) == {"image"}


def test_every_page_has_its_place_in_the_site():
    places = re.findall(r"[\w/-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    docs = ROOT / "docs"
    assert {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {*places} == set()


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def shape_of(text: str) -> str:
    """A text without the differences that another machine may make."""
    return " ".join(re.sub(r"\d+(\.\d+)?", "0", text).split())


def test_the_notebook_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    cells = json.loads((ROOT / "docs" / "session.ipynb").read_text())["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("".join(cell["source"]), names)
        shown = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        assert shape_of(printed.getvalue()) == shape_of(shown)
    assert names["small"].network.depth == 7
