"""Tensors in files: written atomically, and read without running code."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import pickletools
import re
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, listed
from gatepruner.files.unpickling import read_inert

SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".tar", ".safetensors")
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
    content = _read_torch(path, inert=True)
    if isinstance(content, dict) and isinstance(content.get("gatepruner"), str):
        content = _read_torch(path)  # its own format holds nothing that needs a stand-in
        return content.get("weights"), content["gatepruner"]
    return content, None


def _refuse_programs(path: Path) -> None:
    """Raise a `CheckpointError` if a file is a program of torch, not a checkpoint."""
    if not zipfile.is_zipfile(path):
        return
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        for record, (kind, state) in PROGRAMS.items():
            if record in names:
                raise CheckpointError(
                    f"{path} is {kind}, not a checkpoint: write its weights alone with "
                    f"torch.save({state}, 'weights.pt'), or load it with the module it came from"
                )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata.get("gatepruner")  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated: {error}"
        ) from None


def _read_torch(path: Path, *, inert: bool = False) -> Any:
    """The content of a file of torch; `inert` allows stand-ins of unknown classes."""
    try:
        return _loaded(path)
    except pickle.UnpicklingError as error:
        refused = error
    except Exception as error:  # zip, pickle and torch raise many kinds for damaged files
        if not tarfile.is_tarfile(path):
            raise _unreadable(path, error) from None
        refused = pickle.UnpicklingError()
    if inert:
        try:
            return read_inert(path)
        except CheckpointError:
            raise
        except Exception as error:
            if not isinstance(error, pickle.UnpicklingError):
                raise _unreadable(path, error) from None
    match = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(refused))
    imports = match[1].strip("`") if match else listed(_imports(path))
    if not imports:
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged")
    raise CheckpointError(
        f"{path} contains {imports}, which would run code: expected only tensors; save the "
        "state dict alone, torch.save(model.state_dict(), path)"
    )


def _loaded(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    with warnings.catch_warnings():  # of a pickle that torch did not write and then refuses
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = _first_line(error)
    return CheckpointError(f"{path} is not a checkpoint, or is truncated: {reason}")


def _imports(path: Path) -> list[str]:
    """The names that a bare pickle would import, as far as it can be read; no code is run."""
    imports: list[str] = []
    strings: list[str] = []
    with contextlib.suppress(Exception), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                imports.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                imports.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return imports


def load_state(path: Path) -> dict[str, Any]:
    """The state of a training run that `save_state` wrote.

    Raises:
        CheckpointError: the file is not such a state.
    """
    content = _read_torch(path)
    if not isinstance(content, dict) or "identity" not in content:
        raise CheckpointError(f"{path} is not the state of a training run")
    return content
