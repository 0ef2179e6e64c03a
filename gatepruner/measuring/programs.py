"""A module as a program that runs without its code: `torch.export`'s, and ONNX."""

from __future__ import annotations

import copy
import functools
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gatepruner.errors import EngineError, is_out_of_memory
from gatepruner.models import Shape

TOLERANCE = 1e-3  # greatest difference of a logit, relative to the greatest logit
INPUT, OUTPUT = "images", "logits"
# How torch, ONNX Runtime and OpenVINO name an operation that one of them does not have.
OPERATION = re.compile(
    r"op='(?P<torch>[\w.]+)'"
    r"|implementation for (?P<runtime>\w+\(\d+\))"
    r"|[Nn]o (?:Op|importer) registered for (?:op: )?(?P<unknown>\w+)"
    r"|[Ee]rror: (?P<registered>\w+)\([\d-]+\) is not a registered"
    r"|rule found for operations: (?P<openvino>[\w.:]+)"
    r"|torch\.ops\.(?P<node>[\w.]+)"
)


@dataclass(frozen=True)
class Program:
    """A module that is exported at most once to each form, for batches of any size.

    Attributes:
        module: maps images `(N, C, H, W)` to logits; it is not changed.
        input_shape: `(C, H, W)` of one image.
        name: of the network, for error messages.
        copies: of the module on other devices.
        rounding: how far its logits may differ from one engine to another, beyond float32's.
    """

    module: nn.Module
    input_shape: Shape
    name: str = "the network"
    copies: dict[torch.device, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    rounding: float = 0.0

    def on(self, device: torch.device) -> nn.Module:
        """The module in evaluation mode on a device; a copy if its tensors are elsewhere."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        if all(tensor.device == device for tensor in tensors):
            return self.module.eval()
        if device not in self.copies:
            self.copies[device] = copy.deepcopy(self.module).to(device)
        return self.copies[device].eval()

    @functools.cached_property
    def exported(self) -> ExportedProgram:
        """The program of `torch.export`, on the CPU, in evaluation mode.

        Raises:
            EngineError: it cannot be exported; names the operation.
        """
        module = copy.deepcopy(self.module).cpu().eval()  # the module itself stays as it is
        example = torch.zeros(2, *self.input_shape)  # 1 would become a constant
        sizes = ({0: Dim("batch", min=1)},)
        with silent(), refusing(f"cannot export {self.name} by torch.export"):
            return torch.export.export(module, (example,), dynamic_shapes=sizes, strict=False)

    @functools.cached_property
    def onnx(self) -> Any:
        """The program as an `onnx.ModelProto`.

        Raises:
            EngineError: it cannot be exported; names the operation.
        """
        exported = self.exported
        with silent(), refusing(f"cannot export {self.name} to ONNX"):
            program = torch.onnx.export(
                exported, (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
            assert program is not None  # it is, unless written to a file
            return program.model_proto


def check_same(what: str, logits: Tensor, expected: Tensor, rounding: float = 0.0) -> float:
    """The greatest difference of a logit from the network's own, relative to the greatest logit.

    Args:
        what: has computed the logits, for error messages.
        logits: `(N, C)`.
        expected: `(N, C)`, the network's own.
        rounding: a difference that is allowed in any case.

    Raises:
        EngineError: it is more than rounding; says how much.
    """
    if logits.shape != expected.shape:
        raise EngineError(
            f"{what} gives logits {tuple(logits.shape)}, expected {tuple(expected.shape)}"
        )
    greatest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    difference = float((logits - expected).abs().max() / greatest)
    most = max(tolerance(logits.device), rounding)
    if not difference <= most:
        raise EngineError(
            f"{what} computes something else: a logit differs by {difference:.2g} of the greatest, "
            f"expected at most {most:g}; choose another engine or format"
        )
    return difference


def tolerance(device: torch.device) -> float:
    """The greatest difference of a logit from PyTorch's, relative to the greatest logit.

    GPUs multiply in TF32 by default, of which 10 bits follow the point.
    """
    return 10 * TOLERANCE if device.type == "cuda" else TOLERANCE


@contextmanager
def silent() -> Iterator[None]:
    """Without the warnings and messages of exporters, which are about their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever another software raises into an `EngineError` that names the operation."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # each software has its own kinds, and some have none
        if is_out_of_memory(error):
            raise
        raise EngineError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The operation that an error is about, or else its first line."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for one in reversed(chain):  # the deepest knows best
        match = OPERATION.search(str(one))
        if match:
            name = next(filter(None, match.groups()))
            return f"it does not have the operation {name}; choose another engine or format"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
