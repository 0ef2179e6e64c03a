"""A learned path: the blocks that gates let go, in their order, and what was learned on the way."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Removal:
    """One block removed while gates were learned, and the state the others adapted to.

    Attributes:
        block: its name.
        gate: its gate g = relu(k) when it was removed.
        score: what decided that it goes next; lower goes sooner.
        loss: mean loss over the steps after its removal.
        step: steps taken before its removal.
        weights: what differs from the checkpoint's own weights since: gates, scales and shifts,
            and statistics of batch norm, by their state-dict keys; not to be written to.
    """

    block: str
    gate: float
    score: float
    loss: float
    step: int
    weights: Mapping[str, Tensor]

    def record(self) -> dict[str, Any]:
        """All but the weights, as plain JSON."""
        return {key: getattr(self, key) for key in RECORDED}


RECORDED = tuple(field.name for field in fields(Removal) if field.name != "weights")


@dataclass(frozen=True)
class Path:
    """Removals in the order in which they were learned."""

    removals: tuple[Removal, ...] = ()

    def __len__(self) -> int:
        return len(self.removals)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks in the order of their removal."""
        return tuple(removal.block for removal in self.removals)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Block, gate, score, loss and step of every removal, as plain JSON."""
        return [removal.record() for removal in self.removals]

    @property
    def gates(self) -> dict[str, float]:
        """The gate of every block of the path when it was removed."""
        return {removal.block: removal.gate for removal in self.removals}

    @property
    def scores(self) -> dict[str, float]:
        """The score that decided on the removal of every block of the path."""
        return {removal.block: removal.score for removal in self.removals}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was learned, as `INDEX/KEY`: by removal and state-dict key."""
        return {
            f"{index}/{key}": tensor
            for index, removal in enumerate(self.removals)
            for key, tensor in removal.weights.items()
        }

    def followed(self, plan: Collection[str]) -> tuple[Removal, ...]:
        """As much of the path as a plan holds, from the beginning and without a gap."""
        return tuple(itertools.takewhile(lambda removal: removal.block in plan, self.removals))

    def learned(self, plan: Collection[str]) -> Mapping[str, Tensor]:
        """The weights that were learned with the blocks of a plan removed; none if it leaves out
        the path's first block."""
        followed = self.followed(plan)
        return followed[-1].weights if followed else MappingProxyType({})

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Path:
        """The path of `records` and `tensors`, as those properties give them.

        Raises:
            KeyError, TypeError, ValueError: they are not those of a path.
        """
        records = list(records)
        weights: list[dict[str, Tensor]] = [{} for _ in records]
        for key, tensor in tensors.items():
            index, _, inner = key.partition("/")
            if not (index.isdecimal() and int(index) < len(weights)):
                raise ValueError(f"path/{key} belongs to no removal")
            weights[int(index)][inner] = tensor
        removals = (
            Removal(
                block=str(record["block"]),
                gate=float(record["gate"]),
                score=float(record["score"]),
                loss=float(record["loss"]),
                step=int(record["step"]),
                weights=MappingProxyType(learned),
            )
            for record, learned in zip(records, weights, strict=True)
        )
        return cls(tuple(removals))


NO_PATH = Path()
