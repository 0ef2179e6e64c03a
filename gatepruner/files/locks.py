"""Locks, so that two runs do not write the same output.

They are those of the operating system, which end with the process that holds them, however it
ends: a crash leaves an empty file behind, but no lock.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gatepruner.errors import CheckpointError

PATIENCE = 10.0  # seconds for the processes of a killed run to end, which hold its locks, too
SUFFIX = ".gatepruner-lock"  # of the name of a lock file


def lock(descriptor: int) -> bool | None:
    """Lock an open file; returns whether this was possible, `None` where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


@contextlib.contextmanager
def held(output: Path | None) -> Iterator[None]:
    """Keep other runs from writing a file, until the end of the block.

    A file system without locks keeps none away.

    Args:
        output: the file; `None` for no file.

    Raises:
        CheckpointError: another run is writing it, or its folder cannot be written.
    """
    if output is None:
        yield
        return
    file = output.with_name(f".{output.name}{SUFFIX}")
    with _held(file, output):
        yield


@contextlib.contextmanager
def held_folder(output: Path | None) -> Iterator[None]:
    """Keep other runs from writing a folder; makes it, and removes it if it stays empty.

    Raises:
        CheckpointError: another run is writing it, or it cannot be written.
    """
    if output is None:
        yield
        return
    new = not output.is_dir()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error.strerror}") from None
    try:
        with _held(output / SUFFIX, output):
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # it has files
                output.rmdir()


@contextlib.contextmanager
def _held(file: Path, output: Path) -> Iterator[None]:
    descriptor = _locked(file, output)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # before its lock ends
        os.close(descriptor)


def _locked(file: Path, output: Path) -> int:
    """The descriptor of a lock file, locked."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise CheckpointError(f"cannot write {output}: {error.strerror}") from None
        try:
            _wait(descriptor, output)
            if _is_at(descriptor, file):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just removed it


def _wait(descriptor: int, output: Path) -> None:
    """Lock a file; a process that a killed run has left behind gets the time to end."""
    end = time.monotonic() + PATIENCE
    while lock(descriptor) is False:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace")
        if _runs(holder) or time.monotonic() > end:
            raise CheckpointError(
                f"another run is writing {output} (process {holder or 'unknown'}): wait for its "
                "end, or write to another place"
            )
        time.sleep(0.1)


def _runs(process: str) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # of another user
        pass
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except OSError:
        return False
