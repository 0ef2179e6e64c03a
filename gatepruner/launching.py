"""How this process was started: alone, or as one of a run, as torchrun starts them.

Whoever starts a run sets variables in the environment of its processes, by which they meet.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gatepruner.errors import ProcessError, first_line
from gatepruner.processes import TIMEOUT, timeout

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

NEEDED = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # variables
NUMBERS = ("WORLD_SIZE", "RANK", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Run:
    """A run of several processes that this one has joined.

    Attributes:
        store: where the processes leave each other notes; torchrun's lives longer than they do.
    """

    store: Store

    def first_to_fail(self) -> bool:
        """Whether no other process has failed before this one, so that one tells for all."""
        try:
            return bool(self.store.add("failed", 1) == 1)
        except RuntimeError:  # the store has gone with the process that kept it
            return True


def several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started as one of several."""
    return environment.get("WORLD_SIZE", "1") != "1"


def first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its run, or the only one, or nobody says which."""
    return not several(environment) or environment.get("RANK", "0") == "0"


def begin(environment: Mapping[str, str] = os.environ) -> Run | None:
    """Join the processes that torchrun, or anything that sets its variables, has started.

    Args:
        environment: has WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT, and LOCAL_RANK and
            LOCAL_WORLD_SIZE where a machine has several processes.

    Returns:
        The run; `None` if this process is the only one.

    Raises:
        ProcessError: a variable is missing or wrong, or the others do not come.
    """
    if not several(environment):
        return None
    check(environment)
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # Its functions have the group as a default if they are made while there is one, as models are
    # traced. Then it outlives its end, and its threads may abort the process as it exits.
    importlib.import_module("torch.distributed.nn.functional")
    own_gpus = _takes_own_gpu(environment)
    with _meeting(environment):
        store, rank, world = next(rendezvous("env://", timeout=timeout()))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if own_gpus else "gloo",
            store=PrefixStore("gatepruner", store),
            rank=rank,
            world_size=world,
            timeout=timeout(),
        )
    return Run(PrefixStore("gatepruner failures", store))


def _takes_own_gpu(environment: Mapping[str, str]) -> bool:
    """Take the GPU of this process, if its machine has one for each process.

    Raises:
        ProcessError: it has several, and nobody says which is the one of this process.
    """
    import torch

    here, gpus = int(environment.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if gpus > 1 and local_rank(environment) is None:
        raise ProcessError(
            f"LOCAL_RANK is not set: this machine has {gpus} GPUs, and each process takes the one "
            "of this number; set it and LOCAL_WORLD_SIZE, or start the processes with torchrun"
        )
    if not gpus >= here > 0:
        return False
    torch.cuda.set_device(local_rank(environment) or 0)
    return True


def check(environment: Mapping[str, str]) -> None:
    """Raise a `ProcessError` that lists all variables of a run that are missing or wrong."""
    wrong = [f"{name} is not set" for name in NEEDED if name not in environment]
    wrong += [
        f"{name} is {environment[name]!r}, expected a number"
        for name in NUMBERS
        if name in environment and not environment[name].isdecimal()
    ]
    if not wrong and int(environment["RANK"]) >= int(environment["WORLD_SIZE"]):
        wrong = [
            f"RANK is {environment['RANK']} of {environment['WORLD_SIZE']} processes, which count "
            "from 0"
        ]
    if wrong:
        raise ProcessError(
            f"cannot join the other processes of a run, since WORLD_SIZE is "
            f"{environment.get('WORLD_SIZE')}: {'; '.join(wrong)}; start several processes with "
            "torchrun, or unset WORLD_SIZE for a single one"
        )


@contextlib.contextmanager
def _meeting(environment: Mapping[str, str]) -> Iterator[None]:
    """Say why the processes of a run do not meet."""
    place = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    try:
        yield
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise ProcessError(
                f"the processes of this run cannot meet at {place}: another program uses this "
                "port; set MASTER_PORT to a free one"
            ) from error
        raise ProcessError(
            f"process {environment['RANK']} does not reach the others of this run at {place} "
            f"({first_line(error).rstrip('.')}): start all {environment['WORLD_SIZE']} with the "
            "same WORLD_SIZE, MASTER_ADDR and MASTER_PORT; if they take longer than "
            f"{timeout().total_seconds():g} s to come, set {TIMEOUT} to more seconds"
        ) from error


def end() -> None:
    """Leave the run."""
    import torch.distributed as dist

    dist.destroy_process_group()


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this process among those of its machine, from 0; `None` if nobody says."""
    number = environment.get("LOCAL_RANK")
    return None if number is None else int(number)
