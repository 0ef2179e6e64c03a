"""Files of others: which of their tensors are the weights, and what is said about the rest."""

from __future__ import annotations

import argparse

import pytest
import torch
from conftest import draw
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import resnet18

from gatepruner.errors import ArchitectureError, CheckpointError
from gatepruner.files.checkpoints import load
from gatepruner.networks.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def resnet8():
    return draw("resnet8")


@pytest.fixture(scope="module")
def other():
    return draw("resnet8", seed=5)


def saved(path, content):
    torch.save(content, path)
    return path


def prefixed(prefix, state):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def same(found: Checkpoint, expected: Checkpoint) -> bool:
    assert found.weights.keys() == expected.weights.keys()
    return all(torch.equal(found.weights[key], it) for key, it in expected.weights.items())


PLACES = [
    *("net", "model_state_dict", "weights", "generator", "checkpoint.model", "a.b.c"),
    *("model.state_dict", "params.encoder"),
]


@pytest.mark.parametrize("arch", [None, "resnet8"])
@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_they_lie(place, arch, resnet8, tmp_path):
    content = dict(resnet8.weights)
    for key in reversed(place.split(".")):
        content = {"lr": torch.tensor(0.1), "epoch": 3, key: content, "ema": {"decay": 0.9}}
    assert same(load(saved(tmp_path / "net.pt", content), arch=arch), resnet8)


PREFIXES = [
    *("backbone.", "encoder.", "model.backbone.", "module.model.", "_orig_mod.module.net."),
    *("a.b.c.d.", "module.module._orig_mod.student."),
]


@pytest.mark.parametrize("arch", [None, "resnet8"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_found_by_what_fits(prefix, arch, resnet8, tmp_path):
    path = saved(tmp_path / "net.pt", {"state_dict": prefixed(prefix, resnet8.weights)})
    assert same(load(path, arch=arch), resnet8)


def test_names_of_wrappers_within_keys_are_no_part_of_them(resnet8, tmp_path):
    state = {
        key.replace("layer2.", "layer2._orig_mod.").replace(".0.", ".module.0."): tensor
        for key, tensor in resnet8.weights.items()
    }
    assert "layer2._orig_mod.module.0.conv1.weight" in state
    assert same(load(saved(tmp_path / "net.pt", state)), resnet8)


BESIDE = {
    "a loss": {"loss.weight": torch.ones(10)},
    "a loss with parameters": {"criterion.log_vars": torch.ones(2)},
    "a profiler's counts": {
        "total_ops": torch.ones(1),
        "layer1.0.conv1.total_params": torch.ones(1),
    },
    "a head of another task": {
        "rotation.weight": torch.ones(4, 64),
        "rotation.bias": torch.ones(4),
    },
    "a head of two layers": {
        "projector.0.weight": torch.ones(128, 64),
        "projector.2.weight": torch.ones(32, 128),
    },
}


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE.keys())
def test_what_the_network_does_not_use_is_named_and_left_out(beside, prefix, resnet8, tmp_path):
    state = {**prefixed(prefix, resnet8.weights), **beside}
    found = load(saved(tmp_path / "net.pt", {"state_dict": state}))
    assert same(found, resnet8)
    (remark,) = (it for it in found.notes["remarks"] if it.startswith("left out"))
    assert all(key in remark for key in beside)


MISSING = {
    "a loss, but a weight is missing": lambda it: {
        **{key: it[key] for key in it if key != "bn1.bias"},
        "loss.weight": torch.ones(10),
    },
    "a layer as wide as the features": lambda it: {**it, "neck.weight": torch.ones(64, 64)},
    "a layer in a block": lambda it: {**it, "layer1.0.gain": torch.ones(1)},
    "a layer after the head": lambda it: {**it, "last.weight": torch.ones(5, 10)},
}


@pytest.mark.parametrize("arch", [None, "resnet8"])
@pytest.mark.parametrize("change", MISSING.values(), ids=MISSING.keys())
def test_what_may_belong_to_the_network_is_not_left_out(change, arch, resnet8, tmp_path):
    path = saved(tmp_path / "net.pt", change(resnet8.weights))
    with pytest.raises((ArchitectureError, CheckpointError), match=r"recognise|does not fit"):
        load(path, arch=arch)


# ----------------------------------------------------------------------- several sets of weights


AVERAGES = {
    "timm": lambda one, two: {"state_dict": one, "state_dict_ema": two},
    "torchvision": lambda one, two: {
        "model": one,
        "model_ema": {**prefixed("module.", two), "n_averaged": torch.tensor(9)},
    },
    "Lightning": lambda one, two: {
        "state_dict": {**prefixed("model.", one), **prefixed("ema_model.", two)}
    },
    "at the top level": lambda one, two: {**one, "ema": two},
}


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES.keys())
def test_averaged_weights_are_taken_which_is_said_and_can_be_chosen(make, resnet8, other, tmp_path):
    path = saved(tmp_path / "net.pt", make(dict(resnet8.weights), dict(other.weights)))
    found = load(path)
    assert same(found, other)
    (remark,) = (it for it in found.notes["remarks"] if it.startswith("took"))
    averaged, _, plain = remark.removeprefix("took the averaged weights at ").partition(", not at ")
    assert found.notes["weights"] == averaged
    assert "ema" in averaged
    chosen = load(path, weights="" if plain == "the top level" else plain)
    assert same(chosen, resnet8)
    assert same(load(path, weights=averaged), other)
    with pytest.raises(CheckpointError, match=rf"no weights at 'none' .*{averaged}.*pass weights="):
        load(path, weights="none")


