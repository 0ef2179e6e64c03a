"""The documents: their links lead somewhere, and `docs/cli.md` has the options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from gatepruner.cli import COMMANDS, app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*sorted((ROOT / "docs").glob("*.md"))]
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
    return set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*(?![\w-])", text))


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
