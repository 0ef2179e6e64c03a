"""Checkpoint files: the project's own format written and read, files of others read.

The project's own file holds a format number, the network and the notes as JSON, and the
weights; see `docs/format.md`. It needs no class and no code to be read. Files of others are
state dicts; `gatepruner.files.recognition` tells their architecture.
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

FORMAT = 3


READS = (1, 2, 3)  # 2 brought the path, 3 its records in the header


def save(checkpoint: Checkpoint, path: str | Path, *, force: bool = False) -> Path:
    """Write a checkpoint in the project's own format, whole or not at all.

    Args:
        checkpoint: what to write.
        path: a file ending in `.pt` or `.safetensors`.
        force: whether a file that is there may be replaced.

    Raises:
        CheckpointError: the file is there, its suffix is another one, or the disk is full.
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
        raise CheckpointError(f"cannot write {path}: its notes are no JSON ({error})") from None
    return write_tensors(checkpoint.tensors, path, text, force=force)


def _path_of(
    file: Path,
    network: Network,
    records: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
) -> LearnedPath:
    """The path that a file holds, if it is one that the network can take."""
    wanted, odd = network.state(), []
    for key, tensor in tensors.items():
        inner = key.partition("/")[2]
        if inner not in wanted:
            odd.append(f"path/{key}")
        elif tensor.shape != wanted[inner].shape:
            odd.append(f"path/{key} {tuple(tensor.shape)}, not {tuple(wanted[inner].shape)}")
        elif not bool(tensor.isfinite().all()):
            odd.append(f"path/{key} is not finite")
    if odd:
        raise CheckpointError(f"{file} is damaged: its path does not fit {network}: {listed(odd)}")
    try:
        path = LearnedPath.of(records, tensors)
        network.without(path.blocks)  # refuses a block that is not there
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise CheckpointError(
            f"{file} is damaged: its path does not fit {network} ({type(error).__name__}: {error})"
        ) from None
    return path


def _upgraded(header: dict[str, Any]) -> dict[str, Any]:
    """A header of an earlier format as one of this format."""
    notes = dict(header["notes"].items())
    if header["format"] == 1:
        return {**header, "notes": notes, "path": []}
    if header["format"] == 2:  # the path's records were notes, also where the path was gone
        records = {one["gone"]: {"block": one["gone"], **one} for one in notes.pop("path", ())}
        if not header["path"] and records:
            gates = {name: one["gate"] for name, one in records.items()}
            notes["gates"] = {**notes.get("gates", {}), **gates}
        return {**header, "notes": notes, "path": [records[str(name)] for name in header["path"]]}
    return {**header, "notes": notes, "path": list(header["path"])}


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    module: nn.Module | None = None,
    leaves: Iterable[type[nn.Module]] = (),
) -> Checkpoint:
    """Read a checkpoint of the project's own or a state dict of someone else's.

    Never runs code from the file (`weights_only=True`). The weights stay on the disk, memory
    mapped, until they are used.

    Args:
        path: a `.pt`, `.pth`, `.th`, `.ckpt` or `.safetensors` file.
        arch: the architecture of a foreign file, as `Network.named` takes it; recognised from
            the weights where it is not given.
        num_classes: number of logits of a foreign file; taken from the weights where the
            architecture is recognised.
        input_shape: `(C, H, W)` of the images of a foreign file.
        module: the caller's module that an own file was made of, or whose weights the foreign
            file holds.
        leaves: module classes that tracing keeps whole, for a caller's module.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, wants code to run, or its
            weights do not fit; all of them are named.
        ArchitectureError: the architecture is not known or cannot be told.
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
        return _fitted(path, network, state, {"source": path.name}, network.unused_keys())
    if header.get("format") not in READS:
        raise CheckpointError(
            f"{path} has format {header.get('format')}: this version of gatepruner reads "
            f"formats {READS[0]} to {READS[-1]}; install the version that wrote it"
        )
    if arch is not None:
        raise CheckpointError(f"{path} says what it is: leave out --arch {arch}")
    try:
        header = _upgraded(header)
        network = Network.from_json(header["network"], module, leaves)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged: its header does not describe a network and notes "
            f"({type(error).__name__}: {error})"
        ) from None
    odd = [key for key, it in content.items() if not isinstance(it, Tensor)]
    if odd:
        raise CheckpointError(f"{path} is damaged: {listed(odd)} is no tensor")
    own = {key: tensor for key, tensor in content.items() if not key.startswith("path/")}
    learned = {key[5:]: tensor for key, tensor in content.items() if key not in own}
    fitted = _fitted(path, network, own, header["notes"])
    return replace(fitted, path=_path_of(path, network, header["path"], learned))


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """What a file holds, and its header if it is one of the project's own."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: a file was expected")
    if not path.is_file():
        names = sorted(it.name for it in path.parent.glob("*") if it.suffix in SUFFIXES)
        near = difflib.get_close_matches(path.name, names, n=5, cutoff=0)
        hint = f"; there is {listed(near)}" if near else ""
        raise CheckpointError(f"there is no file {path}{hint}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: a checkpoint was expected")
    content, text = read_file(path)
    if text is None:
        return content, None
    try:
        header = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its header is no JSON ({error})") from None
    if not (isinstance(header, dict) and isinstance(content, dict)):
        raise CheckpointError(f"{path} is damaged: a header and weights were expected")
    return content, header


def _fitted(
    path: Path,
    network: Network,
    state: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    unused: Set[str] = frozenset(),
) -> Checkpoint:
    """A checkpoint of the weights, if they are just those that the network takes."""
    wanted = network.state()
    counters = {key for key in wanted if key.endswith(COUNTER)}
    state = {**{key: torch.tensor(0) for key in counters}, **state}
    missing = sorted(wanted.keys() - state.keys())
    extra = sorted(state.keys() - wanted.keys() - unused)
    wrong = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    problems = [
        f"{what}: {listed(names, 20)}"
        for what, names in (("missing", missing), ("extra", extra), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit {network}: {'; '.join(problems)}; "
            "name the architecture it was trained with (--arch)"
        )
    weights = MappingProxyType({key: state[key] for key in wanted})
    checkpoint = Checkpoint(network, weights, dict(notes))
    try:
        checkpoint.gates  # noqa: B018 - refuses gates that are not numbers
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return checkpoint
