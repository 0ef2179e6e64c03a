"""The learned path in a checkpoint file; see `docs/format.md`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import CheckpointError, PlanError, listed
from gatepruner.networks.network import Network
from gatepruner.networks.packing import Entry, Packed, Span, pack, unpack
from gatepruner.networks.path import Path as LearnedPath
from gatepruner.networks.path import RemovalDocument
from gatepruner.networks.slices import extent, sorted_out

PREFIX = "path/"  # of the names of tensors


class PackedRemovalDocument(RemovalDocument):
    """The record of a removal as JSON, and which of the tensors of `states` its state has."""

    state: list[Span]


def packed_path(path: LearnedPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A path as fields of a header and tensors."""
    packed = pack([removal.weights for removal in path.removals])
    records = [
        {**record, "state": spans} for record, spans in zip(path.records, packed.spans, strict=True)
    ]
    tensors = {PREFIX + name: tensor for name, tensor in packed.tensors.items()}
    return {"path": records, "states": list(packed.entries)}, tensors


def path_in(
    file: Path, network: Network, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> LearnedPath:
    """The learned path in a file.

    Args:
        file: for messages.
        network: of the file.
        header: of the file, with `states` if the path is packed.
        tensors: those of the path without `PREFIX`.

    Raises:
        CheckpointError: the path does not fit the network.
    """
    problems = list(_misfits(network, header.get("states"), tensors))
    if problems:
        raise CheckpointError(
            f"{file} is damaged: its path does not fit {network}: {listed(problems)}"
        )
    try:
        names = [record["block"] for record in header["path"]]
        _check_numbers(header["path"])
        _check_slices(network.state(), names)
        network.without(sorted_out(names)[0])  # raises if it lacks one
        if "states" in header:
            spans = [record["state"] for record in header["path"]]
            states = unpack(Packed(header["states"], spans, tensors))
            return LearnedPath.of_states(header["path"], states)
        return LearnedPath.of(header["path"], tensors)
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise CheckpointError(
            f"{file} is damaged: its path does not fit {network} ({type(error).__name__}: {error})"
        ) from None


def _check_numbers(records: Iterable[Mapping[str, Any]]) -> None:
    """Raise a `ValueError` if a number in the records of a path is not finite."""
    for record in records:
        bad = [key for key in ("gate", "score", "loss") if not math.isfinite(record[key])]
        if bad:
            raise ValueError(f"the {listed(bad)} of {record['block']} is not finite")


def _check_slices(state: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Raise a `ValueError` if a network has no such layer or channels, or would lose all of them.

    A few letters can name a million channels, so they are counted before any slice is made.
    """
    counts: Counter[str] = Counter()
    for width, highest, count in filter(None, map(extent, names)):
        weight = state.get(f"{width}.weight")
        if weight is None or not weight.ndim:
            raise ValueError(f"there is no layer {width}, whose channels the path removes")
        counts[width] += count
        if max(highest, counts[width]) >= len(weight):
            raise ValueError(f"{width} has {len(weight)} channels, too few for the path")


def _misfits(
    network: Network, states: list[Entry] | None, tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    """What of a path does not fit a network, or is not finite."""
    known = network.state()
    found = (
        [
            (key.partition("/")[2], key, tensor.dtype, tensor.shape)
            for key, tensor in tensors.items()
        ]
        if states is None
        else [(key, key, _dtype(kind), shape) for key, kind, shape in states]
    )
    for key, name, kind, shape in found:
        if key not in known:
            yield f"{PREFIX}{name} is unknown"
        elif tuple(shape) != tuple(known[key].shape):
            yield f"{PREFIX}{name} is {tuple(shape)}, not {tuple(known[key].shape)}"
        elif getattr(kind, "is_floating_point", None) != known[key].is_floating_point():
            yield f"{PREFIX}{name} is of {kind}, not {known[key].dtype}"
    if states is not None and len({(key, kind) for key, kind, _ in states}) < len(states):
        yield "a tensor is listed twice"
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            yield f"{PREFIX}{name} is not finite"


def _dtype(name: str) -> torch.dtype | str:
    """The type of this name, or the name if there is no such type."""
    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else name
