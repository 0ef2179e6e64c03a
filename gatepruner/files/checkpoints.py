"""Checkpoint files: writing and reading gatepruner's format, and reading foreign state dicts.

A gatepruner file contains a format number, the network and the notes as JSON, and the weights;
see `docs/format.md`. Reading it needs no class and runs no code. The architecture of a foreign
state dict is recognised by `gatepruner.files.recognition`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gatepruner.errors import CheckpointError, PlanError, listed
from gatepruner.files.foreign import state_dict_in, without_prefixes
from gatepruner.files.recognition import COUNTER, recognise
from gatepruner.files.storage import SUFFIXES, read_file, write_tensors
from gatepruner.models import Shape
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.path import Path as LearnedPath

FORMAT = 3  # format 2 added the path, format 3 its records in the header
READS = (1, 2, 3)


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
    header = {
        "format": FORMAT,
        "network": checkpoint.network.to_json(),
        "notes": dict(checkpoint.notes),
        "path": checkpoint.path.records,
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"cannot write {path}: its notes are not valid JSON ({error})"
        ) from None
    return write_tensors(checkpoint.tensors, path, text, force=force)


def _path_of(
    file: Path,
    network: Network,
    records: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
) -> LearnedPath:
    """The learned path in a file; raises a `CheckpointError` if it does not fit the network."""
    state, problems = network.state(), []
    for key, tensor in tensors.items():
        inner = key.partition("/")[2]
        if inner not in state:
            problems.append(f"path/{key} is unknown")
        elif tensor.shape != state[inner].shape:
            problems.append(f"path/{key} is {tuple(tensor.shape)}, not {tuple(state[inner].shape)}")
        elif not bool(tensor.isfinite().all()):
            problems.append(f"path/{key} is not finite")
    if problems:
        raise CheckpointError(
            f"{file} is damaged: its path does not fit {network}: {listed(problems)}"
        )
    try:
        path = LearnedPath.of(records, tensors)
        network.without(path.blocks)  # raises if the network lacks a block
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise CheckpointError(
            f"{file} is damaged: its path does not fit {network} ({type(error).__name__}: {error})"
        ) from None
    return path


def _upgraded(header: dict[str, Any]) -> dict[str, Any]:
    """A header in the present format, from one in any format."""
    notes, path = dict(header["notes"].items()), []
    if header["format"] == 2:  # the notes held the path's records, even without a path
        records = {
            record["gone"]: {"block": record["gone"], **record} for record in notes.pop("path", ())
        }
        path = [records[str(name)] for name in header["path"]]
        if records and not path:
            gates = {name: record["gate"] for name, record in records.items()}
            notes["gates"] = {**notes.get("gates", {}), **gates}
    elif header["format"] == FORMAT:
        path = list(header["path"])
    return {**header, "notes": notes, "path": path}


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    module: nn.Module | None = None,
    leaves: Iterable[type[nn.Module]] = (),
) -> Checkpoint:
    """Read a gatepruner checkpoint or a foreign state dict.

    Never runs code from the file (`weights_only=True`). Weights are memory-mapped, not copied
    into memory.

    Args:
        path: a `.pt`, `.pth`, `.th`, `.ckpt` or `.safetensors` file.
        arch: for a foreign file: its architecture, a name for `Network.named`; by default
            recognised from the weights.
        num_classes: for a foreign file: number of logits; by default taken from the weights.
        input_shape: for a foreign file: `(C, H, W)` of one image.
        module: the caller's module, if the file has the weights of one.
        leaves: classes of the module's parts to keep whole because they cannot be traced.

    Returns:
        The checkpoint; the notes of a foreign one contain only the name of its file.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, contains code, or its weights do
            not fit the network; the message lists them.
        ArchitectureError: the architecture is unknown or not recognised.
    """
    path = Path(path)
    content, header = _read(path)
    if header is None:
        known = module.state_dict().keys() if module is not None else frozenset()
        state = without_prefixes(state_dict_in(content, path), known)
        if module is not None:
            network = Network.of(module, input_shape or (3, 224, 224), leaves)
        else:
            network = recognise(state, str(path), arch, num_classes, input_shape)
        state = _in_its_precision(network, state)
        return _fitted(path, network, state, {"source": path.name}, network.unused_keys())
    if header.get("format") not in READS:
        raise CheckpointError(
            f"{path} has format {header.get('format')}: this version of gatepruner reads "
            f"formats {READS[0]} to {READS[-1]}; install the version that wrote it"
        )
    if arch is not None:
        raise CheckpointError(
            f"{path} contains its own architecture: leave out the architecture {arch}"
        )
    try:
        header = _upgraded(header)
        network = Network.from_json(header["network"], module, leaves)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged: its header does not describe a network and notes "
            f"({type(error).__name__}: {error})"
        ) from None
    bad = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if bad:
        raise CheckpointError(f"{path} is damaged: expected only tensors, {listed(bad)} is none")
    state = {key: tensor for key, tensor in content.items() if not key.startswith("path/")}
    learned = {key[5:]: tensor for key, tensor in content.items() if key not in state}
    checkpoint = _fitted(path, network, state, header["notes"])
    return replace(checkpoint, path=_path_of(path, network, header["path"], learned))


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """The content of a file, and its header if it is a gatepruner file."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: expected a file")
    if not path.is_file():
        names = sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES)
        near = difflib.get_close_matches(path.name, names, n=5, cutoff=0)
        hint = f"; the folder has {listed(near)}" if near else ""
        raise CheckpointError(f"there is no file {path}{hint}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: expected a checkpoint")
    content, text = read_file(path)
    if text is None:
        return content, None
    try:
        header = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged: its header is not valid JSON ({error})"
        ) from None
    if not (isinstance(header, dict) and isinstance(content, dict)):
        raise CheckpointError(f"{path} is damaged: expected a header and weights")
    return content, header


def _in_its_precision(network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A foreign state dict in the precision of the network, whatever its author saved it in."""
    kinds = {key: blank.dtype for key, blank in network.state().items()}
    return {
        key: tensor.to(kinds.get(key, tensor.dtype)) if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }


def _fitted(
    path: Path,
    network: Network,
    state: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    unused: Set[str] = frozenset(),
) -> Checkpoint:
    """A checkpoint with exactly the weights of the network; raises a `CheckpointError` if not."""
    expected = network.state()
    counters = {key: torch.tensor(0) for key in expected if key.endswith(COUNTER)}
    state = {**counters, **state}
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "extra": sorted(state.keys() - expected.keys() - unused),
        "wrong shape": [
            f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{kind}: {listed(keys, 20)}" for kind, keys in problems.items() if keys)
        raise CheckpointError(
            f"{path} does not fit {network}: {text}; name the architecture it was trained with",
            arch="NAME",
        )
    weights = MappingProxyType({key: state[key] for key in expected})
    checkpoint = Checkpoint(network, weights, dict(notes))
    try:
        checkpoint.gates  # noqa: B018 - raises if a gate is not finite
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return checkpoint
