"""Goals: how many blocks have to go for a network to cost less, or may for it to be as good."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gatepruner.errors import PlanError
from gatepruner.networks.network import Network
from gatepruner.pruning.curve import Point
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.ranking import Ranking

COSTS = {"macs": "MACs", "params": "parameters", "latency": "latency"}
KINDS = ("blocks", *COSTS, "loss")
COUNTED = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
UNITS = {
    "blocks": {"": 1.0},
    "macs": COUNTED,
    "params": COUNTED,
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "loss": {"": 1.0},
}
EXAMPLES = {"blocks": "10", "latency": "60% or 8.5ms", "loss": "0.5"}


@dataclass(frozen=True)
class Goal:
    """What a removal is to reach.

    Attributes:
        kind: `"blocks"`, removed; `"macs"`, `"params"` or `"latency"`, what is left at most; or
            `"loss"`, of accuracy at most.
        amount: blocks, MACs, parameters, seconds or points (hundredths of accuracy); or a share
            of what the whole network costs.
        relative: whether it is a share.
    """

    kind: str
    amount: float
    relative: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlanError(f"unknown goal {self.kind!r}: expected one of {', '.join(KINDS)}")
        least = 0.0 if self.kind in ("blocks", "loss") else math.ulp(0.0)
        if not (math.isfinite(self.amount) and self.amount >= least):
            raise PlanError(f"a goal of {self.amount} {self.kind}: expected a positive number")
        if self.relative and self.kind not in COSTS:
            raise PlanError(f"a goal of {self.kind} cannot be a share of the whole network's")

    @classmethod
    def parse(cls, kind: str, text: str) -> Goal:
        """A goal as in `60%`, `62.7M` (also K, G), `8.5ms` (also s, us) or `10`.

        Raises:
            PlanError: it does not read as one of that kind.
        """
        match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*|%)", text.strip())
        number, unit = _number(match[1]) if match else None, match[2] if match else ""
        share = unit == "%" and kind in COSTS
        counted = kind != "blocks" or (number is not None and number.is_integer())
        if number is None or not (number or kind not in COSTS) or not counted:
            raise _unreadable(kind, text)
        if not share and unit not in UNITS[kind]:
            raise _unreadable(kind, text)
        return cls(kind, number / 100 if share else number * UNITS[kind][unit], share)

    def limit(self, whole: float) -> float:
        """The most that is left, where the whole network costs so much."""
        return self.amount * whole if self.relative else self.amount

    def text(self, amount: float, whole: float) -> str:
        """An amount for a reader, with its share of the whole network's."""
        return f"{amount_text(self.kind, amount)} ({amount / whole:.1%})"

    def __str__(self) -> str:
        """As part of a file's name: `drop10`, `macs50`, `latency8.5ms`, `loss0.5`."""
        if self.relative:
            return f"{self.kind}{100 * self.amount:g}"
        if self.kind == "latency":
            return f"latency{1e3 * self.amount:g}ms"
        return f"{'drop' if self.kind == 'blocks' else self.kind}{self.amount:g}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _unreadable(kind: str, text: str) -> PlanError:
    what = COSTS.get(kind, "blocks to remove" if kind == "blocks" else "points of accuracy")
    example = EXAMPLES.get(kind, "60% or 62.7M")
    return PlanError(f"cannot read {text!r} as {what}: expected a number as in {example}")


def amount_text(cost: str, amount: float) -> str:
    """`62.7 M MACs`, `8.52 ms`."""
    if cost == "latency":
        return f"{1e3 * amount:.2f} ms"
    scales = ((1e9, "G "), (1e6, "M "), (1e3, "K "))
    scale, unit = next((one for one in scales if amount >= one[0]), (1.0, ""))
    return f"{amount / scale:.4g} {unit}{COSTS[cost]}"


@dataclass(frozen=True)
class Reach:
    """What a goal asks for, between nothing removed and every block of a ranking removed.

    Attributes:
        goal: what is asked for.
        removed: how many blocks that takes, least important first.
        whole: cost of the whole network, or its accuracy in points.
        least: the same with every block of the ranking removed.
        reached: the same with `removed` blocks removed.
    """

    goal: Goal
    removed: int
    whole: float
    least: float
    reached: float

    @property
    def range(self) -> str:
        """What the ranking can reach."""
        if self.goal.kind in COSTS:
            low, high = (self.goal.text(it, self.whole) for it in (self.least, self.whole))
            return f"{COSTS[self.goal.kind]} from {low} to {high}"
        return f"accuracy from {self.least:.1f} to {self.whole:.1f} %"


def check_reachable(goal: Goal, network: Network, names: Sequence[str], meter: Meter) -> str:
    """What the removal of these blocks can reach, if the goal is within it.

    Raises:
        PlanError: the goal is outside it.
    """
    if goal.kind == "blocks" and goal.amount > len(names):
        raise PlanError(
            f"cannot remove {goal.amount:g} blocks: {network} has {len(names)} removable ones"
        )
    if goal.kind not in COSTS:
        return f"from 0 to {len(names)} blocks removed"
    whole, least = meter.costs(goal.kind, [network, network.without(names)])
    reach, limit = Reach(goal, len(names), whole, least, least), goal.limit(whole)
    if not least <= limit <= whole:
        raise PlanError(
            f"cannot reach {goal.text(limit, whole)}: {network} reaches {reach.range}; choose a "
            "target within this range"
        )
    return reach.range


def blocks_for(
    goal: Goal,
    network: Network,
    ranking: Ranking,
    meter: Meter,
    curve: Callable[[], Sequence[Point]],
) -> Reach:
    """How many blocks of a ranking a goal takes, least important first.

    The fewest that bring a cost down to it; or the most within a loss of accuracy.

    Args:
        goal: what is asked for.
        network: whose blocks go.
        ranking: in which order.
        meter: tells costs.
        curve: measures accuracy on held-out images, from nothing removed on, if asked.

    Raises:
        PlanError: no number of blocks reaches it.
    """
    if goal.kind == "loss":
        return _most_within(goal, curve())
    if goal.kind == "blocks":
        removed = len(ranking.first(int(goal.amount)))
        return Reach(goal, removed, 0.0, len(ranking.names), removed)
    check_reachable(goal, network, ranking.names, meter)
    whole, least = meter.costs(goal.kind, [network, network.without(ranking.names)])
    low, high = int(goal.limit(whole) < whole), len(ranking.names)
    while low < high:  # a cost falls with every block
        middle = (low + high) // 2
        if meter.cost(goal.kind, network.without(ranking.first(middle))) <= goal.limit(whole):
            high = middle
        else:
            low = middle + 1
    reached = meter.cost(goal.kind, network.without(ranking.first(low)))
    return Reach(goal, low, whole, least, reached)


def _most_within(goal: Goal, points: Sequence[Point]) -> Reach:
    accuracy = {point.removed: 100 * point.accuracy.accuracy for point in points}
    whole, last = points[0].removed, points[-1].removed
    within = [at for at, one in accuracy.items() if one >= accuracy[whole] - goal.amount - 1e-7]
    return Reach(goal, max(within), accuracy[whole], accuracy[last], accuracy[max(within)])


def most_needed(whole: float, limit: float, saved: Mapping[str, float]) -> int:
    """How many blocks have to go at most, in whatever order they do."""
    left, needed = whole, 0
    for one in sorted(saved.values()):
        if left <= limit:
            break
        left, needed = left - max(one, 0.0), needed + 1
    return needed
