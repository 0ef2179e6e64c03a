"""The embedded network and images show the main job, at no visible loss."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from gatepruner.demo import demo_checkpoint, demo_images
from gatepruner.files.checkpoints import load
from gatepruner.images.images import Images
from gatepruner.measuring.accuracy import accuracy
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, remove
from gatepruner.report.files import FILES

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def whole():
    return demo_checkpoint()


@pytest.fixture(scope="module")
def images():
    return demo_images()


def test_the_images_are_two_thousand_of_mnists(images):
    assert images.pixels.shape == (2000, 1, 28, 28)
    assert images.pixels.dtype == torch.uint8
    assert images.classes == tuple("0123456789")
    assert torch.bincount(images.labels, minlength=10).min() > 150  # all ten digits
    edges = images.pixels[:, 0, (0, -1)]  # digits are in the middle: nothing is cut at the seams
    assert edges.float().mean() < 1
    assert images.pixels[:, 0, 10:18, 10:18].float().mean() > 50


@pytest.fixture(scope="module")
def official() -> Images:
    """The whole test set of MNIST, of ../shared/data."""
    packed = SHARED / "mnist" / "t10k-images-idx3-ubyte.gz"
    if not packed.exists():
        pytest.skip(f"there is no {packed}")
    raw = bytearray(gzip.decompress(packed.read_bytes())[16:])
    digits = gzip.decompress(packed.with_name("t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    pixels = torch.frombuffer(raw, dtype=torch.uint8).view(-1, 1, 28, 28)
    return Images(torch.tensor(list(digits)), tuple("0123456789"), (1, 28, 28), "MNIST", pixels)


def pairs(images: Images) -> set[tuple[bytes, int]]:
    both = zip(images.pixels.numpy(), images.labels.tolist(), strict=True)
    return {(pixels.tobytes(), label) for pixels, label in both}


def test_the_images_are_different_ones_of_mnists_test_set(images, official):
    assert len(pairs(images)) == 2000
    assert pairs(images) <= pairs(official)


def test_the_network_tells_all_of_mnist_apart_as_well_as_the_embedded_part(whole, official):
    assert accuracy(whole, official, batch_size=1000).accuracy > 0.97
    small = remove(whole, rank(whole).first(10))
    assert accuracy(small, official, batch_size=1000).accuracy > 0.97


def test_the_network_is_the_one_of_the_paper(whole):
    assert str(whole.network) == "gated-residual-fc100"
    assert len(whole.network.blocks) == 50
    assert len(whole.gates) == 50
    assert whole.weights["stem.weight"].shape == (50, 784)


def test_the_network_tells_digits_apart_and_ten_blocks_can_go(whole, images):
    before = accuracy(whole, images, batch_size=500)
    assert before.accuracy > 0.96  # 97.6 % of the whole test set
    small = fold_gates(remove(whole, rank(whole).first(10)))
    after = accuracy(small, images, batch_size=500)
    assert len(small.network.blocks) == 40
    assert before.accuracy - after.accuracy <= 0.002
    last = remove(whole, rank(whole).names[-10:])
    assert accuracy(last, images, batch_size=500).accuracy < after.accuracy


def test_how_the_network_was_trained_is_recorded(whole):
    assert whole.notes["recipe"]["seed"] == 0
    assert whole.notes["history"][0]["images"] == 60000
    readme = (files("gatepruner.demo") / "README.md").read_text()
    assert "gatepruner train gated-residual-fc100" in readme
    assert f"--epochs {whole.notes['recipe']['epochs']}" in readme
    licence = (files("gatepruner.demo") / "LICENSE").read_text()
    assert "Creative Commons Attribution-ShareAlike 3.0" in licence


def test_the_embedded_files_are_small():
    folder = Path(str(files("gatepruner.demo")))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    assert {"network.safetensors", "images.png", "labels.txt", "LICENSE"} <= sizes.keys()
    assert sum(sizes.values()) < 3e6


def test_the_demo_command_does_the_whole_job(tmp_path, whole, images):
    run = subprocess.run(
        [sys.executable, "-m", "gatepruner", "demo", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as conftest does, and for the same reason
    )
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    folder = tmp_path / "gatepruner-demo"
    assert {file.name for file in folder.iterdir()} == {*FILES, "pruned.pt", "config.yaml"}
    small = load(tmp_path / document["output"])
    assert len(small.network.blocks) == 40
    assert small.network.edits.gated == ()
    assert document["removed"] == list(rank(whole).first(10))
    found = accuracy(small, images, batch_size=500).accuracy
    assert document["after"]["accuracy"] == found
    points = document["orders"][0]["runs"][0]
    curve = {point["removed"]: point["accuracy"] for point in points}
    assert curve[0] == accuracy(whole, images, batch_size=500).accuracy
    assert abs(curve[10] - found) <= 1e-3
    assert json.loads((folder / "report.json").read_text())["orders"] == document["orders"]