def test_command_line_says_and_chooses(resnet8, other, tmp_path, run):
    path = saved(tmp_path / "net.pt", AVERAGES["timm"](dict(resnet8.weights), dict(other.weights)))
    done = run("inspect", path, "--json")
    assert done.document["notes"]["weights"] == "state_dict_ema"
    assert "took the averaged weights at state_dict_ema, not at state_dict" in done.err
    done = run("inspect", path, "--json", "--weights", "state_dict")
    assert done.document["notes"]["weights"] == "state_dict"
    done = run("inspect", path, "--weights", "none")
    assert done.code != 0
    assert "pass --weights" in done.err


def test_average_of_torch_is_taken_from_its_own_module(tmp_path):
    module = resnet18(num_classes=3)
    average = AveragedModel(module)
    with torch.no_grad():
        module.fc.bias.add_(1)
    average.update_parameters(module)
    with torch.no_grad():
        module.fc.bias.add_(1)
    average.update_parameters(module)
    torch.save({"net": module.state_dict(), "ema_model": average}, tmp_path / "net.pt")
    found = load(tmp_path / "net.pt")
    assert torch.equal(found.weights["fc.bias"], average.module.fc.bias)
    assert not torch.equal(found.weights["fc.bias"], module.fc.bias)


def test_several_networks_of_which_none_is_preferred_are_refused(resnet8, other, tmp_path):
    content = {"student": dict(resnet8.weights), "teacher": dict(other.weights)}
    path = saved(tmp_path / "net.pt", content)
    with pytest.raises(CheckpointError, match="several networks, at student, teacher: choose one"):
        load(path)
    assert same(load(path, weights="teacher"), other)


# ------------------------------------------------------------------------------ what weights are


def changed(state, key, change):
    return {**state, key: change(state[key])}


def with_value(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[1] = value
        return tensor

    return change


UNUSABLE = {
    "nan": (with_value(float("nan")), "nan"),
    "infinite": (with_value(float("inf")), "infinite"),
    "minus infinite": (with_value(-float("inf")), "infinite"),
    "sparse": (lambda it: it.to_sparse(), "sparse"),
    "complex": (lambda it: it.to(torch.complex64), "complex"),
    "meta": (lambda it: it.to("meta"), r"meta \(without values\)"),
    "quantised": (
        lambda it: torch.quantize_per_tensor(it, 0.1, 0, torch.qint8),
        "quantised",
    ),
    "float8": (lambda it: it.to(torch.float8_e4m3fn), "of 8 bits"),
    "whole numbers": (lambda it: it.to(torch.int8), "of int8"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", [None, "resnet8"])
@pytest.mark.parametrize(("change", "said"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_weights_that_cannot_be_used_are_refused_by_name(change, said, arch, resnet8, tmp_path):
    state = changed(dict(resnet8.weights), "layer2.0.conv1.weight", change)
    path = saved(tmp_path / "net.pt", state)
    with pytest.raises(CheckpointError, match=rf"are {said}: layer2\.0\.conv1\.weight") as caught:
        load(path, arch=arch)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_used_may_be_anything(resnet8, tmp_path):
    nan = torch.full((3,), float("nan"))
    content = {"model": dict(resnet8.weights), "optimizer": {"state": {0: {"exp_avg": nan}}}}
    assert same(load(saved(tmp_path / "net.pt", content)), resnet8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mixed", [False, True])
def test_other_precisions_are_cast_which_is_said(dtype, mixed, resnet8, tmp_path):
    state = {
        key: it.to(dtype) if it.is_floating_point() and not (mixed and "bn" in key) else it
        for key, it in resnet8.weights.items()
    }
    found = load(saved(tmp_path / "net.pt", state))
    assert {it.dtype for it in found.weights.values()} == {torch.float32, torch.int64}
    for key, tensor in state.items():
        assert torch.equal(found.weights[key], tensor.to(found.weights[key].dtype))
    count = sum(it.dtype == dtype for it in state.values())
    name = str(dtype).removeprefix("torch.")
    assert f"{count} weights were cast from {name} to float32" in found.notes["remarks"]


def test_module_of_the_callers_reads_a_file_with_classes(tmp_path):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), Residual(4), nn.Flatten(), nn.Linear(64, 2)
    )
    content = {"args": argparse.Namespace(lr=1), "net": module, "loss.weight": torch.ones(2)}
    path = saved(tmp_path / "net.pt", content)
    found = load(path, module=module, input_shape=(3, 4, 4))
    images = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(found.build()(images), module.eval()(images))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)
