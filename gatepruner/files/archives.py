"""The three kinds of files of torch: zip, pickles one after another, and tar (before 0.1.10).

Each is a pickle, and storages by key. All that a file says about sizes is compared with its own
size before anything is read, and the checksums of a zip file are verified.
"""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, first_line, listed, visible
from gatepruner.files.places import Span, Version, enough_memory
from gatepruner.files.rebuilding import Rebuilder, Storage, sides, storage_key, storage_type
from gatepruner.files.stand_ins import runs, within
from gatepruner.files.unpickling import LARGEST, Machine, Source

RECORD = b"PK\3\4"  # at the beginning of every record of a zip file
MAGIC = 0x1950A86A20F9469CFC6C  # torch's, at the beginning of a file without zip
LARGEST_DIRECTORY = 2**24  # bytes of the directory of a zip file, which has 80 for each tensor
PIECE = 2**20  # bytes of a tar file read at once
PART = 2**16  # bytes of a zip file of which a checksum is taken at once
MEMBERS = 16  # of a tar file that are looked at; it has four


@dataclass(frozen=True)
class Content:
    """What was read from a file.

    Attributes:
        value: with stand-ins for the objects of unknown classes.
        unknown: the names of these classes, and of functions.
    """

    value: Any
    unknown: frozenset[str]


def read_archive(path: Path, later: Version | None = None) -> Content:
    """The content of a file of torch.

    Args:
        path: of the file.
        later: defers the tensors in a zip file of this version; by default they are in memory.

    Raises:
        CheckpointError: the file names what is only there to run code, is damaged, or takes more
            memory than its size allows.
        pickle.UnpicklingError: it is no file of torch.
    """
    reader = next((read for known, read in READERS.items() if known(path)), None)
    if reader is None:
        raise pickle.UnpicklingError("no file of torch")
    machines: list[Machine] = []

    def machine(
        makers: Mapping[str, Callable[..., Any]], persistent: Callable[[Any], Any]
    ) -> Machine:
        machines.append(Machine(makers, persistent))
        return machines[-1]

    try:
        value = reader(path, machine, later)
    except CheckpointError:
        _refuse_running(path, machines)
        raise
    except Exception as error:  # the parts of a damaged file can be anything
        _refuse_running(path, machines)
        reason = visible(first_line(error))
        raise CheckpointError(
            f"{path} is damaged or truncated, or no checkpoint: {reason}"
        ) from None
    _refuse_running(path, machines)
    return Content(value, frozenset(machines[-1].unknown))


def _refuse_running(path: Path, machines: Iterable[Machine]) -> None:
    """Raise a `CheckpointError` if a file names what is only there to run code."""
    running = sorted(name for machine in machines for name in machine.names if runs(name))
    if running:
        raise CheckpointError(
            f"{path} names {listed(running)}, which would run code: expected only tensors; do not "
            "use the file"
        )


