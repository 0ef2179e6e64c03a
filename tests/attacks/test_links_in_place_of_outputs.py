"""A link in the place of an output is never followed, and a pipe or device never replaced."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import draw
from matplotlib.figure import Figure

from gatepruner import save
from gatepruner.cli.configuration import write_configuration
from gatepruner.cli.keeping import write_epochs
from gatepruner.compression.folder import Folder
from gatepruner.errors import CheckpointError
from gatepruner.files.storage import save_state, write_tensors
from gatepruner.report.style import save_figure

NET = draw("residual-fc6,width=8")


def folder_of(path):
    folder = Folder(path.parent, {})
    folder.write()


WRITERS = {
    "checkpoint": ("x.pt", lambda path: save(NET, path, force=True)),
    "export": ("x.safetensors", lambda path: write_tensors(NET.weights, path, force=True)),
    "state": ("x.pt.state", lambda path: save_state({"identity": {}}, path)),
    "history": ("x.pt.history.jsonl", lambda path: write_epochs([{"epoch": 1}], path)),
    "figure": ("x.png", lambda path: save_figure(Figure(), path.with_suffix(""))),
    "drawing": ("x.svg", lambda path: save_figure(Figure(), path.with_suffix(""))),
    "steps": ("steps.json", folder_of),
    "options": (
        "config.yaml",
        lambda path: write_configuration({"command": "sweep"}, path.parent),
    ),
}


@pytest.mark.parametrize("there", ["file", "nothing"])
@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_a_link_is_replaced_and_its_target_stays(name, write, there, tmp_path):
    victim, output = tmp_path / "victim", tmp_path / "out"
    output.mkdir()
    if there == "file":
        victim.write_text("mine")
    (output / name).symlink_to(victim)
    write(output / name)
    assert not (output / name).is_symlink()
    assert (output / name).stat().st_size
    assert (victim.read_text() == "mine") if there == "file" else not victim.exists()


@pytest.mark.parametrize("there", ["file", "nothing"])
def test_without_force_a_link_is_refused(there, tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "x.pt"
    if there == "file":
        victim.write_text("mine")
    link.symlink_to(victim)
    with pytest.raises(CheckpointError, match=r"x\.pt is a link: .*force=True"):
        save(NET, link)
    assert link.is_symlink()
    assert victim.exists() == (there == "file")


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_is_refused_with_force_too(force, tmp_path):
    pipe = tmp_path / "x.pt"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match=r"x\.pt is a device or a pipe"):
        save(NET, pipe, force=force)
    assert pipe.is_fifo()


def test_the_command_line_refuses_a_dangling_link_and_a_pipe(run, tmp_path):
    whole = save(NET, tmp_path / "whole.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.pt")
    for name, said in (("link", "is a link"), ("pipe", "is a device or a pipe")):
        told = run("export", whole, "--to", "safetensors", "-o", tmp_path / f"{name}.pt")
        assert told.code == 1
        assert f"{name}.pt {said}" in told.err
    assert not (tmp_path / "nowhere").exists()


def test_what_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    path, kept = tmp_path / "x.pt", torch.save

    def slow(content, file):
        kept(content, file)
        path.write_text("another program's")

    monkeypatch.setattr(torch, "save", slow)
    with pytest.raises(CheckpointError, match="already exists"):
        save(NET, path)
    assert path.read_text() == "another program's"
    assert [one.name for one in tmp_path.iterdir()] == ["x.pt"]
