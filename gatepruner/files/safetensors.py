"""The safetensors format: eight bytes, a header as JSON, and the tensors.

The library writes to a file of its own choice, and reads by mapping: what another program then
does to the file changes the tensors, or ends the process. So files are written and read here; the
library checks the header. The format: https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gatepruner.files.places import Span, Version, View, enough_memory

DTYPES = {
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def write_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write contiguous tensors, those with the widest elements first, so that all are aligned."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    keys, end = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)), 0
    for key in keys:
        tensor, start = tensors[key], end
        end += tensor.nbytes
        shape, offsets = list(tensor.shape), [start, end]
        header[key] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for key in keys:
        file.write(_bytes(tensors[key]))


def read_safetensors(
    path: Path, later: Version | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata.

    Args:
        path: of the file.
        later: defers the tensors of a file of this version; by default they are in memory.

    Raises:
        SafetensorError: the header is damaged.
        ValueError: the file is shorter than its header says, or has tensors of an unknown type.
        OSError: the file cannot be read.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as checked:  # for torch it would map all of the file
        metadata = checked.metadata() or {}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        places = sorted(header, key=lambda key: header[key]["data_offsets"])
        unknown = sorted({header[key]["dtype"] for key in places} - DTYPES.keys())
        if unknown:
            raise ValueError(f"tensors of type {', '.join(unknown)}")
        if later is None:
            tensors = {key: _read(file, key, header[key]) for key in places}  # without gaps
        else:
            tensors = {key: _deferred(path, later, 8 + size, header[key]) for key in places}
    return {key: tensors[key] for key in sorted(tensors)}, metadata


def _read(file: BinaryIO, key: str, entry: Mapping[str, Any]) -> Tensor:
    """The next tensor of a file."""
    begin, end = entry["data_offsets"]
    with enough_memory(file.name, end - begin):
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
    if file.readinto(_bytes(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"the file ends before {key} does")
    return tensor


def _deferred(path: Path, version: Version, start: int, entry: Mapping[str, Any]) -> Tensor:
    """A tensor of a file whose tensors begin at `start`; it is read when it is needed."""
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    span = Span(path, version, start + begin, end - begin)
    stride = torch.empty(shape, device="meta").stride()
    return View(span, dtype, 0, shape, stride).deferred()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
