"""What another program does to a file after it was read, or meanwhile, changes no weights."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from conftest import draw, fingerprint

from gatepruner import load, save
from gatepruner.errors import CheckpointError
from gatepruner.files import storage
from gatepruner.files.safetensors import read_safetensors, write_safetensors
from gatepruner.networks.deferred import Deferred

NET = draw("residual-fc6,width=64")
ATTACKS = {
    "rewritten": lambda path: path.write_bytes(b"\x7f" * path.stat().st_size),
    "cut": lambda path: os.truncate(path, 0),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_weights_stay_as_they_were_read(attack, suffix, tmp_path):
    path = save(NET, tmp_path / f"x{suffix}")
    read = load(path)
    attack(path)
    assert fingerprint(read) == fingerprint(NET)  # a mapped file would end this process, if cut
    saved = save(read, tmp_path / f"again{suffix}")
    assert fingerprint(load(saved)) == fingerprint(NET)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_change_while_it_is_read_is_told(attack, suffix, tmp_path, monkeypatch):
    path = save(NET, tmp_path / f"x{suffix}")
    name = "_read_safetensors" if suffix == ".safetensors" else "_read_torch"
    reading = getattr(storage, name)

    def read(*given, **options):
        content = reading(*given, **options)
        attack(path)
        return content

    monkeypatch.setattr(storage, name, read)
    with pytest.raises(CheckpointError, match=r"x\.\w+ was changed while it was read|cannot read"):
        load(path)


@pytest.mark.parametrize("end", [".pt", ".safetensors"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_change_before_deferred_weights_are_written_is_told(attack, suffix, end, tmp_path):
    path = save(NET, tmp_path / f"x{suffix}")
    read = load(path, deferred=True)
    attack(path)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"x\.\w+ was changed while it was read|cannot read"):
        save(read, tmp_path / f"out/y{end}")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_change_while_deferred_weights_are_written_is_told(suffix, tmp_path):
    path = save(NET, tmp_path / f"x{suffix}")
    read = load(path, deferred=True)
    key, late = max(read.weights.items())

    def rewritten():
        ATTACKS["rewritten"](path)
        return late.read()

    weights = {**read.weights, key: Deferred.of(rewritten, late.shape, late.dtype)}
    old = save(NET, tmp_path / f"old{suffix}").read_bytes()
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        save(replace(read, weights=weights), tmp_path / f"old{suffix}", force=True)
    assert (tmp_path / f"old{suffix}").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2


def test_deferred_weights_are_written_in_the_place_of_their_own_file(tmp_path):
    path = save(NET, tmp_path / "x.pt")
    save(load(path, deferred=True), path, force=True)
    assert fingerprint(load(path)) == fingerprint(NET)


TENSORS = {
    "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
    "a": torch.tensor(1.5),
    "half": torch.randn(3, 5).to(torch.bfloat16),
    "none": torch.empty(0, 4),
    "ä\n": torch.tensor([True, False, True]),
    "byte": torch.arange(7, dtype=torch.uint8),
}


@pytest.mark.parametrize("metadata", [None, {"gatepruner": 'text "ä"\n'}])
def test_safetensors_are_written_as_the_library_reads_them(metadata, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        write_safetensors(file, TENSORS, metadata)
    with safe_open(path, framework="pt") as checked:
        assert checked.metadata() == metadata
        assert set(checked.keys()) == set(TENSORS)
        for key, tensor in TENSORS.items():
            assert checked.get_tensor(key).dtype == tensor.dtype
            assert torch.equal(checked.get_tensor(key), tensor)


def test_safetensors_are_read_as_the_library_writes_them(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, {"key": "value"})
    tensors, metadata = read_safetensors(path)
    assert metadata == {"key": "value"}
    assert tensors.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert tensors[key].dtype == tensor.dtype
        assert torch.equal(tensors[key], tensor)
