"""Tensors in files: written whole or not at all, and read without running code."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, listed
from gatepruner.files.safetensors import read_safetensors, write_safetensors
from gatepruner.files.unpickling import read_inert
from gatepruner.files.writing import refuse_existing, refuse_name, write_file

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

    def fill(file: BinaryIO) -> None:
        if path.suffix == ".safetensors":
            write_safetensors(file, tensors, None if text is None else {"gatepruner": text})
        else:
            torch.save(tensors if text is None else {"gatepruner": text, "weights": tensors}, file)

    return write_file(path, fill, force=force)


def save_state(snapshot: Mapping[str, Any], path: Path) -> Path:
    """Write the state of a training run, replacing the previous one."""
    return write_file(path, lambda file: torch.save(dict(snapshot), file))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _compact(tensor: Tensor) -> Tensor:
    """The tensor with a storage of its own if it is a view of a larger one."""
    tensor = tensor.detach()
    compact = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if compact else tensor.contiguous().clone()


def read_file(path: Path) -> tuple[Any, str | None]:
    """The content of a file, and the text of its header if it is a gatepruner file.

    Objects of unknown classes in a file of others are stand-ins without behaviour.

    Raises:
        CheckpointError: the file cannot be read, is of another kind or would run code.
    """
    with unchanged(path):
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        _refuse_programs(path)
        content = _read_torch(path, inert=True)
        if isinstance(content, dict) and isinstance(content.get("gatepruner"), str):
            text, content = content["gatepruner"], None
            content = _read_torch(path)  # its own format holds nothing that needs a stand-in
            return content.get("weights"), text
        return content, None


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Read a file that nobody changes meanwhile.

    Raises:
        CheckpointError: another program has changed it, or it is not there.
    """
    before = _version(path)
    try:
        yield
    finally:
        if _version(path) != before:
            raise CheckpointError(
                f"{path} was changed while it was read: read it again when it is complete"
            )


def _version(path: Path) -> tuple[int, ...]:
    """Numbers that differ when a file has been changed or replaced."""
    try:
        found = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


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
    from safetensors import SafetensorError

    try:
        tensors, metadata = read_safetensors(path)
        return tensors, metadata.get("gatepruner")
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
    with warnings.catch_warnings():  # of a pickle that torch did not write and then refuses
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


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
