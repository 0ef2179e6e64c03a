"""Processes that share a run: worker functions carried out in each of them, and their results."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import gatepruner

TESTS = Path(__file__).parent
WORKER = """
import sys
import torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from gatepruner import launching
from {module} import {name}
run = launching.begin()
torch.save({name}(*sys.argv[2:]), sys.argv[1])
launching.end()
"""


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    several = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "GATEPRUNER_TIMEOUT": "60",
        "PYTHONPATH": str(Path(gatepruner.__file__).parents[1]),
    }
    return {**os.environ, **several}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def start(
    commands: Sequence[Sequence[str]], cwd: Path | None = None
) -> list[subprocess.Popen[str]]:
    """A process for each command, all of one run."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(rank, len(commands), port),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]


def ended(started: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """The exit code, stdout and stderr of each."""
    try:
        told = [process.communicate(timeout=120) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
        raise AssertionError([process.communicate() for process in started]) from None
    return [(process.returncode, *texts) for process, texts in zip(started, told, strict=True)]


def results(module: str, name: str, count: int, folder: Path, *arguments: str) -> list[object]:
    """What a function of a test file returns in each of so many processes."""
    code = WORKER.format(tests=str(TESTS), module=module, name=name)
    files = [folder / f"{name}-{rank}-of-{count}.pt" for rank in range(count)]
    outcomes = ended(start([["-c", code, str(file), *arguments] for file in files]))
    assert [code for code, _, _ in outcomes] == [0] * count, outcomes[0][2] + outcomes[-1][2]
    return [torch.load(file, weights_only=False) for file in files]
