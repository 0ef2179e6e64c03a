"""The processes of one run and what they tell each other; a single process has nobody to ask.

All of them call the same verbs with the same arguments. A verb takes its own part of the images,
adds up what the others have counted, and returns the same in every process. What is measured once
or depends on one machine (latencies, files, choices) is decided by the first process for all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from gatepruner.errors import GatePrunerError, ProcessError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Work

TIMEOUT = "GATEPRUNER_TIMEOUT"  # variable: seconds that a process waits for the others
SECONDS = 600.0  # by default
LONGEST = 1e9  # seconds
ALONE: ContextVar[bool] = ContextVar("alone", default=False)  # while this process decides
Value = TypeVar("Value")
Given = ParamSpec("Given")


def count() -> int:
    """How many processes share the work: 1 unless `torch.distributed` is initialised.

    Also 1 in what the first process does for all, see `agreed`: nobody shares that.
    """
    if ALONE.get():
        return 1
    dist: Any = sys.modules.get("torch.distributed")  # not imported, so that nothing waits for it
    shared = dist is not None and dist.is_available() and dist.is_initialized()
    return int(dist.get_world_size()) if shared else 1


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if count() == 1 else int(sys.modules["torch.distributed"].get_rank())


def cores(environment: Mapping[str, str] = os.environ) -> int:
    """How many processors of its machine are this process's share."""
    here = int(environment.get("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1
    return max((os.cpu_count() or 1) // max(here, 1), 1)


@dataclass(frozen=True)
class Share:
    """The part of a set of images that a process takes.

    Attributes:
        mine: `(M,)`, indices of its images among those that it has.
        places: `(M,)`, their places in the whole set.
        all: the number of images of the whole set.
    """

    mine: Tensor
    places: Tensor
    all: int


def share(number: int, *, sharded: bool = False) -> Share:
    """This process's part of so many images; parts differ by at most one, and none is padded.

    Args:
        number: of the images that this process has.
        sharded: whether these are a shard of its own: the whole set is then those of all
            processes, in their order.
    """
    import torch

    if not sharded:
        mine = torch.arange(number)[rank() :: count()]
        return Share(mine, mine, number)
    numbers = gathered(torch.tensor(number)).tolist()
    mine = torch.arange(number)
    return Share(mine, mine + sum(numbers[: rank()]), sum(numbers))


def slice_of(number: int) -> slice:
    """This process's part of so many things as a slice; parts differ by at most one."""
    return slice(number * rank() // count(), number * (rank() + 1) // count())


def add(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes, the same in all of them; written into the tensor."""
    if count() > 1:
        import torch.distributed as dist

        _finish(tensor, lambda moved: dist.all_reduce(moved, async_op=True))
    return tensor


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one device by their means over the processes, in one operation."""
    if count() == 1:
        return
    import torch

    flat = add(torch.cat([tensor.detach().flatten().float() for tensor in tensors])) / count()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def greatest(number: int) -> int:
    """The greatest of the numbers that the processes give."""
    if count() == 1:
        return number
    import torch
    import torch.distributed as dist

    held = torch.tensor(number)
    _finish(held, lambda moved: dist.all_reduce(moved, dist.ReduceOp.MAX, async_op=True))
    return int(held)


def gathered(tensor: Tensor) -> Tensor:
    """The tensors of all processes, of equal shapes, stacked in the order of the processes."""
    import torch

    parts = tensor.new_zeros((count(), *tensor.shape))
    parts[rank()] = tensor
    return add(parts) if tensor.dtype != torch.bool else add(parts.byte()).bool()


def together(rows: Tensor) -> Tensor:
    """The rows `(N, ...)` of all processes, those of each after those of the ones before it."""
    if count() == 1:
        return rows
    own = share(len(rows), sharded=True)
    every = rows.new_zeros((own.all, *rows.shape[1:]))
    every[own.places] = rows
    return add(every)


def agreed(decide: Callable[[], Value]) -> Value:
    """What the first process decides, in all of them; the others wait, and decide nothing.

    Args:
        decide: called in the first process alone, where verbs then share nothing; a
            `GatePrunerError` is raised in all of them.
    """
    if count() == 1:
        return decide()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if rank() == 0:
        outer = ALONE.set(True)
        try:
            outcome[0] = decide()
        except GatePrunerError as error:
            outcome[1] = error
        finally:
            ALONE.reset(outer)
    with explained():
        dist.broadcast_object_list(outcome, 0)
    value, refusal = outcome
    if refusal is not None:
        raise refusal
    return value  # type: ignore[no-any-return]


def decided_by_the_first(verb: Callable[Given, Value]) -> Callable[Given, Value]:
    """A function that only the first process carries out, and whose result all of them get.

    All of them have to call it, since otherwise they would take what comes next for its result.
    """

    @functools.wraps(verb)
    def decided(*args: Given.args, **options: Given.kwargs) -> Value:
        meet(verb.__name__, dict)
        return agreed(lambda: verb(*args, **options))

    return decided


def meet(verb: str, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Wait until every process has come to the same verb, and make sure that it is the same.

    Args:
        verb: what the processes do, in words.
        facts: what has to be equal in all of them; called if there are several.

    Raises:
        ProcessError: another process does something else, or does not come.
    """
    if count() == 1:
        return
    import torch
    import torch.distributed as dist

    own = {"verb": verb, **facts()}
    digest = torch.tensor(list(hashlib.sha256(repr(own).encode()).digest()))
    if bool((gathered(digest) == digest).all()):
        return
    everybodys: list[Any] = [None] * count()
    with explained():
        dist.all_gather_object(everybodys, own)
    first, other = everybodys[0], next(one for one in everybodys if one != everybodys[0])
    differing = [
        f"{key} is {first.get(key)} in process 0 and {other.get(key)} in process "
        f"{everybodys.index(other)}"
        for key in {**first, **other}
        if first.get(key) != other.get(key)
    ]
    raise ProcessError(
        f"the processes do different things: {'; '.join(differing)}; call the same verb with the "
        "same arguments in all of them, and with all images, of which each takes its part"
    )


def _finish(tensor: Tensor, start: Callable[[Tensor], Work | None]) -> None:
    """Carry out a collective operation on a tensor, which CUDA's processes need not wait for."""
    import torch
    import torch.distributed as dist

    on_gpus = "gloo" not in str(dist.get_backend_config())
    place = torch.device("cuda") if on_gpus else torch.device("cpu")
    moved = tensor if tensor.is_cuda else tensor.to(place)
    with explained():
        work = start(moved)
        assert work is not None  # this process is one of the group
        if moved.is_cuda:
            work.wait()
        else:
            work.wait(timeout())
    if moved is not tensor:
        tensor.copy_(moved)


@functools.cache
def timeout() -> timedelta:
    """How long a process waits for the others.

    Raises:
        ProcessError: the variable that sets it holds something else than seconds.
    """
    given = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < LONGEST:
        raise ProcessError(f"{TIMEOUT} is {given!r}: expected seconds above 0, such as 600")
    return timedelta(seconds=seconds)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Tell what it means if the other processes cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        told = explanation(error)
        if told is None:
            raise
        raise ProcessError(told) from error


def explanation(error: RuntimeError) -> str | None:
    """What an error of `torch.distributed` means for a run; `None` for any other error."""
    import torch.distributed as dist

    text, seconds = str(error), f"{timeout().total_seconds():g} s"
    if "timed out" in text.lower() or "timeout" in text.lower():
        return (
            f"process {_name()} has waited {seconds} for the others, which have not come: every "
            "process must call the same verbs, none of them within `if rank == 0:`; if one only "
            f"takes longer, set {TIMEOUT} to more seconds"
        )
    if "gloo" in text or isinstance(error, dist.DistError):
        return (
            f"another process of this run has ended or cannot be reached, and process {_name()} "
            "cannot go on without it: look for what it says, then run the same command again"
        )
    return None


def _name() -> str:
    return f"{os.environ.get('RANK', rank())} on {socket.gethostname()}"
