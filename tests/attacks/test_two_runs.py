"""Of two runs on one output the second is told at its start; a lock ends with its process."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from conftest import bright_images, draw, files_in, write_folder

from gatepruner import save
from gatepruner.errors import CheckpointError
from gatepruner.files import locks
from gatepruner.files.locks import held, held_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes to fork")
SHAPE = (3, 8, 8)


@contextlib.contextmanager
def elsewhere(lock, output):
    """Another process that has an output; killed at the end."""
    reading, began = os.pipe()
    child = os.fork()
    if not child:
        try:
            with lock(output):
                os.write(began, b".")
                signal.pause()
        finally:
            os._exit(1)
    os.read(reading, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(began)


@pytest.fixture
def inputs(tmp_path):
    save(draw("gated-resnet8", input_shape=SHAPE), tmp_path / "gated.pt")
    write_folder(tmp_path / "images", bright_images(40, SHAPE), "train")
    return tmp_path


DATA = ("--data", "imagefolder:images", "--device", "cpu")
CALLS = {
    "prune": ("prune", "gated.pt", "--drop", "1", "-o", "out.pt"),
    "export": ("export", "gated.pt", "--to", "safetensors", "-o", "out.safetensors"),
    "recalibrate": ("recalibrate", "gated.pt", *DATA, "-o", "out.pt"),
    "gate": ("gate", "gated.pt", *DATA, "-o", "out.pt"),
    "train": ("train", "gated-resnet8", *DATA, "-o", "out.pt"),
    "finetune": ("finetune", "gated.pt", *DATA, "-o", "out.pt"),
    "compress": ("compress", "gated.pt", *DATA, "--drop", "1", "-o", "out.pt"),
    "sweep": ("sweep", "gated.pt", *DATA, "-o", "out"),
    "demo": ("demo", "-o", "out"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_second_run_is_told(call, inputs, run, monkeypatch):
    monkeypatch.chdir(inputs)
    monkeypatch.setattr(locks, "PATIENCE", 20.0)
    output = inputs / call[-1]
    with elsewhere(held if output.suffix else held_folder, output) as process:
        before, start = files_in(inputs), time.monotonic()
        told = run(*call, "--force")
        assert time.monotonic() - start < locks.PATIENCE
        assert told.code == 1
        assert f"another run is writing {call[-1]} (process {process})" in told.err
        assert files_in(inputs) == before


def test_a_crash_leaves_no_lock(tmp_path):
    with elsewhere(held, tmp_path / "x.pt"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".x.pt.gatepruner-lock"]
    with held(tmp_path / "x.pt"):
        pass
    assert not list(tmp_path.iterdir())


def test_the_processes_of_a_killed_run_may_take_their_time_to_end(tmp_path):
    reading, began = os.pipe()
    first = os.fork()
    if not first:
        try:
            with held(tmp_path / "x.pt"):
                if not os.fork():  # as one that reads images, and ends soon after its parent
                    time.sleep(0.5)
                    os._exit(0)
                os.write(began, b".")
                signal.pause()
        finally:
            os._exit(1)
    os.read(reading, 1)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    os.close(reading)
    os.close(began)
    start = time.monotonic()
    with held(tmp_path / "x.pt"):
        assert time.monotonic() - start > 0.1, "nobody held the lock, so this shows nothing"


def test_where_there_are_no_locks_runs_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "lock", lambda descriptor: None)
    with held(tmp_path / "x.pt"), held(tmp_path / "x.pt"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".x.pt.gatepruner-lock").symlink_to(victim)
    with pytest.raises(CheckpointError, match="cannot write"), held(tmp_path / "x.pt"):
        pass
    assert victim.read_text() == "mine"


def test_a_dry_run_is_in_nobodys_way(inputs, run, monkeypatch):
    monkeypatch.chdir(inputs)
    with elsewhere(held, inputs / "out.pt"):
        assert run(*CALLS["prune"], "--dry-run").code == 0
    assert run(*CALLS["prune"]).code == 0
    assert not list(inputs.glob(".*"))
