"""A hook of MkDocs that makes one source serve on GitHub and on the site.

Pages outside `docs/` and the notebook become pages of the site, and relative links between files of
the repository become links between pages.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "scripts.md",
}
NOTEBOOK = {"docs/session.ipynb": "session.md"}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)")


def places() -> dict[str, str]:
    """Where on the site each file of the repository is that is not there under its own name."""
    figures = sorted((ROOT / "benchmarks" / "results").glob("*.png"))
    pictures = {f"benchmarks/results/{path.name}": f"results/{path.name}" for path in figures}
    return {**OUTSIDE, **NOTEBOOK, **pictures}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside `docs/`, and the notebook as a page."""
    for source, place in places().items():
        if source in NOTEBOOK:
            page = as_markdown(json.loads((ROOT / source).read_text(encoding="utf-8")))
            files.append(File.generated(config, place, content=page))
        else:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their targets are on the site, and read Markdown within `<details>`."""
    moved = places()
    homes = {place: source for source, place in moved.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(homes.get(here, f"docs/{here}"))

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        place = moved.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(place) is None:
            return link[1]
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return LINK.sub(led, markdown).replace("<details>", "<details markdown>")


def as_markdown(notebook: dict[str, Any]) -> str:
    """A notebook's text, code and outputs."""
    return "\n\n".join(part for cell in notebook["cells"] for part in parts(cell))


def parts(cell: dict[str, Any]) -> list[str]:
    """A cell and its outputs: text as it is, code fenced, a picture embedded."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    shown = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).replace("\n", "")
            shown.append(f"![output](data:image/png;base64,{picture})")
        else:
            text = "".join(output.get("text") or data["text/plain"])
            shown.append(f"```text\n{text.rstrip()}\n```")
    return shown
