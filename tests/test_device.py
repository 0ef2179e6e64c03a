"""A device is there, or the message says which are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gatepruner.errors import DeviceError
from gatepruner.measuring.device import (
    laid_out,
    learns_channels_last,
    learns_fast,
    pick_device,
    place,
    precision,
)


@pytest.fixture
def machine(monkeypatch):
    """Makes torch find so many CUDA devices, and MPS or not."""

    def have(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "device"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "mps"),
        (2, True, "auto", "cuda:0"),
        (2, False, "cuda", "cuda:0"),
        (2, False, "cuda:1", "cuda:1"),
        (2, False, "cpu", "cpu"),
        (0, True, "mps", "mps"),
    ],
)
def test_the_device_is_the_best_or_the_named_one(machine, cuda, mps, name, device):
    machine(cuda, mps)
    assert str(pick_device(name)) == device


@pytest.mark.parametrize(
    ("cuda", "name", "there"),
    [
        (0, "cuda", "cpu"),
        (0, "cuda:0", "cpu"),
        (0, "mps", "cpu"),
        (2, "cuda:2", "cuda:0, cuda:1, cpu"),
        (2, "gpu", "cuda:0, cuda:1, cpu"),
        (0, "", "cpu"),
        (0, "meta", "cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine, cuda, name, there):
    machine(cuda)
    with pytest.raises(DeviceError, match=f"no device '{name}' here: this machine has {there}$"):
        pick_device(name)


def test_on_a_cpu_modules_stay_as_they_are_and_nothing_is_cast():
    module = nn.Conv2d(1, 2, 3)
    cpu = torch.device("cpu")
    assert place(module, cpu) is module
    with precision(cpu):
        assert not torch.is_autocast_enabled("cpu")
        assert module(torch.zeros(1, 1, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "bf16", "macs", "fast"),
    [
        ("cpu", True, 10**7 + 1, True),
        ("cpu", True, 10**7, False),
        ("cpu", True, 0, False),
        ("cpu", False, 10**10, False),
        ("cuda", False, 0, True),
        ("cuda:1", True, 10**10, True),
        ("mps", True, 10**10, False),
    ],
)
def test_a_device_learns_fast_where_bf16_gains(monkeypatch, device, bf16, macs, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    assert learns_fast(torch.device(device), macs) is fast
    assert learns_fast(torch.device(device), macs, "off") is False


def test_a_cpu_of_which_pytorch_cannot_tell_does_not_learn_fast(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert learns_fast(torch.device("cpu"), 10**10) is False


@pytest.mark.parametrize(("device", "last"), [("cpu", True), ("cuda:1", True), ("mps", False)])
def test_networks_learn_channels_last_where_that_is_faster(device, last):
    assert learns_channels_last(torch.device(device)) is last


def test_where_it_is_to_be_fast_a_cpu_computes_convolutions_in_bf16_too():
    cpu, images = torch.device("cpu"), torch.zeros(1, 3, 4, 4)
    module = place(nn.Conv2d(3, 2, 3), cpu, channels_last=True)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert laid_out(images, channels_last=True).is_contiguous(memory_format=torch.channels_last)
    assert laid_out(images, channels_last=False) is images
    with precision(cpu, fast=True):
        assert module(images).dtype == torch.bfloat16
    with precision(cpu, fast=False):
        assert module(images).dtype == torch.float32
    assert module.weight.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_convolutions_are_computed_in_bf16():
    device = pick_device("cuda")
    module = place(nn.Conv2d(1, 2, 3), device)
    with precision(device):
        assert module(torch.zeros(1, 1, 4, 4, device=device)).dtype == torch.bfloat16
