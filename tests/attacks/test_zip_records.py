"""A zip file whose records are damaged, short, packed, doubled or overlapping is refused."""

from __future__ import annotations

import struct
import zipfile

import pytest
import torch
from conftest import draw

from gatepruner.errors import CheckpointError
from gatepruner.files.checkpoints import load

KEY = "conv1.weight"


@pytest.fixture(scope="module")
def weights():
    return dict(draw("resnet8").weights)


def records(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def largest(found) -> str:
    return max((name for name in found if "/data/" in name), key=lambda name: len(found[name]))


def written(path, found, **how):
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, data in found.items():
            archive.writestr(name, data)


def flipped(path):
    """One bit of a weight is another one, as after a fault of a disk."""
    data, found = bytearray(path.read_bytes()), records(path)
    at = data.index(found[largest(found)]) + 100
    data[at] ^= 1
    path.write_bytes(data)


def short(path):
    """A record ends too early, and its checksum is right: behind it are bytes of another."""
    found = records(path)
    found[largest(found)] = found[largest(found)][:-4]
    written(path, found)


def packed(path):
    written(path, records(path), compression=zipfile.ZIP_DEFLATED)


def doubled(path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr(largest(records(path)), b"")


def absent(path):
    found = records(path)
    del found[largest(found)]
    written(path, found)


def foreign_order(path):
    found = records(path)
    name = next(name for name in found if name.endswith("byteorder"))
    written(path, {**found, name: b"big"})


def overlapping(path):
    """The directory gives two records the same place."""
    data = bytearray(path.read_bytes())
    found = records(path)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(largest(found)).header_offset
    begin = data.index(b"PK\1\2")
    while data[begin : begin + 4] == b"PK\1\2":
        size, length = struct.unpack_from("<I", data, begin + 24)[0], data[begin + 28]
        if size and b"/data/" in data[begin + 46 : begin + 46 + length]:
            data[begin + 16 : begin + 28] = struct.pack("<3I", 0, 2**30, 2**30)
            struct.pack_into("<I", data, begin + 42, place)
        begin += 46 + sum(struct.unpack_from("<3H", data, begin + 28))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flipped, "the checksum of"),
        (short, "its tensors"),
        (packed, "compressed"),
        (doubled, "two records"),
        (absent, "damaged"),
        (foreign_order, "byte order"),
        (overlapping, "overlap"),
    ],
)
def test_a_record_that_is_not_what_was_written_is_refused(change, said, tmp_path, weights):
    path = tmp_path / "a.pt"
    torch.save(weights, path)
    load(path)
    change(path)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_another_tool_packed_without_compressing_is_read(tmp_path, weights):
    path = tmp_path / "a.pt"
    torch.save(weights, path)
    written(path, records(path))  # its records do not begin at multiples of 64
    found = load(path)
    assert all(torch.equal(found.weights[key], it) for key, it in weights.items())