Make = Callable[[Mapping[str, Callable[..., Any]], Callable[[Any], Any]], Machine]


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip file does; torch does not look at its end either."""
    with path.open("rb") as file:
        return file.read(4) == RECORD


def records(path: Path) -> list[zipfile.ZipInfo]:
    """The records of a zip file; its directory is not read if it is too large.

    Raises:
        CheckpointError: the directory is damaged or too large.
    """
    try:
        with path.open("rb") as file:
            bounded = cast(BinaryIO, _Bounded(file, LARGEST_DIRECTORY))
            return zipfile.ZipFile(bounded).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from None


def _read_zip(path: Path, machine: Make, later: Version | None) -> Any:
    found = records(path)
    pickles = [record for record in found if record.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is a zip file, but no checkpoint: it has no data.pkl")
    _refuse_packed(path, found)
    root = pickles[0].filename.removesuffix("data.pkl")
    with path.open("rb") as file:
        places = {record.filename: _verified(path, file, record) for record in found}
        order = root + "byteorder"
        if order in places and _piece(file, *places[order]) != b"little":
            raise CheckpointError(f"{path} was written on a machine of another byte order")
        size, read = path.stat().st_size, dict[str, Storage]()

        def storage(identity: Any) -> Storage:
            _, kind, key, _, count = identity
            key = storage_key(key)
            if key in read:
                return replace(read[key], dtype=storage_type(kind))
            dtype, (begin, length) = storage_type(kind), places[f"{root}data/{key}"]
            needed = count * dtype.itemsize
            if length < needed:
                raise CheckpointError(
                    f"{path} is damaged: the record data/{visible(key)} has {length:,} bytes, "
                    f"its tensors {needed:,}"
                )
            file.seek(begin)
            data = _bytes(file, length) if later is None else Span(path, later, begin, length)
            read[key] = Storage(data, dtype)
            return read[key]

        begin, length = places[root + "data.pkl"]
        file.seek(begin)
        content = io.BytesIO(file.read(min(length, LARGEST)))
        return machine(Rebuilder(size).makers, storage).run(_all_of(content))


def _refuse_packed(path: Path, found: Iterable[zipfile.ZipInfo]) -> None:
    """Check that the records lie in a zip file as they are: torch does not compress them."""
    names: set[str] = set()
    total = 0
    for record in found:
        total += record.file_size
        packed = record.compress_type or record.flag_bits & 1
        if packed or record.file_size != record.compress_size:
            raise CheckpointError(
                f"{path} has a compressed or encrypted record {visible(record.filename)}: unpack "
                "it, and write the state dict with torch.save"
            )
        if record.filename in names:
            raise CheckpointError(f"{path} has two records {visible(record.filename)}")
        names.add(record.filename)
    if total > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged: its records overlap")


def _verified(path: Path, file: BinaryIO, record: zipfile.ZipInfo) -> tuple[int, int]:
    """Begin and length of a record whose checksum is right."""
    file.seek(record.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != RECORD:
        raise CheckpointError(f"{path} is damaged or truncated: {visible(record.filename)}")
    name, extra = struct.unpack("<HH", header[26:])
    begin = file.seek(record.header_offset + 30 + name + extra)
    left, checksum = record.file_size, 0
    while left and (piece := file.read(min(left, PART))):
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
    if left:
        raise CheckpointError(f"{path} is truncated: {visible(record.filename)} ends too early")
    if checksum != record.CRC:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {visible(record.filename)} is wrong (or it was "
            "written without: torch.serialization.set_crc32_options)"
        )
    return begin, record.file_size


def _piece(file: BinaryIO, begin: int, length: int) -> bytes:
    file.seek(begin)
    return file.read(min(length, 16))


def _read_pickles(path: Path, machine: Make, later: Version | None) -> Any:
    """The content of a file of torch before 1.6: five pickles, then the storages."""
    size = path.stat().st_size
    with path.open("rb") as file:
        source = Source(file, size)
        for _ in range(3):  # magic number, version and machine
            machine({}, _no_id).run(source)
        begin, noted = file.tell(), dict[str, torch.dtype]()

        def note(identity: Any) -> Any:
            if identity[0] == "storage":
                noted[storage_key(identity[2])] = storage_type(identity[1])
            return identity[1]

        content = Source(file, min(source.left, LARGEST))
        machine({"builtins.getattr": within}, note).run(content)
        keys = machine({}, _no_id).run(Source(file, min(size - file.tell(), LARGEST)))
        storages = {key: _storage(file, size, noted[key]) for key in keys}

        def storage(identity: Any) -> Any:
            if identity[0] == "module":
                return identity[1]
            _, _, key, _, _, *view = identity
            whole = storages[storage_key(key)]
            if not view or view[0] is None:
                return whole
            return _part(whole, *view[0][1:])

        file.seek(begin)
        return machine(Rebuilder(size).makers, storage).run(Source(file, LARGEST))


def _no_id(identity: Any) -> Any:
    raise pickle.UnpicklingError("an id where there is none")


def _storage(file: BinaryIO, size: int, dtype: torch.dtype) -> Storage:
    """The next storage of a file: the number of its values, and the values."""
    (count,) = struct.unpack("<q", file.read(8))
    if not 0 <= count * dtype.itemsize <= size - file.tell():
        raise EOFError("it ends too early")
    return Storage(_bytes(file, count * dtype.itemsize), dtype)


def _bytes(file: BinaryIO, length: int) -> torch.UntypedStorage:
    """The next bytes of a file, which has so many."""
    with enough_memory(getattr(file, "name", "the file"), length):
        data = torch.empty(length, dtype=torch.uint8)
    if file.readinto(data.numpy().data) != length:  # type: ignore[attr-defined]
        raise EOFError("it ends too early")
    return data.untyped_storage()


def _part(whole: Storage, offset: Any, count: Any) -> Storage:
    """So many values of a storage from an offset."""
    assert isinstance(whole.data, torch.UntypedStorage)  # only those of zip files are deferred
    begin, length = (number * whole.dtype.itemsize for number in sides((offset, count)))
    if begin + length > whole.data.nbytes():
        raise EOFError("a part of a storage ends too late")
    return Storage(whole.data[begin : begin + length], whole.dtype)


def _read_tar(path: Path, machine: Make, later: Version | None) -> Any:
    """The content of a tar archive of torch before 0.1.10."""
    size = path.stat().st_size
    with path.open("rb") as file:
        with tarfile.open(fileobj=cast(BinaryIO, _Bounded(file, PIECE)), mode="r:") as archive:
            members = {member.name: member for member in itertools.islice(archive, MEMBERS)}
        storages, tensors, content = (
            _member(file, size, members[name]) for name in ("storages", "tensors", "pickle")
        )
    rebuilder = Rebuilder(size)
    known = _tar_tensors(tensors, _tar_storages(storages, machine), rebuilder, machine)

    def value(key: Any) -> Any:
        return key[0] if isinstance(key, tuple) else known[int(key)]

    return machine(rebuilder.makers, value).run(_all_of(content))


class _Bounded:
    """A file of which only small parts are read at once: a reader takes memory for what it asks."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most = file, most
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if count > self.most:
            raise EOFError(f"a part of {count:,} bytes, expected at most {self.most:,}")
        return self.file.read(count if count >= 0 else self.most)


