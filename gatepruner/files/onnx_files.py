"""Reading ONNX files as networks to measure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from typing_extensions import TypedDict

from gatepruner.documents import checked, parsed
from gatepruner.errors import CheckpointError
from gatepruner.files.places import unchanged
from gatepruner.measuring.engines import require
from gatepruner.networks.base import Base
from gatepruner.networks.checkpoint import Notes
from gatepruner.networks.onnx_file import OnnxFile, OnnxNetwork

LARGEST = 2**31  # bytes of a file; a larger one keeps its weights in other files
NOTES = ("scaling", "classes")  # what export writes as a checkpoint's notes have it


class Int8(TypedDict):
    """What quantisation has changed, as far as it is used."""

    difference: Annotated[float, msgspec.Meta(ge=0, le=10)]


def load_onnx(path: str | Path) -> OnnxFile:
    """Read an ONNX file of an image classifier, with the preprocessing that it records.

    Args:
        path: a file that `export` has written, or any that maps float32 images `(N, C, H, W)` of
            one size to logits `(N, K)`.

    Raises:
        CheckpointError: it cannot be read, keeps its weights in other files, or takes or gives
            something else.
        EngineError: a package is missing; says how to install it.
    """
    path = Path(path)
    require("an ONNX file", ("onnx", "onnxruntime"), "onnx")
    content = _content(path)
    model = _parsed(content, path)
    _, *shape = _sizes(model.graph.input, 4, path)
    _, classes = _sizes(model.graph.output, 2, path)
    recorded = {entry.key: entry.value for entry in model.metadata_props}
    base = Base("caller", "onnx", (shape[0], shape[1], shape[2]))
    notes, rounding = _notes(recorded, path)
    return OnnxFile(OnnxNetwork(path.name, base, classes), content, notes, rounding)


def _content(path: Path) -> bytes:
    with unchanged(path):
        if not path.is_file() or path.stat().st_size >= LARGEST:
            raise CheckpointError(
                f"cannot read {path}: expected a file of less than {LARGEST >> 30} GiB"
            )
        try:
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _parsed(content: bytes, path: Path) -> Any:
    """The `onnx.ModelProto` of a file that holds all of its weights."""
    import onnx

    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, whose kinds differ between versions
        raise CheckpointError(f"{path} is no ONNX file, or is damaged") from error
    if not model.graph.node:
        raise CheckpointError(f"{path} is no ONNX file: it has no operations")
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in _tensors(model)):
        raise CheckpointError(
            f"{path} keeps its weights in other files: write it anew in one file, with "
            "onnx.save_model(model, path, save_as_external_data=False)"
        )
    return model


def _tensors(model: Any) -> Iterator[Any]:
    """The tensors of a model, of the constants in its nodes and functions, too."""
    graphs, functions = [model.graph], list(model.functions)
    while graphs or functions:
        holder = graphs.pop() if graphs else functions.pop()
        yield from getattr(holder, "initializer", ())
        for attribute in (one for node in holder.node for one in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            graphs += [attribute.g, *attribute.graphs]


def _sizes(values: Any, count: int, path: Path) -> list[int]:
    """The sizes of the only input or output, a float32 tensor; 0 for a batch of any size."""
    import onnx

    kinds = [value.type.tensor_type for value in values]
    sizes = [[side.dim_value for side in kind.shape.dim] for kind in kinds]
    right = len(kinds) == 1 and kinds[0].elem_type == onnx.TensorProto.FLOAT
    if not right or len(sizes[0]) != count or min(sizes[0][1:]) < 1:
        texts = ", ".join(f"{value.name} {size}" for value, size in zip(values, sizes, strict=True))
        raise CheckpointError(
            f"{path} has {texts[:200] or 'nothing'} (0 for any size): expected one float32 input "
            "of images (N, C, H, W) of one size and one output of logits (N, K)"
        )
    return sizes[0]


def _notes(recorded: Mapping[str, str], path: Path) -> tuple[dict[str, Any], float]:
    """The notes of a checkpoint that the metadata hold, and what integers have changed."""
    what = f"the metadata of {path}"
    notes = {key: parsed(recorded[key], what) for key in NOTES if key in recorded}
    notes = {key: value for key, value in notes.items() if value}
    if {"mean", "std"} <= recorded.keys():
        notes["normalize"] = {key: parsed(recorded[key], what) for key in ("mean", "std")}
    int8 = parsed(recorded.get("int8", json.dumps({"difference": 0.0})), what)
    rounding = checked(int8, Int8, what)["difference"]
    return {**checked(notes, Notes, what)}, rounding
