"""A run that is killed leaves whole files, and can be continued to the same bits.

The half of `benchmarks/endurance.py` that is quick: it kills the commands at a few calls of the
file system, at the first ones too.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(
    not BENCHMARKS.is_dir() or sys.platform != "linux", reason="needs the benchmarks, and Linux"
)
# Shares of all calls: while the first state is written, between two, and at the end.
SHARES = {
    "prune": (0.5,),
    "sweep": (0.7,),
    "gate": (0.1, 0.5, 0.95),
    "train": (0.05, 0.5, 0.9),
    "finetune": (0.1, 0.95),
    "compress": (0.05,),
}


@pytest.fixture(scope="module")
def endurance():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("endurance")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def inputs(endurance, tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    endurance.make_inputs(root)
    return root


@pytest.mark.parametrize("name", SHARES)
def test_a_killed_run_is_continued_to_the_same_bits(name, endurance, inputs, tmp_path):
    command, folder = endurance.COMMANDS[name], tmp_path / "run"
    endurance.fresh(inputs, folder)
    before = endurance.fingerprints(folder)
    calls = endurance.count_calls(command.arguments, folder)
    expected = endurance.bits(folder / command.result)
    assert expected != "none"
    for share in SHARES[name]:
        endurance.fresh(inputs, folder)
        death = endurance.at_call(max(1, round(share * calls)), endurance.kill)
        assert endurance.ended(endurance.start(command.arguments, folder, death)) == -9
        assert endurance.halves(folder) == []
        assert endurance.fingerprints(folder) == before
        assert endurance.continued(command, folder, expected) == [], f"{share} of {calls} calls"


def test_kills_are_added_to_those_of_an_earlier_run(endurance, inputs, tmp_path):
    command = endurance.COMMANDS["prune"]
    parts = [
        endurance.killed(command, inputs, tmp_path / "run", range(first, first + 2))
        for first in (1, 3)
    ]
    whole = endurance.both(endurance.both(None, parts[0]), parts[1])
    assert endurance.tried(whole) == 4
    assert whole["at_calls"] == 2  # the odd numbers
    assert whole["problems"] == []
