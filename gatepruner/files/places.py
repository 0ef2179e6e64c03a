"""Where tensors lie in a file, which has to stay as it was found."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError
from gatepruner.networks.deferred import Deferred

Version = tuple[int, ...]


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[Version]:
    """Read a file that nobody changes meanwhile.

    Raises:
        CheckpointError: another program has changed it, or it is not there.
    """
    before = _version(path)
    try:
        yield before
    finally:
        _check(path, before)


def _check(path: Path, version: Version) -> None:
    """Raise a `CheckpointError` if a file has another version."""
    if _version(path) != version:
        raise CheckpointError(
            f"{path} was changed while it was read: read it again when it is complete"
        )


def _version(path: Path) -> Version:
    """Numbers that differ when a file has been changed or replaced."""
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True)
class Span:
    """Bytes of a file that are read when they are needed.

    Attributes:
        path: of the file.
        version: of the file, which it has to have when it is read.
        begin: number of bytes before them.
        length: number of bytes.
    """

    path: Path
    version: Version
    begin: int
    length: int

    def nbytes(self) -> int:
        """Number of bytes, as a storage tells it."""
        return self.length

    def read(self, begin: int, length: int) -> Tensor:
        """Some of the bytes.

        Raises:
            CheckpointError: the file was changed, or cannot be read.
        """
        _check(self.path, self.version)  # a pipe in its place would be waited for
        data = _room(self.path, length)
        try:
            with self.path.open("rb") as file:
                file.seek(self.begin + begin)
                count = file.readinto(data.numpy().data)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror}") from None
        _check(self.path, self.version)
        if count != length:
            raise CheckpointError(f"{self.path} ends before its weights do")
        return data


def _room(path: Path, length: int) -> Tensor:
    """Memory for so many bytes, which goes back to the system as soon as nothing uses it.

    Freed memory that the C library keeps is often too small for the next tensor.
    """
    with enough_memory(path, length):
        room = mmap.mmap(-1, max(1, length), access=mmap.ACCESS_COPY)
    return torch.frombuffer(room, dtype=torch.uint8)[:length]


@contextlib.contextmanager
def enough_memory(path: Path | str, length: int) -> Iterator[None]:
    """Take memory for a tensor of a file.

    Raises:
        CheckpointError: there is not enough.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise CheckpointError(
            f"{path} has a tensor of {length:,} bytes, for which no memory is left: free some "
            "(prune without images needs no more than the largest tensor)"
        ) from None


@dataclass(frozen=True)
class View:
    """A tensor in a file; calling it reads the tensor.

    Attributes:
        span: its storage.
        dtype: of its values.
        offset: number of values before its first one.
        shape: its sides.
        stride: how many values the next one along each side is away.
    """

    span: Span
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __call__(self) -> Tensor:
        steps = zip(self.shape, self.stride, strict=True)
        reach = sum((side - 1) * step for side, step in steps) + 1
        count = reach if math.prod(self.shape) else 0
        size = self.dtype.itemsize
        values = self.span.read(self.offset * size, count * size).view(self.dtype)
        return values.as_strided(self.shape, self.stride)

    def deferred(self) -> Deferred:
        """The tensor, which is read when it is needed."""
        return Deferred.of(self, self.shape, self.dtype)
