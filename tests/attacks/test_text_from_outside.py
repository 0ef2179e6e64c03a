"""Text from a file or a folder reaches no terminal as control characters, and no report as markup.

Every place that shows such a text gets all control characters, marks of direction and separators
of lines at once; what is printed may contain line feeds alone.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import unicodedata
import zipfile
from dataclasses import replace

import pytest
import torch
from conftest import draw, random_images, write_folder
from rich.console import Console

from gatepruner import save
from gatepruner.errors import GatePrunerError, visible
from gatepruner.pruning.orders import compare
from gatepruner.report.comparison import Curves, comparison_figure
from gatepruner.report.files import Report, write_report
from gatepruner.report.style import save_figure
from gatepruner.report.tables import table
from gatepruner.report.terminal import Terminal

UNSEEN = ("Cc", "Cf", "Zl", "Zp")
EVERY = "".join(
    letter
    for letter in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(letter) in UNSEEN
)
NAMED = "".join(letter for letter in EVERY if letter not in "\0/")  # as in a file's name
TITLE = "\x1b]0;owned\x07\x1b[2J\u202e\r\x9b31m\n"
MARKUP = '<img src=x onerror="alert(1)">![x](http://127.0.0.1/x) [bold]| `a` $x$'


def harmless(text: str) -> bool:
    """Whether a terminal shows a text as it is."""
    return not any(unicodedata.category(letter) in UNSEEN for letter in text if letter != "\n")


def test_the_characters_are_those_of_a_terminal():
    assert {"\x1b", "\x07", "\r", "\x9b", "\u202e", "\u2028", "\x85"} <= set(EVERY)
    assert not harmless(TITLE)
    assert harmless("plain\n")


def test_visible_text_is_one_harmless_line_that_python_reads_back():
    shown = visible(f"{EVERY}é漢")
    assert harmless(shown)
    assert "\n" not in shown
    assert shown.endswith("é漢")
    assert eval(f"'{shown}'") == f"{EVERY}é漢"


def test_a_state_dict_key(tmp_path, run):
    weights = dict(draw("resnet8").weights)
    torch.save({**weights, f"key{EVERY}": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({f"key{EVERY}": torch.ones(2)}, tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        done = run("inspect", tmp_path / name, "--arch", "resnet8")
        assert done.code == 1
        assert harmless(done.out + done.err)


def test_a_key_of_a_nested_dictionary(tmp_path, run):
    torch.save({f"state{EVERY}": {f"in{EVERY}": 1}, f"x{EVERY}": "text"}, tmp_path / "a.pt")
    done = run("inspect", tmp_path / "a.pt")
    assert done.code == 1
    assert harmless(done.out + done.err)


@pytest.mark.parametrize("field", ["format", "base", "notes", "edits"])
def test_a_header_of_our_own_format(tmp_path, run, field):
    save(draw("gated-resnet8"), tmp_path / "a.pt")
    file = torch.load(tmp_path / "a.pt", weights_only=True)
    header = {**json.loads(file["gatepruner"]), field: f"{field}{EVERY}", EVERY: EVERY}
    torch.save({**file, "gatepruner": json.dumps(header)}, tmp_path / "b.pt")
    done = run("inspect", tmp_path / "b.pt")
    assert harmless(done.out + done.err)


def test_a_global_of_a_pickle(tmp_path, run):
    name = TITLE.replace("\n", "")
    code = pickle.PROTO + b"\x02" + b"c" + f"{name}\n{name}\n".encode() + b")R."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("a/data.pkl", code)
        file.writestr("a/version", "3\n")
    done = run("inspect", tmp_path / "a.pt")
    assert done.code == 1
    assert harmless(done.out + done.err)


def test_the_name_of_a_file_that_is_refused_and_of_one_that_is_written(tmp_path, run):
    save(draw("gated-resnet8"), tmp_path / "a.pt")
    output = tmp_path / f"b{NAMED[:60]}.pt"
    done = run("prune", tmp_path / "a.pt", "--drop", 1, "-o", output)
    assert done.code == 0
    assert output.exists()
    assert harmless(done.out + done.err)
    again = run("prune", tmp_path / "a.pt", "--drop", 1, "-o", output)
    assert again.code == 1
    assert harmless(again.out + again.err)


def test_the_names_of_class_folders_and_pictures(tmp_path, run):
    save(draw("gated-resnet8"), tmp_path / "a.pt")
    images = random_images(20, (3, 32, 32), 2)
    names = [f"{index}{NAMED[:60]}" for index in range(2)]
    root = write_folder(tmp_path / f"x{NAMED[:40]}", replace(images, classes=tuple(names)))
    bad = root / "test" / names[0] / f"bad{NAMED[:40]}.png"
    for _ in range(2):  # first of other classes, then with a file that is no picture
        done = run("evaluate", tmp_path / "a.pt", "--data", f"imagefolder:{root}")
        assert harmless(done.out + done.err)
        bad.write_bytes(b"no picture")


def test_progress_is_no_markup_and_moves_no_cursor():
    terminal = Terminal()
    terminal.err = Console(file=io.StringIO(), force_terminal=True, width=200)
    terminal.show(1, 2, f"[bold]{TITLE}[/bold]")
    terminal.progress.progress.refresh()
    terminal.rest()
    shown = terminal.err.file.getvalue()
    assert "\x1b]0;" not in shown
    assert "[bold]" in shown
    assert "\u202e" not in shown


def test_a_table_has_a_line_for_every_row():
    assert table(["block"], [[f"a{TITLE}b"], ["c"]]).count("\n") == 2


def test_a_refusal_is_one_line_also_for_a_caller_of_the_library():
    assert harmless(str(GatePrunerError(f"no {EVERY}", force=EVERY)))
    assert "\n" not in str(GatePrunerError(f"no {TITLE}"))


def test_a_report_shows_names_as_they_are(tmp_path):
    checkpoint = draw("gated-resnet8")
    (order,) = compare(checkpoint, random_images(20, (3, 32, 32), 10), by=("gate",), device="cpu")
    configuration = {"checkpoint": f"{MARKUP}\n# heading{EVERY}", MARKUP: "b"}
    write_report(Report(checkpoint, [order], configuration=configuration), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert harmless(text)
    assert "<img" not in text
    assert "\n# heading" not in text
    assert "![x](" not in text
    assert json.loads((tmp_path / "report" / "report.json").read_text())["configuration"] == (
        configuration
    )


def test_a_name_is_no_formula_in_a_figure(tmp_path):
    figure = comparison_figure([Curves(MARKUP, [0, 1], [[0.5, 0.6]])], "$\\frac{", "y")
    save_figure(figure, tmp_path / "a")
    text = (tmp_path / "a.svg").read_text()
    assert "$\\frac{" in text
    assert "$x$" in text
    assert "<img" not in text
