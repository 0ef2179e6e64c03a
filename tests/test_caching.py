"""A cache of decoded pictures: what is read from it is what is decoded, and never a part of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bright_images, data_in, drawn, random_images, write_folder
from PIL import Image

from gatepruner.errors import DataError
from gatepruner.files.checkpoints import save
from gatepruner.images import caching, memory
from gatepruner.images.images import Images
from gatepruner.images.readers import load_images
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

SHAPE, COUNT = (3, 8, 8), 11


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "images", random_images(COUNT, SHAPE, classes=3))


@pytest.fixture
def decodings(monkeypatch) -> list[str]:
    """The files that were decoded."""
    files: list[str] = []

    def noting(file, shape, resize, decode=memory.decode):
        if isinstance(file, str):
            files.append(file)
        return decode(file, shape, resize)

    monkeypatch.setattr(memory, "decode", noting)
    return files


def read(folder: Path, **options) -> Images:
    return load_images(f"imagefolder:{folder}", SHAPE, **options)


def arrays(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.npy"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_is_read_from_a_cache_is_what_is_decoded(
    folder, tmp_path, decodings, monkeypatch, in_memory
):
    plain = read(folder)
    if not in_memory:
        monkeypatch.setattr(memory, "IN_MEMORY", 0)
    decodings.clear()
    for _ in range(2):
        kept = read(folder, cache=tmp_path / "cache")
        assert kept.in_memory == in_memory
        order = torch.tensor([9, 0, 4, 4, 10])
        ((pixels, labels),) = kept.batches(order, 8)
        assert torch.equal(pixels, plain.pixels[order])
        assert torch.equal(labels, plain.labels[order])
        assert len(decodings) == COUNT
    (file,) = arrays(tmp_path / "cache")
    assert np.array_equal(np.load(file), plain.pixels.numpy())  # as anybody would read it


def test_a_part_of_what_is_cached_is_read_into_memory_without_a_cache_of_its_own(
    folder, tmp_path, decodings, monkeypatch
):
    every = read(folder).pixels
    monkeypatch.setattr(memory, "IN_MEMORY", 5 * 3 * 8 * 8)
    large = read(folder, cache=tmp_path / "cache")
    decodings.clear()
    part = large.spread(4).kept()
    assert torch.equal(part.pixels, every[[0, 2, 5, 8]])
    assert decodings == []
    assert len(arrays(tmp_path / "cache")) == 1


def test_the_fingerprint_does_not_tell_where_images_are_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    assert read(folder, cache=tmp_path / "cache").fingerprint == read(folder).fingerprint


def touched(folder: Path) -> None:
    file = min(folder.rglob("*.png"))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def replaced(folder: Path) -> None:
    """Another picture of the same size and the same time, as archives and copies set it."""
    file = min(folder.rglob("*.png"))
    size, time = file.stat().st_size, file.stat().st_mtime_ns
    Image.new("RGB", SHAPE[1:], "red").save(file)
    file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    os.utime(file, ns=(time, time))


CHANGES = {
    "a file": (lambda folder: touched(folder), {}),
    "a file that looks the same": (lambda folder: replaced(folder), {}),
    "one file less": (lambda folder: min(folder.rglob("*.png")).unlink(), {}),
    "a limit": (lambda folder: None, {"limit": 5}),
    "a scaling": (lambda folder: None, {"resize": 9}),
}


@pytest.mark.parametrize(("change", "options"), CHANGES.values(), ids=CHANGES)
def test_other_pictures_or_another_preprocessing_have_another_cache(
    folder, tmp_path, change, options
):
    read(folder, cache=tmp_path / "cache")
    change(folder)
    found = read(folder, cache=tmp_path / "cache", **options)
    assert torch.equal(found.pixels, read(folder, **options).pixels)
    assert len(arrays(tmp_path / "cache")) == 2


def test_a_picture_that_cannot_be_decoded_leaves_no_cache(folder, tmp_path):
    max(folder.rglob("*.png")).write_bytes(b"none")
    with pytest.raises(DataError, match="cannot read the image"):
        read(folder, cache=tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"]


@pytest.mark.parametrize("cached", [True, False])
def test_all_pictures_that_cannot_be_decoded_are_told_at_once(
    folder, tmp_path, decodings, monkeypatch, cached
):
    files = sorted(folder.rglob("*.png"))
    for file in files[3:9:2]:
        file.write_bytes(b"none")
    options = {"cache": tmp_path / "cache"} if cached else {}
    with pytest.raises(DataError, match=r"^3 pictures cannot be used: cannot read") as caught:
        read(folder, **options)
    told = [file.name in str(caught.value) for file in files]
    assert told == [index in (3, 5, 7) for index in range(COUNT)]
    assert len(decodings) == COUNT
    assert not arrays(tmp_path / "cache")
    monkeypatch.setattr(memory, "MOST_TOLD", 2)
    with pytest.raises(DataError, match=r"^2 pictures at least cannot be used: cannot read"):
        read(folder, **options)


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-1], lambda whole: b"", lambda whole: b"x"]
)
def test_a_file_that_is_cut_short_is_written_again(folder, tmp_path, decodings, damage):
    first = read(folder, cache=tmp_path / "cache")
    (file,) = arrays(tmp_path / "cache")
    file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(read(folder, cache=tmp_path / "cache").pixels, first.pixels)
    assert len(decodings) == 2 * COUNT
    assert np.array_equal(np.load(file), first.pixels.numpy())


def test_a_file_that_is_cut_short_while_it_is_used_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "IN_MEMORY", 0)
    images = read(folder, cache=tmp_path / "cache")
    (file,) = arrays(tmp_path / "cache")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(DataError, match="was cut short while it was used: remove it"):
        list(images.batches(torch.tensor([COUNT - 1]), 1))


def test_a_folder_without_room_is_refused_before_anything_is_decoded(
    folder, tmp_path, decodings, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match=r"11 decoded pictures take .* choose another folder"):
        read(folder, cache=tmp_path / "cache")
    assert decodings == []


def test_a_folder_that_cannot_be_made_is_refused(folder, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot keep decoded pictures in .*file.cache"):
        read(folder, cache=tmp_path / "file" / "cache")


# A process that takes its time for each picture and notes it in a file.
SLOW = """
import sys, time
from gatepruner.images import memory
from gatepruner.images.readers import load_images
decode = memory.decode
def slow(*arguments):
    with open(sys.argv[3], "a") as log:
        log.write("x")
    time.sleep(0.1)
    return decode(*arguments)
