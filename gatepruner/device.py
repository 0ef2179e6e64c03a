"""The device to compute on, and how to compute there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from gatepruner.errors import DeviceError


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else MPS, else the CPU.

    Raises:
        DeviceError: the machine has no such device.
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there[:0] = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name == "auto":
        return torch.device(there[0])
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in there:
        raise DeviceError(f"there is no device {name!r} here: this machine has {', '.join(there)}")
    return torch.device(wanted)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on the device, on CUDA with its channels last, as its convolutions like it."""
    if device.type == "cuda":
        return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return module.to(device)


def precision(device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast where the device gains from it."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()
