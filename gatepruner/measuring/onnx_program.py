"""An ONNX file as a program, which engines run that read ONNX."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import EngineError
from gatepruner.measuring.engines import OnnxRuntime
from gatepruner.measuring.programs import Program, refusing
from gatepruner.networks.onnx_file import OnnxFile


@dataclass(frozen=True)
class OnnxProgram(Program):
    """An ONNX file as a program.

    Attributes:
        model: the content of the file.
    """

    model: bytes = b""

    @classmethod
    def of(cls, file: OnnxFile, name: str) -> OnnxProgram:
        """The program of a file; its own logits are those of ONNX Runtime."""
        shape = file.network.base.input_shape
        return cls(running(file), shape, name, rounding=file.rounding, model=file.model)

    @functools.cached_property
    def onnx(self) -> Any:
        import onnx

        return onnx.load_model_from_string(self.model)


class _Running(nn.Module):
    """An ONNX file in ONNX Runtime on the CPU, as a module without weights."""

    def __init__(self, file: OnnxFile) -> None:
        super().__init__()
        self.what, self.classes = f"onnxruntime cannot run {file.network}", file.network.num_classes
        with refusing(self.what):
            self.engine = OnnxRuntime.of(file.model, torch.get_num_threads())

    def forward(self, images: Tensor) -> Tensor:
        with refusing(self.what):
            logits = self.engine(images.cpu())
        if logits.shape != (len(images), self.classes):
            raise EngineError(
                f"{self.what}: it gives {tuple(logits.shape)} for {len(images)} images, expected "
                f"logits {(len(images), self.classes)}"
            )
        return logits.to(images.device)


def running(file: OnnxFile) -> nn.Module:
    """An ONNX file as a module: ONNX Runtime maps images `(N, C, H, W)` to logits `(N, K)`.

    Raises:
        EngineError: ONNX Runtime cannot run it; names the operation.
    """
    return _Running(file)
