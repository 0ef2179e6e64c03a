"""Examples: inputs with or without targets, as every verb takes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from gatepruner.errors import DataError
from gatepruner.images.scaling import Scaling
from gatepruner.images.task import CLASSIFICATION, Task
from gatepruner.models import Shape

Track = Callable[[Iterable[Any]], Iterable[Any]]
Kind = TypeVar("Kind", bound="Examples")


class Examples(ABC):
    """Examples in a fixed order: `Images`, or those of a caller's data set.

    Attributes:
        shape: `(C, H, W)` of every input.
        source: where the examples come from, for messages and reports.
        classes: name of each class, if the targets are classes.
        task: what the targets are.
        labelled: whether there are targets.
        prepared: whether inputs go into the network as they are; if not, they are uint8 pixels,
            which are augmented and normalised when they are used.
        in_memory: whether every example is in memory, so that looking at it costs nothing.
        resize: how the pictures were scaled; `None` if they were not, or if it is not known.
        fingerprint: equal for equal examples.
    """

    shape: Shape
    source: str
    classes: tuple[str, ...]
    resize: Scaling | None = None
    task: Task = CLASSIFICATION
    prepared: bool = False

    @property
    @abstractmethod
    def labelled(self) -> bool: ...

    @property
    @abstractmethod
    def in_memory(self) -> bool: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self: Kind, indices: Tensor) -> Kind:
        """The examples at `indices` `(M,)`."""

    def kept(self: Kind, track: Track = iter) -> Kind:
        """The examples as they are used several times: read once, if that can be and they fit."""
        return self

    @abstractmethod
    def to(self: Kind, device: torch.device) -> Kind:
        """The examples with their batches on the device."""

    @abstractmethod
    def batches(self, indices: Tensor, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs `(B, C, H, W)` and targets `(B, ...)`, in the order of the indices.

        Args:
            indices: `(M,)`.
            size: examples per batch.
            seed: seed of what is random in the examples themselves.
        """

    @property
    def alike(self) -> bool:
        """Whether all inputs are equal; if not in memory, only the first two are looked at."""
        some = self if self.in_memory else self.spread(2)
        ((first, _),) = some.batches(torch.arange(1), 1)
        batches = some.batches(torch.arange(len(some)), 128)
        return all(torch.equal(inputs, first.expand_as(inputs)) for inputs, _ in batches)

    def spread(self: Kind, limit: int | None) -> Kind:
        """At most `limit` examples, evenly spaced over the whole set."""
        if limit is None or limit >= len(self):
            return self
        return self.take(spread_over(len(self), limit))

    def held_out(self: Kind, count: int, seed: int) -> tuple[Kind, Kind | None]:
        """Split at random: all examples but `count`, and those `count` examples, if any.

        Raises:
            DataError: there are not more than `count` examples.
        """
        if not count:
            return self, None
        if count >= len(self):
            raise DataError(
                f"cannot hold out {count} images: {self.source} has only {len(self)}; choose fewer"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[count:].sort().values), self.take(order[:count].sort().values)


def spread_over(count: int, limit: int | None) -> Tensor:
    """The indices `(M,)` of at most `limit` of `count` examples, evenly spaced."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def mixed(seed: int, index: int) -> int:
    """A seed for every index, negative ones included, far from those of its neighbours."""
    return (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9) % 2**63
