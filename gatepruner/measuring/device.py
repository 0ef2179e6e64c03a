"""The device to compute on, and how to compute there."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

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


def place(module: nn.Module, device: torch.device, fast: bool | None = None) -> nn.Module:
    """The module on the device; where it is to be `fast`, channels last, as convolutions like it.

    `fast` is by default so on CUDA alone: on a CPU, results then are the same on all machines.
    """
    if device.type == "cuda" if fast is None else fast:
        return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return module.to(device)


def laid_out(images: Tensor, fast: bool | None = None) -> Tensor:
    """Images as `place` lays out the module that they are for."""
    if images.device.type == "cuda" if fast is None else fast:
        return images.contiguous(memory_format=torch.channels_last)
    return images


def precision(device: torch.device, fast: bool | None = None) -> AbstractContextManager[object]:
    """bf16 autocast where it is to be `fast`."""
    if device.type == "cuda" if fast is None else fast:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def learns_fast(device: torch.device, macs: int) -> bool:
    """Whether a device gains from bf16 when it learns a network of so many MACs.

    A CPU does where it multiplies bf16 itself, unless there is more to cast than to multiply:
    1.7 times for a ResNet-56, a loss for layers of 50 units.
    """
    if device.type == "cpu":
        multiplies = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return macs > 10**7 and bool(multiplies())
    return device.type == "cuda"


def description(device: torch.device) -> str:
    """The hardware behind a device, as in `AMD EPYC, 2 threads` or `NVIDIA H100`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The model of the CPU."""
    info = Path("/proc/cpuinfo")  # `platform` does not know it on Linux
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
