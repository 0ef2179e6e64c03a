"""Networks as programs in files: ONNX, `torch.export` and OpenVINO's IR."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.files.writing import write_file
from gatepruner.measuring.engines import OnnxRuntime
from gatepruner.measuring.programs import Program, refusing, silent
from gatepruner.networks.checkpoint import Checkpoint

Written = tuple[Callable[[str], str], Mapping[str, Any]]
KEY = "config"  # under which a program holds its description


def program_of(checkpoint: Checkpoint) -> Program:
    """The program of a network."""
    network = checkpoint.network
    return Program(checkpoint.build(), network.base.input_shape, str(network))


def write_onnx(checkpoint: Checkpoint, path: Path, about: Mapping[str, Any]) -> Written:
    """Write an ONNX file; every entry of the description is a property of its metadata."""
    import onnx

    model = program_of(checkpoint).onnx
    texts = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()
    }
    onnx.helper.set_model_props(model, texts)
    write_file(path, lambda file: file.write(model.SerializeToString()))
    return (
        lambda name: (
            "import onnxruntime\n"
            f"session = onnxruntime.InferenceSession({name!r})\n"
            '(logits,) = session.run(None, {"images": images})  # float32 (N, C, H, W)'
        )
    ), {"opset": model.opset_import[0].version}


def read_onnx(checkpoint: Checkpoint, path: Path) -> Callable[[Tensor], Tensor]:
    """The file in ONNX Runtime."""
    return OnnxRuntime.of(path.read_bytes(), threads=1)


def write_torch(checkpoint: Checkpoint, path: Path, about: Mapping[str, Any]) -> Written:
    """Write a program of `torch.export` with the description as `config.json` in it."""
    exported = program_of(checkpoint).exported
    with silent():
        torch.export.save(exported, path, extra_files={"config.json": json.dumps(about)})
    return (
        lambda name: (
            f"import torch\nmodel = torch.export.load({name!r}).module()\nlogits = model(images)"
        )
    ), {}


def read_torch(checkpoint: Checkpoint, path: Path) -> Callable[[Tensor], Tensor]:
    """The file as torch loads it."""
    with silent():
        loaded: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return loaded


def openvino_model(checkpoint: Checkpoint) -> Any:
    """A network as an `openvino.Model`."""
    import openvino

    with silent(), refusing(f"cannot export {checkpoint.network} to OpenVINO"):
        onnx = program_of(checkpoint).onnx.SerializeToString()
        return openvino.Core().read_model(onnx, b"")


def write_openvino(checkpoint: Checkpoint, path: Path, about: Mapping[str, Any]) -> Written:
    """Write OpenVINO's IR in full precision: `.xml`, and the weights beside it in `.bin`."""
    import openvino

    model = openvino_model(checkpoint)
    with silent(), refusing(f"cannot export {checkpoint.network} to OpenVINO"):
        model.set_rt_info(json.dumps(about), KEY)
        openvino.save_model(model, path, compress_to_fp16=False)
    return (
        lambda name: (
            f"import openvino\nmodel = openvino.compile_model({name!r})\n"
            "logits = model(images)[0]  # float32 (N, C, H, W)"
        )
    ), {}


def read_openvino(checkpoint: Checkpoint, path: Path) -> Callable[[Tensor], Tensor]:
    """The file in OpenVINO."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())
