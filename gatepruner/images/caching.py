"""Decoded pictures in a file, so that they are decoded once for all passes, runs and processes.

A file is an array of NumPy, uint8 `(N, C, H, W)`. Its name is a hash of what it holds: the pictures
(their paths, sizes and times of change), their scaling, and the version of the decoder. It is
written under another name and renamed when it is complete. It is read, not mapped: a file that
someone cuts short raises an error instead of ending the process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from gatepruner.errors import DataError
from gatepruner.images.decoding import Decoded, Encoded
from gatepruner.images.examples import Track
from gatepruner.images.memory import decoded
from gatepruner.images.scaling import Scaling
from gatepruner.images.tables import Picture, Row
from gatepruner.models import Shape

VERSION = 1  # of how pictures are decoded and laid out


@dataclass(frozen=True)
class Cache:
    """A complete file of decoded pictures.

    Attributes:
        file: it.
        images: how many it has.
        shape: `(C, H, W)` of each.
    """

    file: Path
    images: int
    shape: Shape

    def read(self, first: int, count: int = 1) -> Tensor:
        """Pixels `(count, C, H, W)` uint8 of images that follow each other.

        Raises:
            DataError: the file is not what it was.
        """
        pixels = torch.empty(count, *self.shape, dtype=torch.uint8)
        memory = pixels.numpy().reshape(-1).data
        try:
            with self.file.open("rb") as file:
                file.seek(len(self._header) + first * math.prod(self.shape))
                whole = file.readinto(memory) == len(memory)
        except OSError as error:
            raise DataError(f"cannot read {self.file}: {error.strerror}") from None
        if not whole:
            raise DataError(f"{self.file} was cut short while it was used: remove it")
        return pixels

    @property
    def complete(self) -> bool:
        """Whether the file is there, and is what it should be."""
        if not os.path.isfile(self.file):  # a pipe would never end
            return False
        try:
            with self.file.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return file.read(len(self._header)) == self._header and size == self.size
        except OSError:
            return False

    @property
    def size(self) -> int:
        """Bytes of the complete file."""
        return len(self._header) + self.images * math.prod(self.shape)

    @functools.cached_property
    def _header(self) -> bytes:
        """The header of an array of NumPy, format 1.0."""
        shape = (self.images, *self.shape)
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        text += " " * (-(len(text) + 11) % 64) + "\n"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    def write(self, pixels: Iterator[Tensor]) -> None:
        """Write the file; until it is complete, it has another name."""
        part = self.file.with_name(f".{self.file.name}.{secrets.token_hex(8)}.part")
        try:
            with open(part, "wb", opener=_no_link) as file:
                file.write(self._header)
                for image in pixels:
                    file.write(np.ascontiguousarray(image.numpy()).data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.file)
        finally:
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Cached(Decoded):
    """A decoded picture in a cache.

    Attributes:
        name: of what was decoded.
        cache: where it is.
        index: its number there.
    """

    name: str
    cache: Cache
    index: int

    def __str__(self) -> str:
        return self.name

    def pixels(self) -> Tensor:
        """Its pixels `(C, H, W)` uint8."""
        return self.cache.read(self.index)[0]


def cached(
    pictures: Sequence[Picture], shape: Shape, resize: Scaling | None, folder: Path, track: Track
) -> Cache:
    """The cache of pictures in a folder; decodes them if no process has done so.

    Raises:
        DataError: a picture cannot be decoded, or the folder has no room or cannot be written.
    """
    cache = Cache(folder / f"{_key(pictures, shape, resize)}.npy", len(pictures), shape)
    if cache.complete:
        return cache
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{cache.file.name}.lock") as alone:
            if not cache.complete:  # another process may have written it meanwhile
                if alone:
                    _remove_parts(cache)
                _check_room(cache)
                cache.write(iter(decoded(pictures, shape, resize, track)))
    except OSError as error:
        raise DataError(f"cannot keep decoded pictures in {folder}: {error.strerror}") from None
    return cache


def _remove_parts(cache: Cache) -> None:
    """Remove what killed processes have left; one that is writing would hold the lock."""
    for part in cache.file.parent.glob(f".{cache.file.name}.*.part"):
        part.unlink(missing_ok=True)


def _check_room(cache: Cache) -> None:
    free = shutil.disk_usage(cache.file.parent).free
    if free < cache.size:
        raise DataError(
            f"{cache.images:,} decoded pictures take {cache.size / 2**30:.1f} GiB, and "
            f"{cache.file.parent} has {free / 2**30:.1f} GiB left: choose another folder, or fewer "
            "pictures"
        )


def _key(pictures: Sequence[Picture], shape: Shape, resize: Scaling | None) -> str:
    """A hash of everything that decoded pictures depend on."""
    digest = hashlib.sha256(repr((VERSION, PIL.__version__, shape, resize)).encode())
    version = functools.lru_cache(_version)
    for picture in pictures:
        if isinstance(picture, Encoded):
            digest.update(hashlib.sha256(picture.content).digest())
        elif isinstance(picture, Row):
            place = (picture.column, picture.group.start + picture.index)
            digest.update(repr((version(str(picture.group.file)), place)).encode())
        elif isinstance(picture, str):
            digest.update(repr(version(picture)).encode())
    return digest.hexdigest()[:32]


def _version(file: str) -> tuple[str | int, ...]:
    """What differs when another file is in its place.

    The time of change is that of the system, too: another can be set by whoever writes the file,
    as archives do, and pictures without compression have all the same size.
    """
    try:
        found = os.stat(file)
    except OSError as error:
        raise DataError(f"cannot read the image {file}: {error.strerror}") from None
    return os.path.abspath(file), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _no_link(path: str, flags: int) -> int:
    """Open a file to write it, through no link that someone has put in its place."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Wait until no other process is in this block; without locks, do not, and yield `False`."""
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    with open(file, "ab", opener=_no_link) as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            alone = False
        else:
            alone = True
        yield alone
