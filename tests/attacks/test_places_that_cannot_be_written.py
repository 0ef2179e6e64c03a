"""A folder that cannot be written is refused before the work begins."""

from __future__ import annotations

import subprocess

import pytest
from conftest import bright_images, draw, write_folder

from gatepruner import save
from gatepruner.learning import running
from gatepruner.networks.network import Network

SHAPE = (3, 8, 8)
DATA = ("--data", "imagefolder:images", "--device", "cpu")
CALLS = {
    "prune": ("prune", "gated.pt", "--drop", "1", "-o", "out/it.pt"),
    "gate": ("gate", "gated.pt", *DATA, "-o", "out/it.pt"),
    "train": ("train", "gated-resnet8", *DATA, "-o", "out/it.pt"),
    "compress": ("compress", "gated.pt", *DATA, "--drop", "1", "-o", "out/it.pt"),
    "sweep": ("sweep", "gated.pt", *DATA, "-o", "out/report"),
}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Inputs, and no work: a network that is built, or a run that begins, is an error."""
    save(draw("gated-resnet8", input_shape=SHAPE), tmp_path / "gated.pt")
    write_folder(tmp_path / "images", bright_images(40, SHAPE), "train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Network, "build", lambda self: pytest.fail("the work has begun"))
    monkeypatch.setattr(running, "carry_out", lambda *given, **other: pytest.fail("begun"))
    return tmp_path


@pytest.fixture
def read_only(inputs):
    """A folder on a disk that is read-only, for whom nothing else is."""
    (inputs / "out").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(inputs / "out")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a read-only disk needs the right to mount one, which this user lacks")
    yield inputs
    subprocess.run(["umount", str(inputs / "out")], check=True)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_read_only_disk(call, read_only, run):
    told = run(*call)
    assert told.code == 1
    assert "cannot write out/" in told.err
    assert "read-only" in told.err.lower()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_file_in_the_place_of_the_folder(call, inputs, run):
    (inputs / "out").write_text("mine")
    told = run(*call)
    assert told.code == 1
    assert "cannot write out/" in told.err
    assert (inputs / "out").read_text() == "mine"
