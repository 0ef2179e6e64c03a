"""The device to compute on, and the memory format and precision to use there."""

from __future__ import annotations

import platform
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from gatepruner import processes
from gatepruner.errors import DeviceError
from gatepruner.launching import local_rank


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """A device from its name; `"auto"` is CUDA if available, else MPS, else the CPU.

    Of several processes on a machine, each has a GPU of its own: `"auto"` and `"cuda"` are the GPU
    of its local rank.

    Raises:
        DeviceError: this machine has no device of that name.
    """
    if isinstance(device, torch.device):
        return device
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if device in ("auto", "cuda"):
            return _own_gpu()
    name = available[0] if device == "auto" else device
    if name not in available:
        raise DeviceError(
            f"there is no device {device!r} here: this machine has {', '.join(available)}"
        )
    return torch.device(name)


def _own_gpu() -> torch.device:
    """The GPU of this process: the first one, unless there are several processes."""
    if processes.count() == 1:
        return torch.device("cuda:0")
    gpus, own = torch.cuda.device_count(), local_rank()
    own = torch.cuda.current_device() if own is None else own
    if own >= gpus:
        raise DeviceError(
            f"there is no GPU for process {own} of this machine, which has {gpus}: start one "
            "process for each GPU, or choose a device for all, such as cpu"
        )
    return torch.device(f"cuda:{own}")


def place(module: nn.Module, device: torch.device, channels_last: bool | None = None) -> nn.Module:
    """Move a module to the device, if asked in channels-last format.

    By default only on CUDA, so that results on the CPU are the same on all machines.
    """
    if device.type == "cuda" if channels_last is None else channels_last:
        return module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
    return module.to(device)


def laid_out(images: Tensor, channels_last: bool | None = None) -> Tensor:
    """Images in the memory format that `place` gives a module."""
    if images.device.type == "cuda" if channels_last is None else channels_last:
        return images.contiguous(memory_format=torch.channels_last)
    return images


def learns_channels_last(device: torch.device) -> bool:
    """Whether networks learn faster in channels-last format.

    On a CPU without bf16, a step takes 1.1 to 1.6 times as long without it for ResNets, MobileNets
    and EfficientNets, and at most a tenth less for others.
    """
    return device.type in ("cpu", "cuda")


def precision(device: torch.device, fast: bool | None = None) -> AbstractContextManager[object]:
    """bf16 autocast if `fast`; by default only on CUDA, see `place`."""
    if device.type == "cuda" if fast is None else fast:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def wide_type(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device, to accumulate in."""
    return torch.float32 if device.type == "mps" else torch.float64


def learns_fast(device: torch.device, macs: int, amp: str = "auto") -> bool:
    """Whether a network of `macs` MACs learns in bf16 on a device.

    On a CPU bf16 is faster if the CPU multiplies it and multiplications outweigh casts: 1.7 times
    for a ResNet-56, but not for layers of 50 units.

    Args:
        device: where it learns.
        macs: of the network.
        amp: `"off"` or `"bf16"`; `"auto"` is bf16 where that is faster.

    Raises:
        DeviceError: bf16 is asked for, and PyTorch does not compute in it there.
    """
    if amp != "auto":
        check_amp(device, amp)
        return amp == "bf16"
    if device.type == "cpu":
        supports_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return macs > 10**7 and bool(supports_bf16())
    return device.type == "cuda"


def check_amp(device: torch.device, amp: str) -> None:
    """Raise a `DeviceError` if bf16 is asked for on a device where PyTorch does not compute in it.

    Where PyTorch does not, it raises an error itself, or only warns and computes in float32.
    """
    if amp != "bf16":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autocast(device.type, torch.bfloat16):
                able = torch.is_autocast_enabled(device.type)
    except RuntimeError:
        able = False
    if not able:
        raise DeviceError(
            f"cannot learn in bf16 on {device}: this PyTorch has no bf16 autocast there", amp="off"
        )


def description(device: torch.device) -> str:
    """The hardware of a device, such as `AMD EPYC, 2 threads` or `NVIDIA H100`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The model of the CPU."""
    info = Path("/proc/cpuinfo")  # `platform` does not know it on Linux
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
