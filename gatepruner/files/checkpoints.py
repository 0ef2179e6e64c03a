"""Checkpoint files: writing and reading gatepruner's format, and reading foreign state dicts.

A gatepruner file contains a format number, the network and the notes as JSON, and the weights;
see `docs/format.md`. Reading it needs no class and runs no code. The architecture of a foreign
state dict is recognised by `gatepruner.files.recognition`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gatepruner.documents import checked, parsed
from gatepruner.errors import ArchitectureError, CheckpointError, listed
from gatepruner.files.fitting import fitted, naming
from gatepruner.files.folders import HUB, INDEX, local, read_folder, read_shards
from gatepruner.files.foreign import word
from gatepruner.files.foreign_checkpoints import from_state_dicts, from_transformers
from gatepruner.files.headers import FORMAT, check_header, upgraded
from gatepruner.files.paths import PREFIX, packed_path, path_in
from gatepruner.files.recognition import Wanted
from gatepruner.files.storage import SUFFIXES, read_file, write_tensors
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint, Notes
from gatepruner.networks.importing import Brought, recorded
from gatepruner.networks.network import Network
from gatepruner.networks.weights import cast, refuse_odd, refuse_unusable


def save(checkpoint: Checkpoint, path: str | Path, *, force: bool = False) -> Path:
    """Write a checkpoint in gatepruner's format, atomically.

    Args:
        checkpoint: what to write.
        path: a file ending in `.pt` or `.safetensors`.
        force: whether to replace an existing file.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: the file exists, has another suffix or cannot be written.
    """
    path = Path(path)
    checked(dict(checkpoint.notes), Notes, f"cannot write {path}: its notes")
    learned, tensors = packed_path(checkpoint.path)
    header = {
        "format": FORMAT,
        "network": checkpoint.network.to_json(),
        "notes": dict(checkpoint.notes),
        **learned,
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"cannot write {path}: its notes are not valid JSON ({error})"
        ) from None
    return write_tensors({**checkpoint.weights, **tensors}, path, text, force=force)


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    module: nn.Module | str | None = None,
    leaves: Iterable[type[nn.Module] | str] = (),
    weights: str | None = None,
    deferred: bool = False,
) -> Checkpoint:
    """Read a gatepruner checkpoint or a foreign state dict.

    Never runs code from the file (`weights_only=True`). Weights are read into memory, so what
    becomes of the file later changes nothing.

    Args:
        path: a `.pt`, `.pth`, `.th`, `.ckpt`, `.bin` or `.safetensors` file, the index of a sharded
            one (`.index.json`), or a folder with the `config.json` of timm or transformers, also
            written `hf:DIR`.
        arch: for a foreign file: its architecture, a name for `Network.named`, or `hf:DIR` with
            a folder of transformers; by default recognised from the weights.
        num_classes: for a foreign file: number of logits; by default taken from the weights.
        input_shape: for a foreign file: `(C, H, W)` of one image.
        module: the caller's module, if the file has the weights of one; or its name as
            `FILE.py:CALLABLE` or `package.module:callable`, which is imported and recorded in the
            notes. A name that a file records is never imported by itself.
        leaves: classes, or names of them, of the module's parts to keep whole because they cannot
            be traced.
        weights: for a foreign file with several states of the network: where those to take are,
            such as `model` or `state_dict_ema`; by default averaged ones.
        deferred: leave the weights in the file until something is computed with them, so that a
            file larger than memory can be pruned; it has to stay as it is until then. Files of
            torch before 1.6 and those of transformers are read at once all the same.

    Returns:
        The checkpoint; the notes of a foreign one contain the name of its file as `source`, and
        as `remarks` what was assumed, left out or cast.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, contains code, was changed while
            it was read, or its weights do not fit the network; the message lists them.
        ArchitectureError: the architecture is unknown or not recognised, or the module is missing
            or cannot be imported.
    """
    path, brought = local(path), Brought(module, tuple(leaves))
    wanted = Wanted(arch, num_classes, input_shape)
    if os.path.isdir(path):  # also where a name is too long for a file
        if module is not None:
            raise CheckpointError(f"{path} is a folder: a module needs the file with its weights")
        return _load_folder(path, wanted, weights, deferred=deferred)
    hub = arch if arch is not None and arch.startswith(HUB) else None
    content, header = _read(path, deferred=deferred and hub is None)
    if header is None:
        wanted = _with(brought, wanted)
        if hub is not None:
            return from_transformers(path, content, read_folder(local(hub)), wanted)
        return from_state_dicts(path, content, wanted, weights, brought.notes)
    check_header(path, header, arch)
    try:
        header = upgraded(header)
        _check_brought(path, header, brought)
        with naming(path):
            network = Network.from_json(header["network"], brought.module, brought.leaves)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged: its header does not describe a network and notes "
            f"({type(error).__name__}: {error})"
        ) from None
    bad = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if bad or not all(isinstance(key, str) for key in content):
        said = f", {listed(map(word, bad))} is none" if bad else ", by names"
        raise CheckpointError(f"{path} is damaged: expected only tensors{said}")
    state = {key: tensor for key, tensor in content.items() if not key.startswith(PREFIX)}
    learned = {
        key.removeprefix(PREFIX): tensor for key, tensor in content.items() if key not in state
    }
    with naming(path):
        refuse_odd(content)
    checkpoint = fitted(path, network, state, {**header["notes"], **brought.notes})
    with naming(path):
        refuse_unusable(checkpoint.weights)
        cast(checkpoint.weights, network.state())
    return replace(checkpoint, path=path_in(path, network, header, learned))


def is_named(path: str | Path) -> bool | None:
    """Whether a gatepruner file has a network that a name constructs, and none of a caller's.

    Returns:
        `None` for any other file.
    """
    path = local(path)
    header = _read(path)[1] if os.path.isfile(path) else None
    if header is None:
        return None
    try:
        return bool(header["network"]["base"]["source"] != "caller")
    except (KeyError, TypeError):  # damaged, as `load` will say
        return True


def _read(path: Path, *, deferred: bool = False) -> tuple[Any, dict[str, Any] | None]:
    """The content of a file, and its header if it is a gatepruner file."""
    if not os.path.isfile(path):
        names = sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES)
        near = difflib.get_close_matches(path.name, names, n=5, cutoff=0)
        hint = f"; the folder has {listed(near)}" if near else ""
        raise CheckpointError(f"there is no file {path}{hint}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: expected a checkpoint")
    if path.name.endswith(INDEX):
        return read_shards(path, lambda shard: read_file(shard, deferred=deferred)[0]), None
    content, text = read_file(path, deferred=deferred)
    if text is None:
        return content, None
    header = parsed(text, f"the header of {path}")
    if not (isinstance(header, dict) and isinstance(content, dict)):
        raise CheckpointError(f"{path} is damaged: expected a header and weights")
    return content, header


def _check_brought(path: Path, header: Mapping[str, Any], brought: Brought) -> None:
    """Raise an error if a module is brought and not needed, or the other way round."""
    base = header["network"]["base"]
    if base["source"] != "caller":
        if brought.given is not None:
            raise CheckpointError(
                f"{path} contains its own architecture, {base['name']}: leave out the module"
            )
    elif brought.given is None:
        raise ArchitectureError(
            f"{path} has the weights of the module {base['name']}, not its code: bring the module "
            "that they were trained in",
            module=recorded(header["notes"]),
        )


def _with(brought: Brought, wanted: Wanted) -> Wanted:
    """What the caller says about a file, with the network of the module that is brought."""
    if brought.given is None:
        return wanted
    if wanted.arch is not None:
        raise ArchitectureError(
            f"the architecture {wanted.arch} and a module are two networks: leave one out"
        )
    assert brought.module is not None
    shape = wanted.input_shape or (3, 224, 224)
    return replace(wanted, network=Network.of(brought.module, shape, brought.leaves))


def _load_folder(path: Path, wanted: Wanted, weights: str | None, *, deferred: bool) -> Checkpoint:
    """The checkpoint in a folder as it is written for a hub; the caller's words come first."""
    folder = read_folder(path)
    deferred = deferred and bool(folder.arch or wanted.arch)  # others are compared with a module
    content, header = _read(folder.weights, deferred=deferred)
    if header is not None:
        return load(folder.weights, deferred=deferred)
    if not (folder.arch or wanted.arch):
        return from_transformers(path, content, folder, wanted)
    wanted = Wanted(
        wanted.arch or folder.arch,
        wanted.num_classes or folder.num_classes,
        wanted.input_shape or folder.input_shape,
    )
    checkpoint = from_state_dicts(folder.weights, content, wanted, weights, {})
    notes = {**folder.notes, **checkpoint.notes, "source": path.name}
    return replace(checkpoint, notes=notes)
