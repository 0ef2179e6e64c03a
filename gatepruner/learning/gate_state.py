"""The state of a run that learns gates, as a file keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from gatepruner.learning.learner import State
from gatepruner.networks.packing import Entry, Packed, Span, unpack
from gatepruner.networks.path import Path, Removal


class RemovalState(TypedDict):
    """A removal in the state of a run."""

    block: str
    gate: float
    score: float
    loss: float
    step: int
    spans: list[Span]


class GateState(State):
    """The state of a run that learns gates."""

    slopes: Tensor
    channel_slopes: dict[str, Tensor]
    costs: dict[str, float]
    table: dict[str, list[tuple[float, float]]]
    removals: list[RemovalState]
    entries: list[Entry]
    learned: dict[str, Tensor]


def of_removals(removals: Sequence[Removal], packed: Packed) -> dict[str, Any]:
    """Removals as a part of a state.

    Args:
        removals: the last ones have no weights while others adapt to them.
        packed: the weights of all others.
    """
    adapting = len(removals) - len(packed.spans)
    spans = [*packed.spans, *([] for _ in range(adapting))]
    records = [
        {**removal.record(), "spans": one} for removal, one in zip(removals, spans, strict=True)
    ]
    entries, learned = list(packed.entries), dict(packed.tensors)
    return {"removals": records, "entries": entries, "learned": learned}


def removals_in(snapshot: Mapping[str, Any]) -> tuple[list[Removal], Packed]:
    """The removals in a state, and the weights of those to which others have adapted."""
    spans = [record["spans"] for record in snapshot["removals"]]
    states = unpack(Packed(snapshot["entries"], spans, snapshot["learned"]))
    removals = list(Path.of_states(snapshot["removals"], states).removals)
    completed = max((at for at, one in enumerate(spans, 1) if one), default=0)
    return removals, Packed(snapshot["entries"], spans[:completed], snapshot["learned"])
