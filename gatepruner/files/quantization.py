"""ONNX files in 8-bit integers, quantised after training by ONNX Runtime.

Weights are quantised for each output channel, activations for each tensor between the least and
the greatest value on calibration images: Jacob et al., 2018, https://arxiv.org/abs/1712.05877.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatepruner.errors import DataError, EngineError
from gatepruner.files.writing import write_file
from gatepruner.images.examples import Examples
from gatepruner.images.normalization import Normalization
from gatepruner.measuring.engines import OnnxRuntime
from gatepruner.measuring.inputs import check_size, normalization_of
from gatepruner.measuring.programs import INPUT, refusing, silent
from gatepruner.networks.checkpoint import Checkpoint

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

IMAGES = 500  # that the command line calibrates on by default
BATCH = 32  # affects only time and memory
KEY = "int8"  # under which a file holds how it was quantised


@dataclass(frozen=True)
class Calibration:
    """What a network is quantised with.

    Attributes:
        images: training images of the network's size; labels are not needed.
        normalization: replaces the one that the checkpoint records.
        least_agreement: smallest fraction of the images that the quantised network must assign to
            the same class as the network; 0 accepts any.
    """

    images: Examples
    normalization: Normalization | None = None
    least_agreement: float = 0.95


def check_calibration(checkpoint: Checkpoint, calibration: Calibration) -> None:
    """Refuse images that a network cannot be calibrated on.

    Raises:
        DataError: there is none, or they are of another size.
    """
    if not len(calibration.images):
        raise DataError(f"cannot quantise {checkpoint.network}: there are no calibration images")
    check_size(checkpoint.network, calibration.images)
    normalization_of(checkpoint, calibration.images, calibration.normalization)


def quantize(checkpoint: Checkpoint, path: Path, calibration: Calibration) -> dict[str, Any]:
    """Quantise an ONNX file in its place.

    Args:
        checkpoint: the network that the file holds.
        path: of the file.
        calibration: the images, and how often the class may change.

    Returns:
        How it was done and what it changes, as the file records it under `int8`: `agreement` is
        the fraction of images of the same class, `difference` the greatest difference of a logit
        relative to the greatest logit.

    Raises:
        EngineError: ONNX Runtime cannot quantise it, or the class changes too often; says how
            often.
    """
    with silent(), refusing(f"cannot quantise {checkpoint.network}"):
        quantized = _quantized(path, _batches(checkpoint, calibration))
    before = _logits(path.read_bytes(), checkpoint, calibration)
    after = _logits(quantized.SerializeToString(), checkpoint, calibration)
    agreement = float((after.argmax(1) == before.argmax(1)).float().mean())
    if agreement < calibration.least_agreement:
        raise EngineError(
            f"the 8-bit version of {checkpoint.network} assigns {1 - agreement:.1%} of the "
            f"{len(before):,} calibration images to another class, expected at most "
            f"{1 - calibration.least_agreement:.1%}; export it in float32, or accept this",
            least_agreement=int(1000 * agreement) / 1000,
        )
    details = {
        "images": len(before),
        "source": calibration.images.source,
        "agreement": agreement,
        "difference": float((after - before).abs().max() / before.abs().max()),
        "weights": "int8, symmetric, per output channel",
        "activations": "uint8, per tensor, from the least to the greatest value",
    }
    _record(quantized, details)
    write_file(path, lambda file: file.write(quantized.SerializeToString()))
    return details


def _quantized(path: Path, batches: Iterator[Tensor]) -> Any:
    """The `onnx.ModelProto` of a file in 8 bits: quantise and dequantise pairs (QDQ)."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as made:
        folded, target = Path(made, "folded.onnx"), Path(made, "quantized.onnx")
        quant_pre_process(path, folded, skip_symbolic_shape=True)  # the exporter knows the shapes
        quantize_static(
            folded,
            target,
            _reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(target)


def _reader(batches: Iterator[Tensor]) -> CalibrationDataReader:
    """Batches as ONNX Runtime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    return Reader()


def _batches(checkpoint: Checkpoint, calibration: Calibration) -> Iterator[Tensor]:
    """The images as the network takes them."""
    images = calibration.images
    normalization = normalization_of(checkpoint, images, calibration.normalization)
    for pixels, _ in images.batches(torch.arange(len(images)), BATCH):
        yield normalization(pixels)


def _logits(model: bytes, checkpoint: Checkpoint, calibration: Calibration) -> Tensor:
    """What a file computes on the images, `(N, K)`."""
    run = OnnxRuntime.of(model, threads=1)
    return torch.cat([run(batch) for batch in _batches(checkpoint, calibration)])


def _record(model: Any, details: dict[str, Any]) -> None:
    """Add how it was quantised to the properties of a model."""
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(details)
