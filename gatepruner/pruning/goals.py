"""Goals: a number of blocks to remove, a cost to reach, or a loss of accuracy to stay within."""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gatepruner.errors import PlanError
from gatepruner.measuring.latency import Latency
from gatepruner.networks.network import Network
from gatepruner.networks.slices import sorted_out
from gatepruner.pruning.curve import Point
from gatepruner.pruning.groups import reduced
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
    """What a removal should achieve.

    Attributes:
        kind: `"blocks"` to remove; `"macs"`, `"params"` or `"latency"` to reach; or `"loss"`, the
            loss of accuracy to stay within.
        amount: in blocks, MACs, parameters, seconds or percentage points; if relative, a fraction
            of the whole network's cost.
        relative: whether `amount` is a fraction.
    """

    kind: str
    amount: float
    relative: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlanError(f"unknown goal {self.kind!r}: expected one of {', '.join(KINDS)}")
        least = 0.0 if self.kind in ("blocks", "loss") else math.ulp(0.0)
        if not (math.isfinite(self.amount) and self.amount >= least):
            raise PlanError(
                f"a goal of {self.amount} {self.kind} is invalid: expected a positive number"
            )
        if self.relative and self.kind not in COSTS:
            raise PlanError(
                f"a goal of {self.kind} cannot be relative: expected one of {', '.join(COSTS)}"
            )

    @classmethod
    def parse(cls, kind: str, text: str) -> Goal:
        """Read a goal such as `60%`, `62.7M` (also K, G), `8.5ms` (also s, us) or `10`.

        Raises:
            PlanError: `text` is no goal of that kind.
        """
        match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*|%)", text.strip())
        number, unit = _number(match[1]) if match else None, match[2] if match else ""
        relative = unit == "%" and kind in COSTS
        whole_blocks = kind != "blocks" or (number is not None and number.is_integer())
        if number is None or not (number or kind not in COSTS) or not whole_blocks:
            raise _unreadable(kind, text)
        if not relative and unit not in UNITS[kind]:
            raise _unreadable(kind, text)
        return cls(kind, number / 100 if relative else number * UNITS[kind][unit], relative)

    def limit(self, whole: float) -> float:
        """The highest cost that reaches the goal, if the whole network costs `whole`."""
        return self.amount * whole if self.relative else self.amount

    def text(self, amount: float, whole: float) -> str:
        """A cost as text, with its share of the whole network's: `62.7 M MACs (50.0%)`."""
        return f"{amount_text(self.kind, amount)} ({amount / whole:.1%})"

    def __str__(self) -> str:
        """The goal as part of a file name: `drop10`, `macs50`, `params400K`, `loss0.5`."""
        if self.relative:
            return f"{self.kind}{100 * self.amount:g}"
        if self.kind == "latency":
            return f"latency{1e3 * self.amount:g}ms"
        if self.kind in COSTS:
            return f"{self.kind}{_scaled(self.amount).replace(' ', '')}"
        return f"{'drop' if self.kind == 'blocks' else self.kind}{self.amount:g}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _unreadable(kind: str, text: str) -> PlanError:
    quantity = COSTS.get(kind, "blocks to remove" if kind == "blocks" else "points of accuracy")
    example = EXAMPLES.get(kind, "60% or 62.7M")
    return PlanError(f"cannot read {text!r} as {quantity}: expected a number such as {example}")


def amount_text(cost: str, amount: float) -> str:
    """A cost as text: `62.7 M MACs`, `8.52 ms`."""
    if cost == "latency":
        return f"{1e3 * amount:.2f} ms" if amount >= 1e-3 else f"{1e3 * amount:.3g} ms"
    return f"{_scaled(amount)} {COSTS[cost]}"


def _scaled(amount: float) -> str:
    """`62.7 M`, `999`."""
    scales = ((1e9, " G"), (1e6, " M"), (1e3, " K"))
    scale, prefix = next((pair for pair in scales if amount >= pair[0]), (1.0, ""))
    return f"{amount / scale:.4g}{prefix}"


@dataclass(frozen=True)
class Reach:
    """How a ranking reaches a goal.

    Attributes:
        goal: what to reach.
        removed: number of blocks to remove, least important first.
        whole: cost of the whole network, or its accuracy in percent.
        least: the same after removing all blocks of the ranking.
        reached: the same after removing `removed` blocks.
        noun: what is removed, `"block"`, or `"unit"` where slices are among them.
    """

    goal: Goal
    removed: int
    whole: float
    least: float
    reached: float
    noun: str = "block"

    @property
    def range(self) -> str:
        """The costs or accuracies that the ranking can reach, as text."""
        if self.goal.kind in COSTS:
            low, high = (self.goal.text(cost, self.whole) for cost in (self.least, self.whole))
            return f"{low} to {high}"
        return f"accuracy of {self.least:.1f} to {self.whole:.1f} %"


TOLERANCE = 0.03  # of a latency, which varies from measurement to measurement


