"""Checkpoint files: writing and reading gatepruner's format, and reading foreign state dicts.

A gatepruner file contains a format number, the network and the notes as JSON, and the weights;
see `docs/format.md`. Reading it needs no class and runs no code. The architecture of a foreign
state dict is recognised by `gatepruner.files.recognition`.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from gatepruner.documents import checked, parsed
from gatepruner.errors import ArchitectureError, CheckpointError, listed, visible
from gatepruner.files.folders import HUB, INDEX, Folder, local, read_folder, read_shards
from gatepruner.files.foreign import COUNTER, has_built, pickled_modules, state_dicts, word
from gatepruner.files.huggingface import read_model
from gatepruner.files.paths import PREFIX, PackedRemovalDocument, packed_path, path_in
from gatepruner.files.recognition import Match, Wanted, matched
from gatepruner.files.settings import differing
from gatepruner.files.storage import SUFFIXES, read_file, write_tensors
from gatepruner.models import Shape
from gatepruner.networks.base import BaseDocument
from gatepruner.networks.checkpoint import Checkpoint, Notes
from gatepruner.networks.edits import EditsDocument, NarrowedEditsDocument
from gatepruner.networks.graph import remarks_on
from gatepruner.networks.importing import Brought, recorded
from gatepruner.networks.network import Network
from gatepruner.networks.packing import Entry
from gatepruner.networks.path import RemovalDocument
from gatepruner.networks.weights import cast, refuse_odd, refuse_unusable


class NetworkDocument(msgspec.Struct):
    """A network as JSON."""

    base: BaseDocument
    edits: EditsDocument


class NarrowedDocument(NetworkDocument):
    """A network with narrowed layers as JSON."""

    edits: NarrowedEditsDocument


class Header1(msgspec.Struct):
    """The header of a file of format 1."""

    format: int
    network: NetworkDocument
    notes: Notes


class Header2(Header1):
    """The header of a file of format 2."""

    path: list[str]


class Header3(Header1):
    """The header of a file of format 3."""

    path: list[RemovalDocument]


class Header4(Header1):
    """The header of a file of format 4."""

    network: NarrowedDocument
    path: list[PackedRemovalDocument]
    states: list[Entry]


HEADERS: dict[int, type[Header1]] = {1: Header1, 2: Header2, 3: Header3, 4: Header4}
FORMAT = 4  # 2 added the path, 3 its records in the header, 4 packs its states; narrowed layers
READS = tuple(HEADERS)


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


def _upgraded(header: dict[str, Any]) -> dict[str, Any]:
    """A header as in format 3 or 4, from one in any format."""
    notes, path = dict(header["notes"].items()), []
    if header["format"] == 2:  # the notes held the path's records, even without a path
        records = {
            record["gone"]: {"block": record["gone"], **record} for record in notes.pop("path", ())
        }
        path = [records[str(name)] for name in header["path"]]
        if records and not path:
            gates = {name: record["gate"] for name, record in records.items()}
            notes["gates"] = {**notes.get("gates", {}), **gates}
    elif header["format"] > 2:
        path = list(header["path"])
    return {**header, "notes": notes, "path": path}


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    module: nn.Module | str | None = None,
    leaves: Iterable[type[nn.Module] | str] = (),
    weights: str | None = None,
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
        return _load_folder(path, wanted, weights)
    content, header = _read(path)
    if header is None:
        wanted = _with(brought, wanted)
        if arch is not None and arch.startswith(HUB):
            return _load_model(path, content, read_folder(local(arch)), wanted)
        return _foreign(path, content, wanted, weights, brought.notes)
    _check_header(path, header, arch)
    try:
        header = _upgraded(header)
        _check_brought(path, header, brought)
        with _naming(path):
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
    with _naming(path):
        refuse_odd(content)
    checkpoint = _fitted(path, network, state, {**header["notes"], **brought.notes})
    with _naming(path):
        refuse_unusable(checkpoint.weights)
        cast(checkpoint.weights, network.state())
    return replace(checkpoint, path=path_in(path, network, header, learned))


def _check_header(path: Path, header: Mapping[str, Any], arch: str | None) -> None:
    """Raise a `CheckpointError` unless a header is of a known format and of its schema."""
    if type(header.get("format")) is not int or header["format"] not in READS:
        raise CheckpointError(
            f"{path} has format {header.get('format')!r}: this version of gatepruner reads "
            f"formats {READS[0]} to {READS[-1]}; install the version that wrote it"
        )
    if arch is not None:
        raise CheckpointError(
            f"{path} contains its own architecture: leave out the architecture {arch}"
        )
    checked(header, HEADERS[header["format"]], f"the header of {path}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Begin what is said of an architecture or of weights with the name of their file."""
    try:
        yield
    except (ArchitectureError, CheckpointError) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error.args[0]}", **error.arguments) from None


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


