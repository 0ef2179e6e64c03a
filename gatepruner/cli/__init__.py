"""The command line: each command is a few calls of the library, and one JSON document of them.

Torch is imported by the commands, not here, so that help and completion answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gatepruner.cli.changing import export, prune
from gatepruner.cli.compressing import compress
from gatepruner.cli.gating import gate
from gatepruner.cli.learning import train
from gatepruner.cli.looking import evaluate, inspect, rank
from gatepruner.cli.recovering import finetune, recalibrate
from gatepruner.cli.reporting import demo, sweep
from gatepruner.errors import GatePrunerError

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
    *(recalibrate, finetune, evaluate, train, export),
)
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from gatepruner import __version__

        typer.echo(f"gatepruner {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a refused input ends in one line on stderr and exit code 1."""
    try:
        app()
    except GatePrunerError as error:
        _fail(" ".join(str(error).split()))
    except OSError as error:
        _fail(f"{error.filename or 'the disk'}: {error.strerror or error}")
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        _fail("out of memory: lower --batch-size")


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(1)
