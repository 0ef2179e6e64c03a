"""Pruning a file whose weights stay in it until they are written, one by one."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import GATED, draw, fingerprint
from safetensors.torch import save_file

import gatepruner
from gatepruner import load, save
from gatepruner.errors import GatePrunerError
from gatepruner.networks.deferred import Deferred, changed
from gatepruner.networks.path import Path as LearnedPath
from gatepruner.networks.path import Removal
from gatepruner.pruning.surgery import fold_gates, follow, narrow, remove

SUFFIXES = (".pt", ".safetensors")
SHAPES = {"resnet": (3, 8, 8), "preresnet": (3, 8, 8), "wrn": (3, 8, 8)}


def unread() -> torch.Tensor:
    raise AssertionError("it was read")


def test_a_deferred_tensor_tells_its_shape_and_type_without_being_read():
    tensor = Deferred.of(unread, (2, 3), torch.float16)
    like = torch.empty(2, 3, dtype=torch.float16)
    assert (tensor.shape, tensor.dtype, tensor.ndim) == (like.shape, like.dtype, like.ndim)
    assert (tensor.nbytes, tensor.element_size(), tensor.numel()) == (12, 2, 6)
    assert (len(tensor), tensor.size(1), tensor.dim(), tensor.stride()) == (2, 3, 2, (3, 1))
    assert tensor.is_floating_point()
    assert not tensor.is_complex()


def test_whatever_is_computed_with_a_deferred_tensor_is_computed_with_its_values():
    values = torch.randn(3, 4)
    tensor = Deferred.of(values.clone, values.shape, values.dtype)
    results = {
        "sum": (tensor + 1, values + 1),
        "stacked": (torch.stack([tensor, values]), torch.stack([values, values])),
        "moved": (tensor.to(device="cpu", dtype=torch.float64), values.double()),
        "copied": (copy.deepcopy(tensor), values),
        "array": (torch.from_numpy(tensor.numpy()), values),
        "parts": (torch.cat(torch.split(tensor, 2)), values),
    }
    for name, (result, expected) in results.items():
        assert type(result) is torch.Tensor, name
        assert torch.equal(result, expected), name
    assert float(Deferred.of(lambda: torch.tensor(2.5), (), torch.float32)) == 2.5
    assert not tensor.is_meta
    assert tensor.device.type == "cpu"


def test_a_change_is_made_when_a_tensor_is_read_and_leaves_another_as_it_is():
    values = torch.randn(3, 4)
    half = changed(values, lambda tensor: tensor.mul_(0.5))
    later = changed(Deferred.of(unread, (3, 4), torch.float32), lambda it: it[:1].half(), (1, 4))
    assert later.shape == (1, 4)
    assert torch.equal(half, values / 2)
    assert not torch.equal(half, values)


def learned(name: str) -> gatepruner.Checkpoint:
    """A network with a path of two blocks."""
    whole = draw(name, input_shape=SHAPES.get(name.split("-")[1].rstrip("0123456789")))
    removals, left = [], whole.network
    for index, block in enumerate(left.removable[:2]):
        left = left.without([block])
        weights = {left.gate_key(one): torch.tensor(0.5 + index) for one in left.edits.gated}
        removals.append(Removal(block, 0.25, 0.5, 0.5, index, weights))
    return replace(whole, path=LearnedPath(tuple(removals)))


WAYS = {
    "nothing": lambda whole: whole,
    "folded": fold_gates,
    "removed": lambda whole: remove(whole, whole.network.removable[1:2]),
    "along the path": lambda whole: fold_gates(follow(whole, whole.path.blocks)),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", [*GATED, "gated-torchvision:mobilenet_v3_small"])
def test_what_is_written_tensor_by_tensor_is_what_is_written_from_memory(name, suffix, tmp_path):
    source = save(learned(name), tmp_path / f"whole{suffix}")
    later, now = load(source, deferred=True), load(source)
    assert all(isinstance(one, Deferred) for one in later.weights.values())
    assert fingerprint(later) == fingerprint(now)
    assert later.fingerprint == now.fingerprint
    for way, change in WAYS.items():
        for end in SUFFIXES:
            expected = save(change(now), tmp_path / f"now{end}", force=True)
            written = save(change(later), tmp_path / f"later{end}", force=True)
            assert written.read_bytes() == expected.read_bytes(), (way, end)


def test_channels_are_cut_out_when_weights_are_written(tmp_path):
    pytest.importorskip("torch_pruning")
    source = save(draw("resnet14", input_shape=(3, 8, 8)), tmp_path / "whole.pt")
    files = []
    for deferred in (False, True):
        small = narrow(load(source, deferred=deferred), ["layer1.0.conv1[0-7]"])
        assert deferred == all(isinstance(one, Deferred) for one in small.weights.values())
        files.append(save(small, tmp_path / f"{deferred}.pt").read_bytes())
    assert files[0] == files[1]


def test_the_command_writes_what_the_library_makes_in_memory(run, tmp_path):
    source = save(learned("gated-resnet14"), tmp_path / "whole.safetensors")
    whole = load(source)
    small = fold_gates(gatepruner.prune(whole, gatepruner.rank(whole), 2))
    for suffix in SUFFIXES:
        output = tmp_path / f"small{suffix}"
        assert run("prune", source, "--drop", 2, "-o", output).code == 0
        assert fingerprint(load(output)) == fingerprint(small)


def test_storages_that_tensors_share_or_have_in_another_order(tmp_path):
    shared = torch.randn(64, 64, 3, 3)
    state = {
        "last": torch.randn(3, 5, 4).to(memory_format=torch.contiguous_format).permute(2, 0, 1),
        "part": shared[1:3, ::2],
        "whole": shared,
        "tied": shared,
        "empty": torch.empty(0, 4),
        "half": torch.randn(3).bfloat16(),
        "long": torch.tensor(7),
    }
    torch.save(state, tmp_path / "state.pt")
    from gatepruner.files.storage import read_file, write_tensors

    read = read_file(tmp_path / "state.pt", deferred=True)[0]
    assert all(isinstance(one, Deferred) for one in read.values())
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())
    written = write_tensors(read, tmp_path / "later.pt")
    again = torch.load(written, weights_only=True)
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    assert again["tied"].data_ptr() == again["whole"].data_ptr()


@pytest.mark.parametrize("cast", [False, True])
def test_shards_are_left_where_they_are(cast, tmp_path):
    whole = draw("resnet14", input_shape=(3, 8, 8))
    keys, places = list(whole.weights), {}
    for index in range(3):
        shard = {key: whole.weights[key] for key in keys[index::3]}
        if cast:
            shard = {k: v.half() if v.is_floating_point() else v for k, v in shard.items()}
        save_file(shard, tmp_path / f"{index}.safetensors")
        places |= dict.fromkeys(shard, f"{index}.safetensors")
    index_file = tmp_path / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": places}))
    later, now = load(index_file, deferred=True), load(index_file)
    assert all(isinstance(one, Deferred) for one in later.weights.values())
    assert later.notes == now.notes
    files = [
        save(remove(one, ["layer1.1"]), tmp_path / f"{number}.pt").read_bytes()
        for number, one in enumerate((later, now))
    ]
    assert files[0] == files[1]


BAD = {
    "not a number": lambda weight: weight.index_fill(0, torch.tensor([3]), float("nan")),
    "infinite": lambda weight: weight.index_fill(0, torch.tensor([3]), float("inf")),
    "of 8 bits": lambda weight: weight.to(torch.float8_e5m2),
    "complex": lambda weight: weight.to(torch.complex64),
    "whole numbers": lambda weight: weight.int(),
    "another shape": lambda weight: weight[:-1],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("own", [True, False], ids=["our own", "of others"])
@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_used_is_refused_in_the_same_words(bad, own, suffix, tmp_path):
    if bad == "complex" and suffix == ".safetensors":
        pytest.skip("safetensors before 0.6 has no complex numbers")
    whole = draw("resnet8")
    weights = {**whole.weights, "conv1.weight": BAD[bad](whole.weights["conv1.weight"])}
    path = tmp_path / f"bad{suffix}"
    if own:
        save(replace(whole, weights=weights), path)
    else:
        (save_file if suffix == ".safetensors" else torch.save)(weights, path)
    said = []
    for deferred in (False, True):
        with pytest.raises(GatePrunerError) as caught:
            load(path, deferred=deferred)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "conv1.weight" in said[0] or "resnet8 comes closest" in said[0]


# Prunes a small file, so that everything is imported, and then a large one. Prints for each suffix
# how much more memory the large one has taken, and what reading it at once ends in where a quarter
# of its size is all the memory that is left.
MEASURE = """
import resource, sys
room = int(sys.argv[1])
from gatepruner.cli import main
from gatepruner.errors import CheckpointError
from gatepruner.files.checkpoints import load

