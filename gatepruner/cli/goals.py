"""What is asked for of a removal: a number of blocks, a cost, or a loss of accuracy at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.goals import Measure, Target
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Goal:
    """One of the targets of the command line, or none."""

    macs: str | None = None
    params: str | None = None
    latency: str | None = None
    max_loss: float | None = None
    device: str = "auto"
    latency_batch: int = 1

    @property
    def given(self) -> list[str]:
        """The targets that were given, as parts of a file's name."""
        costs = {"macs": self.macs, "params": self.params, "latency": self.latency}
        named = [f"{name}{text.rstrip('%')}" for name, text in costs.items() if text is not None]
        return named + ([f"loss{self.max_loss:g}"] if self.max_loss is not None else [])

    def __post_init__(self) -> None:
        if len(self.given) > 1:
            raise typer.BadParameter(
                "give one of --target-macs, --target-params, --target-latency and --max-loss"
            )

    @property
    def target(self) -> Target | None:
        """The cost that is asked for, if one is."""
        from gatepruner.pruning.goals import Target

        for cost in ("macs", "params", "latency"):
            text = getattr(self, cost)
            if text is not None:
                return Target.parse(cost, text)
        return None

    def measure(self, cost: str) -> Measure:
        """How that cost is found out."""
        from gatepruner.measuring.device import pick_device
        from gatepruner.pruning.goals import Measure

        return Measure(cost, str(pick_device(self.device)), self.latency_batch)

    def ranking(self, checkpoint: Checkpoint, by: str, seed: int) -> Ranking:
        """The order of going: where a cost is to fall, by gate for the cost that it saves."""
        from gatepruner.measuring.latency import savings
        from gatepruner.pruning.ranking import rank

        target = self.target
        gone = set(checkpoint.path.blocks)
        left = checkpoint.network.removable
        if target is None or by != "gate" or gone.issuperset(left) or not checkpoint.known_gates:
            return rank(checkpoint, by, seed=seed)
        one = self.measure(target.cost)
        saved = savings(checkpoint.network, target.cost, one.device, one.batch)
        return rank(checkpoint, by, seed=seed, saved=saved)

    def count(
        self,
        checkpoint: Checkpoint,
        ranking: Ranking,
        curve: Callable[[], Sequence[Point]],
        terminal: Terminal,
    ) -> int:
        """How many blocks have to go, or may; says what can be reached first.

        Args:
            checkpoint: the whole network.
            ranking: the order in which its blocks go.
            curve: accuracy on held-out images, from no removal on, if it is asked for.
            terminal: where to say it.
        """
        from gatepruner.pruning.goals import fewest, most_within, reach
        from gatepruner.report.terminal import loss_text, reached_text

        target = self.target
        if target is None:
            points = curve()
            found = most_within(points, self.max_loss or 0.0)
            terminal.say(loss_text(points, found, self.max_loss or 0.0))
            return found
        measure = self.measure(target.cost)
        limits = reach(checkpoint.network, ranking, target, measure)
        terminal.say(f"reachable: {limits}")
        found = fewest(checkpoint.network, ranking, limits, measure)
        terminal.say(reached_text(limits, found))
        return found
