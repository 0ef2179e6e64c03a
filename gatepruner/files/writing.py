"""Writing files: the only place that opens a file for writing.

A file is written under a temporary name beside its place, brought to the disk, and given its name:
it is there as a whole or not at all, whatever happens on the way. A link in its place is replaced,
not followed.

While it is written, a temporary file is locked. A process that was killed leaves it behind without
a lock; the next one that writes the same file removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from gatepruner.errors import CheckpointError
from gatepruner.files.locks import lock

SUFFIXES = (".pt", ".pth", ".safetensors")  # of checkpoints that are written
Fill = Callable[[BinaryIO], object]
TEMPORARY = re.compile(r"\..*\.\d+-[0-9a-f]{8}\.gatepruner")


def write_file(path: Path, fill: Fill, *, force: bool = True) -> Path:
    """Write one file; see `write_files`."""
    write_files({path: fill}, force=force)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text, replacing the previous file."""
    return write_file(path, text_filling(text))


def text_filling(text: str) -> Fill:
    """What fills a file with this text."""
    return lambda file: file.write(text.encode())


def write_files(fills: Mapping[Path, Fill], *, force: bool = True) -> None:
    """Write files; none of them gets its name before the last is complete.

    Args:
        fills: what fills each file, open for writing.
        force: whether to replace files that exist.

    Raises:
        CheckpointError: a file exists or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        partials = {}
        for path, fill in fills.items():
            with _explained(path):
                partials[path] = stack.enter_context(_temporary(path, fill))
        for path, partial in partials.items():
            with _explained(path):
                _place(partial, path, force=force)
    for folder in {path.parent for path in fills}:
        _flush_folder(folder)


def refuse_name(path: Path) -> None:
    """Raise a `CheckpointError` if `path` has an unknown suffix or its folder cannot be written."""
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"cannot write {path}: expected a name ending in .pt or .safetensors")
    refuse_folder(path)


def refuse_folder(path: Path) -> None:
    """Raise a `CheckpointError` if the folder of `path` is missing or cannot be written."""
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"cannot write {path}: the folder {path.parent} is read-only; write to another place"
        )


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise a `CheckpointError` if there is something at `path` that may not be replaced.

    With `force`, a file or a link may be; a folder, a device or a pipe never.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: expected a file name")
    try:
        mode = path.lstat().st_mode
    except OSError:  # there is nothing, or no folder, which `refuse_name` explains
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise CheckpointError(f"{path} is a device or a pipe: expected a file name")
    if not force:
        problem = "is a link" if stat.S_ISLNK(mode) else "already exists"
        raise CheckpointError(f"{path} {problem}: write to another file, or replace it", force=True)


@contextlib.contextmanager
def _temporary(path: Path, fill: Fill) -> Iterator[Path]:
    """A complete temporary file beside `path`; removed at the end unless it was renamed."""
    refuse_folder(path)
    _remove_abandoned(path)
    partial = path.with_name(f"{_prefix(path)}{os.getpid()}-{secrets.token_hex(4)}.gatepruner")
    try:
        with partial.open("xb") as file:
            lock(file.fileno())
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # where an open file cannot be renamed
                file.close()
            yield partial
    finally:
        partial.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."  # short, since a name may be as long as the file system allows


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of `path` that a killed process has left behind."""
    prefix = _prefix(path)
    with contextlib.suppress(OSError):  # a folder may be writable and not readable
        for entry in os.scandir(path.parent):
            if entry.name.startswith(prefix) and is_temporary(entry.name):
                _remove_unlocked(entry.path)


def _remove_unlocked(name: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if lock(descriptor):
                os.unlink(name)
        finally:
            os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is a temporary one of `write_files`."""
    return TEMPORARY.fullmatch(name) is not None


def _place(partial: Path, path: Path, *, force: bool) -> None:
    """Give a temporary file its name."""
    if not force:
        with contextlib.suppress(OSError):  # it exists, or the file system has no hard links
            os.link(partial, path)
            return
    refuse_existing(path, force=force)
    partial.replace(path)


def _flush_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Tell why a file cannot be written; torch and safetensors have errors of their own."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        system = _systems(error)
        free, reason = shutil.disk_usage(path.parent).free, _reason(system or error)
        full = system is not None and system.errno == errno.ENOSPC
        if "os error 28" in str(error) or full or free < 2**16:
            reason = f"the disk is full ({free / 2**20:.1f} MiB free)"
        raise CheckpointError(f"cannot write {path}: {reason}; nothing was written") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]


def _systems(error: BaseException | None) -> OSError | None:
    """The system's error from which another one came."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