def status(name):
    with open("/proc/self/status") as file:
        return int(next(it for it in file if it.startswith(name)).split()[1]) * 1024

def prune(path, output):
    sys.argv = ["gatepruner", "prune", path, "--drop", "1", "--quiet", "-o", output]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code, stopped

unlimited = resource.getrlimit(resource.RLIMIT_DATA)
for suffix in (".pt", ".safetensors"):
    prune("small" + suffix, "smaller" + suffix)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest resident memory begins at what it is now
    before = status("VmRSS")
    prune("large" + suffix, "smaller" + suffix + suffix)
    taken = status("VmHWM") - before
    limit = status("VmData") + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, unlimited[1]))
    prune("large" + suffix, "again" + suffix)
    try:
        load("large" + suffix)
        ended = "read"
    except CheckpointError as error:
        ended = str(error)
    resource.setrlimit(resource.RLIMIT_DATA, unlimited)
    print(taken, ended, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which counts memory")
def test_memory_is_that_of_the_largest_tensor(tmp_path):
    side = 1536
    for name, width in (("small", 8), ("large", side)):
        for suffix in SUFFIXES:
            save(draw(f"gated-residual-fc10,width={width}"), tmp_path / f"{name}{suffix}")
    largest, size = side**2 * 4, (tmp_path / "large.pt").stat().st_size
    assert size > 8 * largest
    command = [sys.executable, "-c", MEASURE, str(size // 4)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert told.returncode == 0, told.stderr
    for line in told.stderr.splitlines()[-2:]:
        taken, ended = line.split(maxsplit=1)
        assert int(taken) < 1.1 * largest + 2**21  # what else there is in a larger network
        assert "no memory is left" in ended  # so the limit holds, under which pruning went well