@dataclass(frozen=True)
class Remeasured:
    """A target latency, and what was measured again after the removal.

    Attributes:
        goal: what was asked for.
        whole: latency of the whole network, in seconds.
        small: latency of the smaller network, measured in turns with the whole one.
    """

    goal: Goal
    whole: Latency
    small: Latency

    @property
    def excess(self) -> float:
        """By which share the latency is above the target; negative if it is below."""
        return self.small.median / self.goal.limit(self.whole.median) - 1

    @property
    def met(self) -> bool:
        """Whether the target is met, to the precision of such measurements."""
        return self.excess <= TOLERANCE

    def __str__(self) -> str:
        limit, whole = self.goal.limit(self.whole.median), self.whole.median
        verdict = f"met within {TOLERANCE:.0%}" if self.met else f"missed by {self.excess:.1%}"
        return (
            f"measured again: {self.goal.text(self.small.median, whole)}; the target of "
            f"{self.goal.text(limit, whole)} is {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        """The target, what was measured, and whether it is met; times in seconds."""
        target = self.goal.limit(self.whole.median)
        times = {"whole": self.whole.median, "measured": self.small.median}
        return {"target": target, **times, "excess": self.excess, "met": self.met}


def remeasured(goal: Goal, meter: Meter, network: Network) -> Remeasured | None:
    """A target latency with what a network takes as measured anew; `None` for other goals."""
    if goal.kind != "latency":
        return None
    return Remeasured(goal, *meter.again([meter.whole, network]))


def check_count(count: float, network: Network, names: Sequence[str]) -> None:
    """Raise a `PlanError` if a network has fewer removable blocks than `count`."""
    if count > len(names):
        raise PlanError(
            f"cannot remove {count:g} blocks: {network} has only {len(names)} removable ones"
        )


def check_reachable(goal: Goal, network: Network, units: Sequence[str], meter: Meter) -> None:
    """Refuse a cost that removing units cannot reach.

    Args:
        goal: a cost to reach.
        network: the whole network.
        units: all that may be removed, blocks and slices.
        meter: measures costs.

    Raises:
        PlanError: the whole network costs less, or the one without all units costs more.
    """
    whole, least = meter.costs(goal.kind, [network, reduced(network, units)])
    reach, limit = Reach(goal, len(units), whole, least, least), goal.limit(whole)
    if least <= limit <= whole:
        return
    blocks, slices = sorted_out(units)
    means = advice = rest = ""
    if slices and not blocks:
        means, advice = " by removing channels alone", ", or learn a path that also removes blocks"
    if goal.kind == "latency" and limit < least:
        every = "units" if slices else "blocks"
        rest = f", since {meter.engine} takes the rest without any of its removable {every}"
    raise PlanError(
        f"cannot reach {goal.text(limit, whole)}: {network} can cost {reach.range}{means}{rest}; "
        f"choose a target within this range{advice}"
    )


def blocks_for(
    goal: Goal,
    network: Network,
    ranking: Ranking,
    meter: Meter,
    curve: Callable[[], Sequence[Point]],
) -> Reach:
    """How many blocks of a ranking to remove for a goal, least important first.

    The fewest that reach a cost, or the most that stay within a loss of accuracy.

    Args:
        goal: what to reach.
        network: the whole network.
        ranking: its blocks in the order of removal.
        meter: measures costs.
        curve: called only for a goal of loss: measures accuracy on held-out images, beginning
            with the whole network.

    Raises:
        PlanError: no number of blocks reaches the goal.
    """
    if goal.kind == "loss":
        return replace(_most_within(goal, curve()), noun=ranking.noun)
    if goal.kind == "blocks":
        removed = len(ranking.first(int(goal.amount)))
        return Reach(goal, removed, 0.0, len(ranking.names), removed, ranking.noun)
    check_reachable(goal, network, ranking.names, meter)
    return _fewest_within(goal, network, ranking, meter)


def _fewest_within(goal: Goal, network: Network, ranking: Ranking, meter: Meter) -> Reach:
    """The fewest removals that reach a cost; every removal reduces it.

    What each block saves alone says at which number of blocks to begin, and the next ones are
    tried in turn, so that few networks are measured. Numbers of units are found by bisection.
    """
    whole, least = meter.costs(goal.kind, [network, reduced(network, ranking.names)])
    limit, blocks = goal.limit(whole), ranking.noun == "block"
    saved = meter.savings(goal.kind) if blocks else {}
    likely = _first_within(limit, whole, [saved.get(name, 0.0) for name in ranking.names])
    low, high = int(limit < whole), len(ranking.names)
    while low < high:
        middle = min(max(likely, low), high - 1) if blocks else (low + high) // 2
        if meter.cost(goal.kind, reduced(network, ranking.first(middle))) <= limit:
            high = middle
        else:
            low = middle + 1
    reached = meter.cost(goal.kind, reduced(network, ranking.first(low)))
    return Reach(goal, low, whole, least, reached, ranking.noun)


def _first_within(limit: float, whole: float, saved: Sequence[float]) -> int:
    """After how many removals the cost is at most `limit`, if each saves what it saves alone."""
    left = itertools.accumulate(saved, operator.sub, initial=whole)
    return next((count for count, cost in enumerate(left) if cost <= limit), len(saved))


def _most_within(goal: Goal, points: Sequence[Point]) -> Reach:
    percent = {point.removed: 100 * point.accuracy.accuracy for point in points}
    whole, last = percent[points[0].removed], percent[points[-1].removed]
    most = max(
        count for count, accuracy in percent.items() if accuracy >= whole - goal.amount - 1e-7
    )
    return Reach(goal, most, whole, last, percent[most])


def most_needed(whole: float, limit: float, saved: Mapping[str, float]) -> int:
    """The most blocks that any order of removal needs to reach a cost of `limit`.

    Args:
        whole: cost of the whole network.
        limit: cost to reach.
        saved: what the removal of each block saves.
    """
    cost, needed = whole, 0
    for saving in sorted(saved.values()):
        if cost <= limit:
            break
        cost, needed = cost - max(saving, 0.0), needed + 1
    return needed
