"""Block times: the latency of every network of a removal curve, from a few that are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gatepruner.measuring.latency import Latency
from gatepruner.pruning.groups import reduced
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.ranking import Ranking

AS_GOOD = 0.03  # greatest error of the model, of the whole network's latency, to take it
CHECKS = 4  # networks of a curve, besides the whole one, that are measured in any case


@dataclass(frozen=True)
class BlockTimes:
    """The latency of a network and of what is left of it, on one engine.

    What is not measured is modelled: each block saves its own time, whatever else is removed.

    Attributes:
        whole: of the whole network.
        saved: seconds that removing each block saves; slices count as 0, so that networks are
            measured where they save more.
        measured: by the names of the removed blocks.
    """

    whole: Latency
    saved: Mapping[str, float]
    measured: Mapping[frozenset[str], Latency]

    @property
    def conditions(self) -> str:
        """What the times depend on besides the network."""
        return self.whole.conditions

    @property
    def error(self) -> float:
        """The greatest error of the model where it was checked, of the whole network's latency."""
        off = (abs(self._sum(gone) - one.median) for gone, one in self.measured.items())
        return max(off, default=0.0) / self.whole.median

    def modelled(self, removed: Sequence[str]) -> float | None:
        """Seconds by the model; `None` if it is not as good as measuring."""
        return self._sum(frozenset(removed)) if self.error <= AS_GOOD else None

    def _sum(self, removed: frozenset[str]) -> float:
        return self.whole.median - sum(self.saved.get(name, 0.0) for name in removed)

    @property
    def account(self) -> str:
        """What was measured, what is modelled, and how good the model is."""
        off = f"{self.error:.1%} of the whole network's latency"
        if self.error > AS_GOOD:
            return (
                "measured for every network of the first order, since the sum of what blocks save "
                f"is off by up to {off}"
            )
        counts = ", ".join(str(count) for count in sorted(map(len, self.measured)))
        return (
            f"measured with {counts} blocks removed in the first order; otherwise modelled as that "
            f"of the whole network less what each block saves, which is off by at most {off} where "
            "it was checked"
        )

    def __str__(self) -> str:
        return f"latency ({self.conditions}): {self.account}"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON; times in seconds."""
        measured = [{"removed": sorted(gone), **asdict(one)} for gone, one in self.measured.items()]
        model = {"saved": dict(self.saved), "error": self.error, "as_good": self.error <= AS_GOOD}
        return {"whole": asdict(self.whole), "measured": measured, **model}


def block_times(meter: Meter, ranking: Ranking, counts: Sequence[int]) -> BlockTimes:
    """The latency along a removal order, as far as it has to be measured.

    Measured are the whole network, what each kind of block saves, and a few networks of the order,
    evenly spread. If the model differs from one of these by more than 3 % of the whole network's
    latency, all others are measured, too.

    Args:
        meter: of the whole network.
        ranking: the order of removal.
        counts: numbers of blocks removed.

    Raises:
        DeviceError: this machine does not have the device or so many threads.
        EngineError: the engine is not installed, or cannot run a network; names the operation.
    """
    network, saved = meter.whole, meter.savings("latency")
    (whole,) = meter.latencies([network])

    def measured(chosen: Sequence[int]) -> BlockTimes:
        plans = [ranking.first(count) for count in chosen]
        times = meter.latencies([reduced(network, plan) for plan in plans])
        return BlockTimes(whole, saved, dict(zip(map(frozenset, plans), times, strict=True)))

    checked = measured(_spread(sorted(counts)))
    return checked if checked.error <= AS_GOOD else measured(counts)


def _spread(counts: Sequence[int]) -> list[int]:
    """The first and the last of some numbers, and others evenly between them."""
    last = len(counts) - 1
    return sorted({counts[round(at * last / CHECKS)] for at in range(CHECKS + 1)})
