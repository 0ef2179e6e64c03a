"""Tensors in files: written atomically, and read without running code."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, listed
from gatepruner.files.archives import Content, is_zip, read_archive, records
from gatepruner.files.unpickling import LARGEST, MOST_OPERATIONS, Source, operations

SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar", ".safetensors")
LARGEST_HEADER = 2**24  # bytes of the header of a safetensors file
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
    tensors = {key: _compact(tensor) for key, tensor in weights.items()}

    def write(partial: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            for key in _shared(tensors):  # safetensors refuses tensors that share memory
                tensors[key] = tensors[key].clone()
            save_file(tensors, partial, None if text is None else {"gatepruner": text})
        else:
            torch.save(
                tensors if text is None else {"gatepruner": text, "weights": tensors}, partial
            )

    return _write_atomically(path, write)


def save_state(snapshot: Mapping[str, Any], path: Path) -> Path:
    """Write the state of a training run atomically, replacing the previous one."""
    return _write_atomically(path, lambda partial: torch.save(dict(snapshot), partial))


def write_text(path: Path, text: str) -> Path:
    """Write text atomically, replacing the previous file."""
    return _write_atomically(path, lambda partial: partial.write_text(text))


def _write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` write a temporary file beside `path`, then rename it."""
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
    os.close(descriptor)
    partial = Path(name)
    try:
        write(partial)
        partial.chmod(0o666 & ~_umask())
        _flush(partial)
        partial.replace(path)
    except Exception as error:  # torch and safetensors raise their own errors on a full disk
        free = shutil.disk_usage(path.parent).free
        no_space = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        full = no_space or free < 2**16
        reason = f"the disk is full ({free / 2**20:.1f} MiB free)" if full else _first_line(error)
        raise CheckpointError(f"cannot write {path}: {reason}; nothing was written") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def refuse_name(path: Path) -> None:
    """Raise a `CheckpointError` if `path` has an unknown suffix or its folder is missing."""
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise CheckpointError(f"cannot write {path}: expected a name ending in .pt or .safetensors")
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise a `CheckpointError` if `path` exists and may not be replaced."""
    if path.exists() and not force:
        raise CheckpointError(
            f"{path} already exists: write to another file, or replace it", force=True
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: expected a file name")


def _compact(tensor: Tensor) -> Tensor:
    """The tensor with a storage of its own if it is a view of a larger one."""
    tensor = tensor.detach()
    compact = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if compact else tensor.contiguous().clone()


def _shared(tensors: Mapping[str, Tensor]) -> list[str]:
    """Keys of tensors that share the memory of a tensor before them."""
    pointers: set[int] = set()
    shared = []
    for key, tensor in tensors.items():
        if tensor.numel() and tensor.data_ptr() in pointers:
            shared.append(key)
        pointers.add(tensor.data_ptr())
    return shared


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Force the file to the disk, before it replaces another one."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read_file(path: Path) -> tuple[Any, str | None]:
    """The content of a file, and the text of its header if it is a gatepruner file.

    Objects of unknown classes in a file of others are stand-ins without behaviour.

    Raises:
        CheckpointError: the file cannot be read, is of another kind or would run code.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    _refuse_programs(path)
    content = _read_torch(path)
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    _refuse_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata.get("gatepruner")  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated: {_first_line(error)}"
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


def _read_torch(path: Path) -> Content:
    """The content of a file of torch."""
    try:
        return read_archive(path)
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
