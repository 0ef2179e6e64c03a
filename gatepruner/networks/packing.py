"""The states of a path packed into few tensors: one for each state and type.

A state is small beside the network, but has a tensor for each of its many layers, and a path has as
many states as removals. What they have in common, names and shapes, is written once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Entry: TypeAlias = tuple[str, str, list[int]]  # key, type and shape of a tensor
Span: TypeAlias = tuple[int, int]  # first entry, and the one after the last


@dataclass(frozen=True)
class Packed:
    """States as plain JSON and flat tensors.

    Attributes:
        entries: key, type and shape of every tensor that is in a state.
        spans: which of the entries each state has.
        tensors: `(N,)`, the elements of a state's tensors of one type one after the other, in the
            order of the entries, as `STATE/TYPE`.
    """

    entries: Sequence[Entry]
    spans: Sequence[Sequence[Span]]
    tensors: Mapping[str, Tensor]


NOTHING = Packed((), (), {})


def pack(states: Sequence[Mapping[str, Tensor]], before: Packed = NOTHING) -> Packed:
    """Pack states, which `unpack` returns as they are, after others that are packed already."""
    entries = {
        (key, kind, tuple(shape)): at for at, (key, kind, shape) in enumerate(before.entries)
    }
    numbered: list[list[tuple[int, Tensor]]] = []
    for state in states:
        found = (
            (entries.setdefault((key, type_of(tensor), tuple(tensor.shape)), len(entries)), tensor)
            for key, tensor in state.items()
        )
        numbered.append(sorted(found, key=lambda place: place[0]))
    tensors = dict(before.tensors)
    for number, places in enumerate(numbered, start=len(before.spans)):
        for kind in dict.fromkeys(type_of(tensor) for _, tensor in places):
            flat = [tensor.detach().flatten() for _, tensor in places if type_of(tensor) == kind]
            tensors[f"{number}/{kind}"] = torch.cat(flat)
    spans = [list(_spans(at for at, _ in places)) for places in numbered]
    every = [(key, kind, list(shape)) for key, kind, shape in entries]
    return Packed(every, [*before.spans, *spans], tensors)


def unpack(packed: Packed) -> list[dict[str, Tensor]]:
    """The states that were packed.

    Raises:
        ValueError: the parts do not belong together.
    """
    unused = {*packed.tensors}
    states = []
    for number, spans in enumerate(packed.spans):
        state: dict[str, Tensor] = {}
        by_type: dict[str, list[Entry]] = {}
        for entry in _chosen(packed.entries, spans):
            by_type.setdefault(entry[1], []).append(entry)
        for kind, entries in by_type.items():
            name = f"{number}/{kind}"
            state |= _parted(packed.tensors.get(name), entries, name)
            unused.discard(name)
        states.append(state)
    if unused:
        raise ValueError(f"path/{min(unused)} does not belong to any removal")
    return states


def _parted(flat: Tensor | None, entries: Sequence[Entry], name: str) -> Iterator[Any]:
    """The keys and tensors of one type of a state."""
    sizes = [math.prod(shape) for _, _, shape in entries]
    if flat is None or flat.ndim != 1 or len(flat) != sum(sizes):
        found = "missing" if flat is None else f"{tuple(flat.shape)}"
        raise ValueError(f"path/{name} is {found}, expected {sum(sizes):,} numbers")
    if type_of(flat) != entries[0][1]:
        raise ValueError(f"path/{name} is of type {type_of(flat)}")
    for (key, _, shape), part in zip(entries, torch.split(flat, sizes), strict=True):
        yield key, part.reshape(shape).clone()  # keeps no other part in memory


def _chosen(entries: Sequence[Entry], spans: Sequence[Span]) -> list[Entry]:
    """The entries of spans, which have to be in order and within the entries."""
    bounds = [bound for span in spans for bound in span]
    if any(start >= stop for start, stop in spans) or bounds != sorted(bounds):
        raise ValueError(f"a path has the spans {list(map(list, spans))[:4]}, expected rising ones")
    if bounds and not 0 <= bounds[0] < bounds[-1] <= len(entries):
        raise ValueError(f"a path has {len(entries)} entries, not {bounds[-1]}")
    return [entry for start, stop in spans for entry in entries[start:stop]]


def _spans(numbers: Iterable[int]) -> Iterator[Span]:
    """Rising numbers as first and one after the last of those that follow each other."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1] + 1


def type_of(tensor: Tensor) -> str:
    """The name of a tensor's type, as in `float32`."""
    return str(tensor.dtype).removeprefix("torch.")
