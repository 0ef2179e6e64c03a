"""The adapter from dataclasses to options, and what a terminal or a pipe is shown."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer

from gatepruner.cli import COMMANDS, app
from gatepruner.cli.signature import EVERYTHING, Group, attributes, flat
from gatepruner.networks.network import Network
from gatepruner.report import terminal as terminals
from gatepruner.report.tables import block_table
from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Subject:
    """What it is about.

    Attributes:
        path: where
            it is.
        shared: of both.
    """

    path: Annotated[str, typer.Argument()]
    shared: int = 1


@dataclass(frozen=True)
class Rates:
    """Rates and words.

    Attributes:
        rate: how fast.
        word: which one.
        shared: of both, again.
        hidden: no option.
    """

    rate: float = 0.1
    word: str = "one"
    shared: int = 1
    hidden: int = 7


@dataclass(frozen=True)
class Given:
    """All of it."""

    given: Annotated[Mapping[str, Any], EVERYTHING] = field(default_factory=dict)


FAST = Rates(rate=0.5, hidden=8)
CALLS: list[tuple] = []


def example(
    subject: Subject,
    *,
    rates: Annotated[Rates, Group(leave_out=("hidden",), words={"word": ("one", "two")})] = FAST,
    other: Annotated[Rates, Group(only={"rate": "other_rate"})],
    given: Given,
) -> None:
    """Do it."""
    CALLS.append((subject, rates, other, dict(given.given)))


@pytest.fixture
def call(monkeypatch, capsys):
    one = typer.Typer()
    one.command()(flat(example))

    def run(*arguments: str) -> tuple | int:
        CALLS.clear()
        with pytest.raises(SystemExit) as stopped:
            one(list(arguments), prog_name="example")
        return CALLS[0] if CALLS else int(stopped.value.code or 0)

    return run


def test_a_command_gets_its_dataclasses_from_flat_options(call):
    subject, rates, other, given = call("here", "--shared", "3", "--word", "two")
    assert subject == Subject("here", 3)
    assert rates == Rates(0.5, "two", 3, 8)
    assert other == Rates()
    options = {"path": "here", "shared": 3, "rate": 0.5, "word": "two", "other_rate": 0.1}
    assert given == {"command": "example", **options}
    assert call("here", "--other-rate", "2")[2] == Rates(rate=2.0)


@pytest.mark.parametrize(
    "arguments",
    [(), ("here", "--word", "three"), ("here", "--hidden", "1"), ("here", "--rate", "x")],
)
def test_what_the_dataclasses_do_not_take_is_wrong_usage(call, arguments):
    assert call(*arguments) == 2


def test_help_and_panels_come_from_docstrings():
    assert attributes(Subject) == {"path": "Where it is.", "shared": "Of both."}
    hints = {
        name: one.annotation for name, one in inspect.signature(flat(example)).parameters.items()
    }
    (info,) = hints["rate"].__metadata__
    assert (info.help, info.rich_help_panel) == ("How fast.", "Rates and words")
    assert "hidden" not in hints


def test_every_option_of_every_command_has_a_line_of_help():
    assert len(app.registered_commands) == len(COMMANDS) == 13
    for command in app.registered_commands:
        for name, one in inspect.signature(command.callback).parameters.items():
            if name == "context":
                continue
            (info,) = one.annotation.__metadata__
            assert info.help, f"{command.callback.__name__} {name}"
            assert info.help[0].isupper(), info.help
            assert info.help.endswith("."), info.help


# --------------------------------------------------------------------- on a terminal, and in a pipe


@pytest.mark.parametrize("colour", ["", "1"])
@pytest.mark.parametrize("columns", [40, 80])
def test_names_of_blocks_are_never_cut(monkeypatch, capsys, columns, colour):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", colour)
    network = Network.named("torchvision:vit_b_32", num_classes=10, input_shape=(3, 64, 64))
    text = block_table(network.blocks, {})
    Terminal().say(text)
    assert capsys.readouterr().out == f"{text}\n"
    shown = [line.split()[0] for line in text.splitlines()]
    assert shown == ["block", *(block.name for block in network.blocks)]


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(terminals, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    assert list(Terminal().track("measuring")(range(12))) == list(range(12))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # 12 steps of 4 seconds, a line every 15
    assert lines[0] == "measuring: 3 of 12, 48 s left"
    assert list(Terminal(quiet=True).track("measuring")(range(12))) == list(range(12))
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_has_a_total(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Terminal()
    for step in terminal.track("measuring")(range(12)):
        if step == 5:
            (task,) = terminal.progress.progress.tasks
            assert (task.completed, task.total) == (5, 12)
    assert terminal.progress is None