memory.decode = slow
print(int(load_images("imagefolder:" + sys.argv[1], (3, 8, 8), cache=sys.argv[2]).pixels.sum()))
"""


def started(folder: Path, tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, folder, tmp_path / "cache", tmp_path / "log"]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)


def waited(processes: list[subprocess.Popen[str]]) -> Iterator[int]:
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        yield int(out)


def test_two_processes_decode_once(folder, tmp_path):
    expected = int(read(folder).pixels.sum())
    processes = [started(folder, tmp_path) for _ in range(2)]
    assert list(waited(processes)) == [expected, expected]
    assert len((tmp_path / "log").read_text()) == COUNT


def test_two_writers_without_locks_leave_one_complete_file(tmp_path):
    images = random_images(4, SHAPE).pixels
    cache = caching.Cache(tmp_path / "a.npy", len(images), SHAPE)

    def meanwhile() -> Iterator[torch.Tensor]:
        yield from images[:2]
        cache.write(iter(images))  # as a process of the same number on another machine
        yield from images[2:]

    cache.write(meanwhile())
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]
    assert np.array_equal(np.load(tmp_path / "a.npy"), images.numpy())


def test_what_a_killed_process_has_written_is_not_used(folder, tmp_path):
    process = started(folder, tmp_path)
    while not list((tmp_path / "cache").glob(".*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert arrays(tmp_path / "cache") == []
    assert torch.equal(read(folder, cache=tmp_path / "cache").pixels, read(folder).pixels)
    assert not list((tmp_path / "cache").glob(".*.part"))  # of nobody who is still there


def test_commands_decode_once(run, tmp_path, decodings):
    network = Network.named("resnet8", num_classes=4, input_shape=SHAPE)
    save(Checkpoint(network, drawn(network.initial_weights())), tmp_path / "whole.pt")
    write_folder(tmp_path / "images", bright_images(24, SHAPE))
    command = ("evaluate", tmp_path / "whole.pt", "--data", data_in(tmp_path), "--json")
    plain = run(*command, "--device", "cpu").document
    decodings.clear()
    for _ in range(2):
        told = run(*command, "--device", "cpu", "--cache", tmp_path / "cache").document
        assert told == plain
        assert len(decodings) == 24


def test_the_header_is_that_of_numpy(tmp_path):
    for images, shape in ((1, (1, 1, 1)), (123_456, (3, 224, 224))):
        cache = caching.Cache(tmp_path / "a.npy", images, shape)
        array = np.empty((2, *shape), np.uint8)
        with (tmp_path / "b.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {**np.lib.format.header_data_from_array_1_0(array), "shape": (images, *shape)}
            )
        written = (tmp_path / "b.npy").read_bytes()
        assert len(cache._header) % 64 == 0
        assert cache._header.rstrip() == written.rstrip()
