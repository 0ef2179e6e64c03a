"""A learned path: blocks in the order of their removal, and the weights learned after each."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from torch import Tensor

from gatepruner.networks.slices import slice_named


@dataclass(frozen=True)
class Removal:
    """The removal of one unit while gates were learned, and the weights learned after it.

    Attributes:
        block: name of the block, or of a slice of an inner width.
        gate: its gate g = relu(k) when it was removed.
        score: its score when it was removed, the lowest of all blocks.
        loss: mean loss over the steps after its removal.
        step: steps taken before its removal.
        weights: the weights that differ from the checkpoint's after those steps (gates, scales,
            shifts, batch-norm statistics), by state-dict key; do not modify them.
    """

    block: str
    gate: float
    score: float
    loss: float
    step: int
    weights: Mapping[str, Tensor]

    def record(self) -> dict[str, Any]:
        """Everything but the weights, as plain JSON."""
        return {key: getattr(self, key) for key in RECORDED}


class RemovalDocument(msgspec.Struct):
    """The record of a removal as JSON."""

    block: str
    gate: float
    score: float
    loss: float
    step: Annotated[int, msgspec.Meta(ge=0)]


RECORDED = tuple(field.name for field in fields(Removal) if field.name != "weights")


@dataclass(frozen=True)
class Path:
    """The removals that gates have learned, in order."""

    removals: tuple[Removal, ...] = ()

    def __len__(self) -> int:
        return len(self.removals)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the removed blocks, in the order of removal."""
        return tuple(removal.block for removal in self.removals)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Block, gate, score, loss and step of every removal, as plain JSON."""
        return [removal.record() for removal in self.removals]

    @property
    def gates(self) -> dict[str, float]:
        """The gate that every removed block had when it was removed; slices have none of theirs."""
        removals = (one for one in self.removals if slice_named(one.block) is None)
        return {removal.block: removal.gate for removal in removals}

    @property
    def sliced(self) -> bool:
        """Whether slices are among what it removes."""
        return any(map(slice_named, self.blocks))

    @property
    def turns(self) -> tuple[int, ...]:
        """The numbers of units, from 0 on, after which the others have adapted."""
        steps = [removal.step for removal in self.removals]
        ends = [at for at in range(1, len(steps)) if steps[at] != steps[at - 1]]
        return (0, *ends, *([len(steps)] if steps else []))

    @property
    def scores(self) -> dict[str, float]:
        """The score that every removed block had when it was removed."""
        return {removal.block: removal.score for removal in self.removals}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The learned weights of all removals, as `INDEX/KEY` with the state-dict key."""
        return {
            f"{index}/{key}": tensor
            for index, removal in enumerate(self.removals)
            for key, tensor in removal.weights.items()
        }

    def followed(self, plan: Collection[str]) -> tuple[Removal, ...]:
        """The removals at the start of the path, as long as their blocks are in the plan."""
        return tuple(itertools.takewhile(lambda removal: removal.block in plan, self.removals))

    def learned(self, plan: Collection[str]) -> Mapping[str, Tensor]:
        """The weights learned after the last removal that the plan follows; empty without one.

        Units that are removed together share the weights of the last one of them.
        """
        followed = len(self.followed(plan))
        later = self.removals[followed - 1 :] if followed else ()
        return next((one.weights for one in later if one.weights), MappingProxyType({}))

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Path:
        """The path with these records and tensors, as the properties of these names return them.

        Raises:
            KeyError, TypeError, ValueError: they do not describe a path.
        """
        records = list(records)
        states: list[dict[str, Tensor]] = [{} for _ in records]
        for key, tensor in tensors.items():
            index, _, inner = key.partition("/")
            if not (index.isdecimal() and int(index) < len(states)):
                raise ValueError(f"path/{key} does not belong to any removal")
            states[int(index)][inner] = tensor
        return cls.of_states(records, states)

    @classmethod
    def of_states(
        cls, records: Iterable[Mapping[str, Any]], states: Iterable[Mapping[str, Tensor]]
    ) -> Path:
        """The path with these records and the weights learned after each removal.

        Raises:
            KeyError, TypeError, ValueError: they do not describe a path.
        """
        removals = (
            Removal(
                block=str(record["block"]),
                gate=float(record["gate"]),
                score=float(record["score"]),
                loss=float(record["loss"]),
                step=int(record["step"]),
                weights=MappingProxyType(dict(learned)),
            )
            for record, learned in zip(records, states, strict=True)
        )
        return cls(tuple(removals))


NO_PATH = Path()
