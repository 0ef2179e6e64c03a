"""Files of weights: written whole or not at all, read without ever running code.

The one place that knows how tensors lie in files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import pickletools
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, listed

SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".safetensors")


def write_tensors(
    weights: Mapping[str, Tensor],
    path: Path,
    text: str | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write tensors, with the project's header as text, or as a bare state dict without one.

    Into a temporary file beside `path` that is renamed once it is whole.
    """
    refuse_existing(path, force=force)
    refuse_name(path)
    tensors = {key: _alone(tensor) for key, tensor in weights.items()}

    def put(partial: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            for twin in _twins(tensors):  # safetensors has no two names for one tensor
                tensors[twin] = tensors[twin].clone()
            save_file(tensors, partial, None if text is None else {"gatepruner": text})
        else:
            torch.save(
                tensors if text is None else {"gatepruner": text, "weights": tensors}, partial
            )

    return _write_whole(path, put)


def save_state(snapshot: Mapping[str, Any], path: Path) -> Path:
    """Write the state of a training run over the one before, whole or not at all."""
    return _write_whole(path, lambda partial: torch.save(dict(snapshot), partial))


def write_text(path: Path, text: str) -> Path:
    """Write text over what was there, whole or not at all."""
    return _write_whole(path, lambda partial: partial.write_text(text))


def _write_whole(path: Path, put: Callable[[Path], object]) -> Path:
    """Have `put` write a temporary file beside `path`, and rename it once it is whole."""
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
    os.close(descriptor)
    partial = Path(name)
    try:
        put(partial)
        partial.chmod(0o666 & ~_umask())
        _flush(partial)
        partial.replace(path)
    except Exception as error:  # torch and safetensors tell of a full disk in their own ways
        free = shutil.disk_usage(path.parent).free
        told = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        full = told or free < 2**16
        reason = f"the disk is full ({free / 2**20:.1f} MiB free)" if full else _first_line(error)
        raise CheckpointError(f"cannot write {path}: {reason}; nothing was written") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def refuse_name(path: Path) -> None:
    """Raise a `CheckpointError` if nothing could be written to `path` for its name or folder."""
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise CheckpointError(f"cannot write {path}: expected a name ending in .pt or .safetensors")
    if not path.parent.is_dir():
        raise CheckpointError(f"cannot write {path}: there is no folder {path.parent}")


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise a `CheckpointError` if there is something at `path` that may not be replaced."""
    if path.exists() and not force:
        raise CheckpointError(
            f"{path} is there already: give another name, or --force to replace it"
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: a file name was expected")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without the rest of a larger storage that it may be a view of."""
    tensor = tensor.detach()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.contiguous().clone()


def _twins(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors whose storage one before them has, too."""
    seen: set[int] = set()
    found = []
    for key, tensor in tensors.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            found.append(key)
        seen.add(tensor.data_ptr())
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Have the file on the disk before it takes the place of another one."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def read_file(path: Path) -> tuple[Any, str | None]:
    """What a file holds, and the project's header as text if it has one."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_torch(path)
    if isinstance(content, dict) and isinstance(content.get("gatepruner"), str):
        return content.get("weights"), content["gatepruner"]
    return content, None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata.get("gatepruner")  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or is cut short: {error}") from None


def _read_torch(path: Path) -> Any:
    try:
        zipped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():  # a pickle that torch did not write, which it then refuses
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        told = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        wants = told[1].strip("`") if told else listed(_imports(path))
        if not wants:
            raise CheckpointError(f"{path} is no checkpoint, or is damaged") from None
        raise CheckpointError(
            f"{path} holds {wants}, which would run code: tensors alone were "
            "expected; save the state dict alone, torch.save(model.state_dict(), path)"
        ) from None
    except Exception as error:  # zip, pickle and torch tell of damage in many ways
        reason = _first_line(error)
        raise CheckpointError(f"{path} is no checkpoint, or is cut short: {reason}") from None


def _imports(path: Path) -> list[str]:
    """What a bare pickle would import, as far as it can be read; nothing of it is run."""
    found: list[str] = []
    strings: list[str] = []
    with contextlib.suppress(Exception), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                found.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return found


def load_state(path: Path) -> dict[str, Any]:
    """The state of a training run that `save_state` wrote."""
    content = _read_torch(path)
    if not isinstance(content, dict) or "identity" not in content:
        raise CheckpointError(f"{path} is no state of a training run")
    return content