def _member(file: BinaryIO, size: int, member: tarfile.TarInfo) -> io.BytesIO:
    """A regular file in a tar archive."""
    if not member.isreg() or member.issparse() or member.offset_data + member.size > size:
        raise EOFError(f"its part {visible(member.name)} is none, or ends too early")
    file.seek(member.offset_data)
    return io.BytesIO(file.read(member.size))


def _all_of(file: io.BytesIO) -> Source:
    return Source(file, min(file.getbuffer().nbytes - file.tell(), LARGEST))


def _tar_storages(file: io.BytesIO, machine: Make) -> dict[int, Storage]:
    """The storages in a tar archive."""
    plain, size = machine({}, _no_id), file.getbuffer().nbytes
    storages = {}
    for _ in range(plain.run(_all_of(file))):
        key, _, kind = plain.run(_all_of(file))
        storages[int(key)] = _storage(file, size, storage_type(kind))
    for key, root, offset, count in plain.run(_all_of(file)):
        storages[int(key)] = _part(storages[int(root)], offset, count)
    return storages


def _tar_tensors(
    file: io.BytesIO, storages: Mapping[int, Storage], rebuilder: Rebuilder, machine: Make
) -> dict[int, Tensor]:
    """The tensors in a tar archive."""
    plain, tensors = machine({}, _no_id), {}
    for _ in range(plain.run(_all_of(file))):
        key, storage, _ = plain.run(_all_of(file))
        (axes, _) = struct.unpack("<ii", file.read(8))
        numbers = struct.unpack(f"<{2 * axes + 1}q", file.read(8 * (2 * axes + 1)))
        shape, stride, offset = numbers[:axes], numbers[axes : 2 * axes], numbers[-1]
        tensors[int(key)] = rebuilder.tensor(storages[int(storage)], offset, shape, stride)
    return tensors


def _is_tar(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(262)[257:] == b"ustar"


def _is_pickles(path: Path) -> bool:
    begin = pickle.dumps(MAGIC, 2)
    with path.open("rb") as file:
        return file.read(len(begin)) == begin


READERS: dict[Callable[[Path], bool], Callable[[Path, Make, Version | None], Any]] = {
    is_zip: _read_zip,
    _is_tar: _read_tar,
    _is_pickles: _read_pickles,
}