def _read(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """The content of a file, and its header if it is a gatepruner file."""
    if not os.path.isfile(path):
        names = sorted(file.name for file in path.parent.glob("*") if file.suffix in SUFFIXES)
        near = difflib.get_close_matches(path.name, names, n=5, cutoff=0)
        hint = f"; the folder has {listed(near)}" if near else ""
        raise CheckpointError(f"there is no file {path}{hint}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: expected a checkpoint")
    if path.name.endswith(INDEX):
        return read_shards(path, lambda shard: read_file(shard)[0]), None
    content, text = read_file(path)
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


def _load_folder(path: Path, wanted: Wanted, weights: str | None) -> Checkpoint:
    """The checkpoint in a folder as it is written for a hub; the caller's words come first."""
    folder = read_folder(path)
    content, header = _read(folder.weights)
    if header is not None:
        return load(folder.weights)
    if not (folder.arch or wanted.arch):
        return _load_model(path, content, folder, wanted)
    wanted = Wanted(
        wanted.arch or folder.arch,
        wanted.num_classes or folder.num_classes,
        wanted.input_shape or folder.input_shape,
    )
    checkpoint = _foreign(folder.weights, content, wanted, weights, {})
    notes = {**folder.notes, **checkpoint.notes, "source": path.name}
    return replace(checkpoint, notes=notes)


def _load_model(path: Path, content: Any, folder: Folder, wanted: Wanted) -> Checkpoint:
    """The checkpoint of a model of transformers, whose weights a file has."""
    tensors = isinstance(content, dict) and all(isinstance(it, Tensor) for it in content.values())
    if not tensors:
        raise CheckpointError(f"{path} has something else than tensors: expected a state dict")
    with _naming(path):
        model = read_model(folder.config, folder.processor, content, wanted)
    notes = {"source": path.name, **model.notes}
    return _fitted(path, Network(model.base), model.weights, notes)


def _foreign(
    path: Path, content: Any, wanted: Wanted, weights: str | None, known: Mapping[str, Any]
) -> Checkpoint:
    """A checkpoint from the content of a foreign file, with what is to be noted, too."""
    try:
        dicts = state_dicts(content)
        if not dicts:
            raise CheckpointError(f"contains {_described(content)}: expected a state dict")
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    try:
        with _naming(path):
            match = matched(dicts, str(path), wanted, weights)
    except (ArchitectureError, CheckpointError):
        if has_built(content):
            raise CheckpointError(
                f"{path} contains a network that gatepruner has built (a graph module), which does "
                "not tell what was removed from it: expected the file that gatepruner.save wrote"
            ) from None
        raise
    _refuse_differing(path, match, content)
    expected = match.network.state()
    with _naming(path):
        refuse_unusable(match.weights)
        state, casts = cast(match.weights, expected)
    notes: dict[str, Any] = {"source": visible(path.name), **known}
    if match.others:
        notes["weights"] = match.name
    remarks = [*match.remarks, *casts, *remarks_on(match.network.kept)]
    if remarks:
        notes["remarks"] = remarks
    return _fitted(path, match.network, state, notes)


def _refuse_differing(path: Path, match: Match, content: Any) -> None:
    """Raise a `CheckpointError` if a pickled module has other layers than the network."""
    problems = differing(match.network, match.layers(pickled_modules(content)))
    if problems:
        name = match.candidate.name or match.network
        raise CheckpointError(
            f"{path} has a module whose weights fit {name}, but not its layers: "
            f"{listed(problems, 4)}; name another architecture, or pass the module",
            arch="NAME",
        )


def _described(content: Any) -> str:
    """What a file without tensors has."""
    if isinstance(content, dict):
        return f"a dictionary without tensors ({listed(map(word, content))})"
    return f"a {type(content).__name__}"


def _fitted(
    path: Path,
    network: Network,
    state: Mapping[str, Tensor],
    notes: Mapping[str, Any],
) -> Checkpoint:
    """A checkpoint with exactly the weights of the network; raises a `CheckpointError` if not."""
    expected = network.state()
    counters = {key: torch.tensor(0) for key in expected if key.endswith(COUNTER)}
    state = {**counters, **state}
    problems = {
        "missing": sorted(expected.keys() - state.keys()),
        "extra": sorted(state.keys() - expected.keys()),
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
    with _naming(path):
        checkpoint.gates  # noqa: B018 - raises if a gate is not finite
    return checkpoint
