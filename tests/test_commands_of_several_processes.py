"""Commands that torchrun has started several times: one document, one writer, one error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType

import pytest
from conftest import bright_images, drawn, write_folder
from several import ended, start

import gatepruner
from gatepruner import launching
from gatepruner.cli import main
from gatepruner.files.checkpoints import load, save
from gatepruner.files.storage import load_state
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network

SHAPE = (3, 8, 8)
NOTES = {"normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A network, 53 training images and 37 test images of its four classes."""
    root = tmp_path_factory.mktemp("several")
    network = Network.named("resnet8", num_classes=4, input_shape=SHAPE)
    weights = MappingProxyType(drawn(network.initial_weights(0), 0))
    save(Checkpoint(network, weights, NOTES), root / "it.safetensors")
    for split, count in (("train", 53), ("test", 37)):
        write_folder(root / "set", bright_images(count, SHAPE), split)
    return root


class Failing:
    """A run whose launcher stops this process when it asks whether it is the first to fail."""

    def first_to_fail(self) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return True


def test_an_error_is_told_though_a_launcher_stops_the_process(monkeypatch, capfd):
    monkeypatch.setattr(launching, "begin", Failing)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "TORCH_CPP_LOG_LEVEL": "FATAL"}.items():
        monkeypatch.setenv(name, value)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, getattr(sys, stream))  # to be as it was afterwards
    monkeypatch.setattr(sys, "argv", ["gatepruner", "evaluate", "no.pt", "--data", "pictures:."])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, signal.getsignal(signal.SIGTERM)) == (1, before)
    assert "error: there is no file no.pt" in capfd.readouterr().err


PATH = {**os.environ, "PYTHONPATH": str(Path(gatepruner.__file__).parents[1])}


def told(folder: Path, *words: str) -> dict:
    """The document of a command that runs in one process."""
    done = subprocess.run(
        [sys.executable, "-m", "gatepruner", *words, "--json"],
        cwd=folder,
        env=PATH,
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def test_torchrun_gives_one_document_equal_to_that_of_one_process(folder):
    words = ["evaluate", "it.safetensors", "--data", "imagefolder:set", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    several = subprocess.run(
        [*command, "-m", "gatepruner", *words, "--json"],
        cwd=folder,
        env=PATH,
        capture_output=True,
        check=False,
        text=True,
    )
    assert several.returncode == 0, several.stderr
    found, expected = json.loads(several.stdout), told(folder, *words)
    assert found.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-6)
    assert found == expected


def commands(folder: Path, count: int, *words: str) -> list[tuple[int, str, str]]:
    """What a command says in each of several processes."""
    return ended(start([["-m", "gatepruner", *words]] * count, cwd=folder))


def test_only_the_first_process_writes_and_talks(folder):
    data = ["--data", "imagefolder:set", "--batch-size", "12", "--device", "cpu"]
    few = ["--gate-warmup", "1", "--gate-steps", "1", "--epochs", "0"]
    words = ["compress", "it.safetensors", *data, *few, "--drop", "1", "-o", "small.pt"]
    (code, out, err), other = commands(folder, 2, *words)
    assert (code, other) == (0, (0, "", "")), err
    assert out.count("wrote small.pt") == 1
    assert len(load(folder / "small.pt").network.removable) == 2
    assert (folder / "small-compress" / "report.md").exists()
    refused = commands(folder, 2, *words)
    assert [code for code, _, _ in refused] == [1, 1]
    assert sorted(bool(err) for _, _, err in refused) == [False, True]


def test_what_processes_do_not_share_the_first_one_does_alone(folder):
    (code, out, _), other = commands(folder, 2, "inspect", "it.safetensors")
    assert (code, other) == (0, (0, "", ""))
    assert "resnet8" in out


def test_the_death_of_one_ends_all_soon_with_one_error_and_leaves_the_state(folder):
    data = ["--data", "imagefolder:set", "--batch-size", "12", "--device", "cpu", "--hold-out", "0"]
    words = ["gate", "it.safetensors", *data, "--warmup", "9999", "-o", "gated.pt"]
    both = start([["-m", "gatepruner", *words]] * 2, cwd=folder)
    state = folder / "gated.pt.state"
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # by then it learns
    both[1].send_signal(signal.SIGKILL)
    died = time.monotonic()
    (code, out, err), (killed, _, _) = ended(both)
    assert time.monotonic() - died < 30
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "wrote" not in out
    assert err.count("error: another process of this run has ended") == 1
    assert "Traceback" not in err
    assert sorted(os.listdir(folder)).count("gated.pt") == 0
    assert load_state(state)["done"] >= 0
