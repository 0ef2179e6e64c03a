"""How a process was started, and what it says if it cannot join the others of its run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from several import ended, environment, free_port, start

import gatepruner
from gatepruner import launching, processes
from gatepruner.errors import ProcessError

GOOD = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "several", "first"),
    [
        ({}, False, True),
        ({"RANK": "3"}, False, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False, True),
        (GOOD, True, False),
        ({**GOOD, "RANK": "0"}, True, True),
        ({"WORLD_SIZE": "2"}, True, True),
    ],
)
def test_a_process_is_alone_or_one_of_several(variables, several, first):
    assert (launching.several(variables), launching.first(variables)) == (several, first)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "MASTER_ADDR is not set; MASTER_PORT is not"),
        ({"RANK": "two"}, "RANK is 'two', expected a number"),
        ({"WORLD_SIZE": "", "RANK": "-1"}, "WORLD_SIZE is '', expected a number; RANK is '-1'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http', expected a number"),
        ({"LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "y"}, "LOCAL_RANK is 'x', .* LOCAL_WORLD_SIZE is"),
        ({"RANK": "2"}, "RANK is 2 of 2 processes, which count from 0"),
    ],
)
def test_all_variables_that_are_missing_or_wrong_are_told(changes, reasons):
    variables = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(ProcessError, match=f"{reasons}.*; start several processes with torchrun"):
        launching.begin(variables)


def test_a_process_has_to_know_which_of_several_gpus_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ProcessError, match="LOCAL_RANK is not set: this machine has 8 GPUs"):
        launching.begin(GOOD)


@pytest.fixture
def started(monkeypatch):
    """Sets the variables of one of two processes, which waits a second for the other."""
    processes.timeout.cache_clear()

    def start(rank: int, port: int) -> None:
        for name, value in environment(rank, 2, port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(processes.TIMEOUT, "1")

    yield start
    processes.timeout.cache_clear()


def test_a_process_says_that_the_others_do_not_come(started):
    started(1, free_port())
    with pytest.raises(ProcessError, match=r"process 1 does not reach the others .* start all 2"):
        launching.begin()


def test_a_process_says_that_another_program_has_the_port(started):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        started(0, other.getsockname()[1])
        with pytest.raises(ProcessError, match=r"another program uses this port; set MASTER_PORT"):
            launching.begin()


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf"])
def test_a_time_to_wait_is_seconds(started, monkeypatch, given):
    monkeypatch.setenv(processes.TIMEOUT, given)
    with pytest.raises(ProcessError, match=f"GATEPRUNER_TIMEOUT is '{given}': expected seconds"):
        processes.timeout()


def test_a_command_that_is_not_the_first_one_says_why_it_cannot_join(tmp_path):
    variables = {
        **{name: value for name, value in os.environ.items() if name != "MASTER_ADDR"},
        "WORLD_SIZE": "2",
        "RANK": "1",
        "MASTER_PORT": "29500",
        "PYTHONPATH": str(Path(gatepruner.__file__).parents[1]),
    }
    words = [sys.executable, "-m", "gatepruner", "evaluate", "it.pt", "--data", "pictures:."]
    done = subprocess.run(
        words, cwd=tmp_path, env=variables, capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot join the other processes of a run")
    assert done.stderr.count("\n") == 1


ENDING = """
from pathlib import Path
from gatepruner import launching
launching.begin()
import torch.distributed.nn.functional  # as when a network is traced
launching.end()
names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
assert not [name for name in names if "gloo" in name], names
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads as Linux does")
def test_no_thread_of_a_run_outlives_its_end():
    told = ended(start([["-c", ENDING]] * 2))
    assert [code for code, *_ in told] == [0, 0], told
