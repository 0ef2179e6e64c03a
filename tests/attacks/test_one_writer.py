"""Only one module opens a file for writing, so what it promises holds for all files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gatepruner

ROOT = Path(gatepruner.__file__).parent
WRITERS = ("files/writing.py", "files/locks.py")
APART = (
    "demo/make_images.py",  # made the package's own data, and is no part of its use
    "documents.py",  # opens to read, without waiting for who writes a pipe
    "images/caching.py",  # of what can be made again, below the layer that writes outputs
)
NAMES = {
    *("write_text", "write_bytes", "touch", "rename", "renames", "symlink_to", "hardlink_to"),
    *(
        "mkstemp",
        "mkdtemp",
        "NamedTemporaryFile",
        "TemporaryFile",
    ),  # a temporary folder is no output
    *("copyfile", "copy2", "copytree", "move", "truncate", "tofile", "fdopen"),
}
SAVERS = {"savefig", "save_file", "imsave", "savez", "dump"}


def writes(source: str) -> Iterator[str]:
    """The calls in a file that open a file for writing, or give one a name."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner = getattr(getattr(node.func, "value", None), "id", "")
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [one.value for one in given if isinstance(one, ast.Constant)]
        opens = name == "open" and any(
            isinstance(mode, str) and set(mode) & set("wax+") and len(mode) < 4 for mode in modes
        )
        places = name == "replace" and len(given) == 1  # of a path; a text's takes two
        saves = name in SAVERS or (owner == "torch" and name == "save")
        into = {
            part for one in given for part in (getattr(one, "id", ""), getattr(one, "attr", ""))
        }
        named = name in NAMES and getattr(node.func, "id", "") != "write_text"  # the writer's own
        if opens or places or named or (saves and "file" not in into):
            yield f"line {node.lineno}: {name}"
        if owner == "os" and name in ("open", "replace", "link", "mkfifo"):
            yield f"line {node.lineno}: os.{name}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.stem)
def test_nobody_else_writes(path):
    name = path.relative_to(ROOT).as_posix()
    if name not in (*WRITERS, *APART):
        assert list(writes(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "path.write_text('x')",
        "open(path, 'w')",
        "path.open(mode='xb')",
        "torch.save(x, path)",
        "figure.savefig(stem)",
        "partial.replace(path)",
        "os.open(path, os.O_RDWR)",
        "tempfile.mkstemp()",
        "shutil.move(a, b)",
    ],
)
def test_a_writer_is_seen(source):
    assert list(writes(source))


@pytest.mark.parametrize(
    "source",
    [
        "path.open('rb')",
        "open(path)",
        "text.replace('a', 'b')",
        "torch.save(x, file)",
        "figure.savefig(file, format='png')",
        "replace(value, name='w')",
    ],
)
def test_what_does_not_write_is_let_be(source):
    assert not list(writes(source))
