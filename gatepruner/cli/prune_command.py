"""The `prune` that writes a network of a sweep, to be copied from the sweep's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from gatepruner.cli.looking import Criterion
from gatepruner.cli.options import Data, Source
from gatepruner.cli.pruning import Afterwards

# Options that mean the same to both commands.
SHARED: tuple[Field[Any], ...] = (
    *(one for one in fields(Source) if one.name != "ckpt"),
    *fields(Data),
    *(one for one in fields(Criterion) if one.name != "by"),
    *(one for one in fields(Afterwards) if one.name == "recalibrate"),
)


def prune_command(given: Mapping[str, Any], criterion: str) -> tuple[str, ...]:
    """The words of the command, without how many blocks to remove.

    Args:
        given: the options of a sweep.
        criterion: in whose order blocks are removed.
    """
    words = ["gatepruner", "prune", str(given["ckpt"]), "--by", criterion]
    for one in SHARED:
        value = given.get(one.name)
        if value not in (None, one.default):
            words += [f"--{one.name.replace('_', '-')}", str(value)]
    return tuple(words)
