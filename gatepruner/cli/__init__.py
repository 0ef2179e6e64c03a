"""The command line: each command is a few calls of the library, and one JSON document of them.

Torch is imported by the commands, not here, so that help and completion answer at once.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from gatepruner.cli import problems
from gatepruner.cli.benching import bench
from gatepruner.cli.changing import export, recalibrate
from gatepruner.cli.compressing import compress
from gatepruner.cli.gating import gate
from gatepruner.cli.keeping import StoppedError, stopping
from gatepruner.cli.looking import evaluate, inspect, rank
from gatepruner.cli.memory import keep_pages
from gatepruner.cli.pruning import prune
from gatepruner.cli.reporting import demo, sweep
from gatepruner.cli.several import hush, taking_part
from gatepruner.cli.signature import flat
from gatepruner.cli.training import finetune, train
from gatepruner.errors import GatePrunerError, is_out_of_memory, visible
from gatepruner.launching import first
from gatepruner.signals import handling

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # wherever typer has its click from
app = typer.Typer(
    name="gatepruner",
    help="Remove the residual blocks that a trained network can live without, as its gates tell.",
    epilog="Begin with: gatepruner demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(demo, compress, inspect, rank, gate, prune, sweep),
    *(recalibrate, finetune, evaluate, bench, train, export),
)
ALONE = (demo, inspect, rank, export)  # commands that several processes do not share
for command in COMMANDS:
    app.command()(stopping()(taking_part(shared=command not in ALONE)(flat(command))))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from gatepruner import __version__

        typer.echo(f"gatepruner {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a refused input ends in one line for each reason and exit code 1."""
    as_json = "--json" in sys.argv
    keep_pages()
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, whose photos are read
    if not first():
        hush()
    with handling(_stopped):  # until all is said
        _carry_out(as_json)


def _carry_out(as_json: bool) -> None:
    """Carry out the command of the command line, or say why not and exit."""
    try:
        app(standalone_mode=not as_json)
    except GatePrunerError as error:
        _fail(problems.kind_of(error), problems.lines(error), as_json)
    except StoppedError as stop:
        _fail("interrupted", [str(stop)], as_json, stop.code)
    except USAGE_ERROR as error:
        _fail("usage", [error.format_message()], as_json, code=2)
    except OSError as error:
        message = f"{error.filename or 'the disk'}: {error.strerror or error}"
        _fail("system", [message], as_json)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        helps = "lower --batch-size, or --micro-batch-size of a command that learns"
        _fail("memory", [f"out of memory: {helps}"], as_json)


def _stopped(number: int, frame: FrameType | None) -> None:
    """Every signal that asks to stop does what Ctrl-C does."""
    raise KeyboardInterrupt(number)


def _fail(kind: str, messages: Sequence[str], as_json: bool, code: int = 1) -> None:
    messages = [visible(message) for message in messages]
    for message in messages:
        typer.echo(message if kind == "interrupted" else f"error: {message}", err=True)
    if as_json:
        typer.echo(json.dumps(problems.document(kind, messages), indent=1))
    sys.exit(code)
