"""Tensors in files: written whole or not at all, and read without running code."""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, first_line, listed
from gatepruner.files.archives import Content, is_zip, read_archive, records
from gatepruner.files.places import Version, unchanged
from gatepruner.files.safetensors import read_safetensors, write_safetensors
from gatepruner.files.streaming import compact, streamed
from gatepruner.files.unpickling import LARGEST, MOST_OPERATIONS, Source, operations
from gatepruner.files.writing import refuse_existing, refuse_name, write_file

SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar", ".safetensors")
LARGEST_HEADER = 2**22  # bytes of the header of a safetensors file
# A record that only such an archive has: what it is, and its weights in Python.
PROGRAMS = {
    "constants.pkl": ("a TorchScript program", "torch.jit.load(PATH).state_dict()"),
    "archive_format": ("an exported program (.pt2)", "torch.export.load(PATH).state_dict"),
    "serialized_exported_program.json": (
        "an exported program (.pt2)",
        "torch.export.load(PATH).state_dict",
    ),
}


def write_tensors(
    weights: Mapping[str, Tensor],
    path: Path,
    text: str | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write tensors atomically.

    Args:
        weights: tensors by key.
        path: a file ending in `.pt`, `.pth` or `.safetensors`.
        text: header of a gatepruner file; `None` writes a bare state dict.
        force: whether to replace an existing file.

    Raises:
        CheckpointError: the file exists, has another suffix or cannot be written.
    """
    refuse_existing(path, force=force)
    refuse_name(path)
    tensors = {key: compact(tensor) for key, tensor in weights.items()}

    def fill(file: BinaryIO) -> None:
        if path.suffix == ".safetensors":
            write_safetensors(file, tensors, None if text is None else {"gatepruner": text})
            return
        content = streamed(tensors)
        torch.save(content if text is None else {"gatepruner": text, "weights": content}, file)

    return write_file(path, fill, force=force)


def save_state(snapshot: Mapping[str, Any], path: Path) -> Path:
    """Write the state of a training run, replacing the previous one."""
    return write_file(path, lambda file: torch.save(dict(snapshot), file))


def read_file(path: Path, *, deferred: bool = False) -> tuple[Any, str | None]:
    """The content of a file, and the text of its header if it is a gatepruner file.

    Objects of unknown classes in a file of others are stand-ins without behaviour.

    Args:
        path: of the file.
        deferred: whether tensors are left in a file that is safetensors or zip; see `Deferred`.

    Raises:
        CheckpointError: the file cannot be read, is of another kind or would run code.
    """
    if path.suffix == ".onnx":
        raise CheckpointError(
            f"{path} is an ONNX file, which bench and evaluate measure: expected the checkpoint "
            "that it was exported from"
        )
    with unchanged(path) as version:
        later = version if deferred else None
        if path.suffix == ".safetensors":
            return _read_safetensors(path, later)
        _refuse_programs(path)
        content = _read_torch(path, later)
    value = content.value
    if isinstance(value, dict) and isinstance(value.get("gatepruner"), str):
        _refuse_stand_ins(path, content)  # its own format has none
        return value.get("weights"), value["gatepruner"]
    return value, None


def _refuse_programs(path: Path) -> None:
    """Raise a `CheckpointError` if a file is a program of torch, not a checkpoint."""
    if not is_zip(path):
        return
    names = {record.filename.rpartition("/")[2] for record in records(path)}
    for record, (kind, state) in PROGRAMS.items():
        if record in names:
            raise CheckpointError(
                f"{path} is {kind}, not a checkpoint: write its weights alone with "
                f"torch.save({state}, 'weights.pt'), or load it with the module it came from"
            )


def _read_safetensors(
    path: Path, later: Version | None = None
) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError

    _refuse_header(path)
    try:
        tensors, metadata = read_safetensors(path, later)
        return tensors, metadata.get("gatepruner")
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated: {first_line(error)}"
        ) from None


def _refuse_header(path: Path) -> None:
    """Raise a `CheckpointError` if the header of a safetensors file is too large."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > min(LARGEST_HEADER, max(0, path.stat().st_size - 8)):
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated: its header has {size:,} bytes, "
            f"expected at most {LARGEST_HEADER:,} and no more than the file has"
        )


def _read_torch(path: Path, later: Version | None = None) -> Content:
    """The content of a file of torch."""
    try:
        return read_archive(path, later)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except pickle.UnpicklingError:
        pass
    imports = listed(_imports(path))
    if not imports:
        raise CheckpointError(f"{path} is not a checkpoint, or is truncated")
    raise _would_run(path, imports)


def _would_run(path: Path, imports: str) -> CheckpointError:
    return CheckpointError(
        f"{path} contains {imports}, which would run code: expected only tensors; save the "
        "state dict alone, torch.save(model.state_dict(), path)"
    )


def _refuse_stand_ins(path: Path, content: Content) -> None:
    """Raise a `CheckpointError` if a file names unknown classes or functions."""
    if content.unknown:
        raise _would_run(path, listed(sorted(content.unknown)))


def _imports(path: Path) -> list[str]:
    """The names that a bare pickle would import, as far as it can be read; no code is run."""
    imports: list[str] = []
    strings: list[str] = []
    with contextlib.suppress(Exception), path.open("rb") as file:
        source = Source(file, min(path.stat().st_size, LARGEST))
        for opcode, argument, _ in itertools.islice(operations(source), MOST_OPERATIONS):
            if opcode.name == "GLOBAL":
                imports.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                imports.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument]
    return imports


def load_state(path: Path) -> dict[str, Any]:
    """The state of a training run that `save_state` wrote.

    Raises:
        CheckpointError: the file is not such a state.
    """
    content = _read_torch(path)
    _refuse_stand_ins(path, content)
    value = content.value
    if not isinstance(value, dict) or not isinstance(value.get("identity"), dict):
        raise CheckpointError(f"{path} is not the state of a training run")
    return value
