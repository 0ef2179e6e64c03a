"""What is asked for of a removal: a number of blocks, a cost, or a loss of accuracy at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gatepruner.cli.looking import Criterion

if TYPE_CHECKING:
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.goals import Measure, Target
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal


AMOUNT = typer.Option(metavar="AMOUNT")


@dataclass(frozen=True)
class Targets:
    """Targets, one of them.

    Attributes:
        target_macs: at most this many MACs, as in 50% or 62M.
        target_params: at most this many parameters, as in 50% or 400K.
        target_latency: at most this time on the device, as in 50% or 8.5ms.
        max_loss: as many blocks as can be removed within this many points of accuracy on held-out
            training images.
        latency_batch: images in a timed pass.
    """

    target_macs: Annotated[str | None, AMOUNT] = None
    target_params: Annotated[str | None, AMOUNT] = None
    target_latency: Annotated[str | None, AMOUNT] = None
    max_loss: Annotated[float | None, typer.Option(min=0, metavar="POINTS")] = None
    latency_batch: Annotated[int, typer.Option(min=1)] = 1

    @property
    def given(self) -> list[str]:
        """The targets that were given, as parts of a file's name."""
        named = [f"{cost}{text.rstrip('%')}" for cost, text in self._costs.items()]
        return named + ([f"loss{self.max_loss:g}"] if self.max_loss is not None else [])

    @property
    def _costs(self) -> dict[str, str]:
        costs = {
            "macs": self.target_macs,
            "params": self.target_params,
            "latency": self.target_latency,
        }
        return {cost: text for cost, text in costs.items() if text is not None}

    def __post_init__(self) -> None:
        if len(self.given) > 1:
            raise typer.BadParameter(
                "give one of --target-macs, --target-params, --target-latency and --max-loss"
            )

    @property
    def target(self) -> Target | None:
        """The cost that is asked for, if one is."""
        from gatepruner.pruning.goals import Target

        return next((Target.parse(cost, text) for cost, text in self._costs.items()), None)

    def measure(self, cost: str, device: str) -> Measure:
        """How that cost is found out."""
        from gatepruner.measuring.device import pick_device
        from gatepruner.pruning.goals import Measure

        return Measure(cost, str(pick_device(device)), self.latency_batch)

    def ranking(self, checkpoint: Checkpoint, criterion: Criterion, device: str) -> Ranking:
        """The order of removal: for a cost, gates are compared for what each block saves."""
        from gatepruner.measuring.latency import savings
        from gatepruner.pruning.ranking import rank

        target = self.target
        gone = set(checkpoint.path.blocks)
        left = checkpoint.network.removable
        plain = target is None or criterion.by != "gate" or gone.issuperset(left)
        if target is None or plain or not checkpoint.known_gates:
            return criterion.ranking(checkpoint)
        one = self.measure(target.cost, device)
        saved = savings(checkpoint.network, target.cost, one.device, one.batch)
        return rank(checkpoint, criterion.by, seed=criterion.seed, saved=saved)

    def count(
        self,
        checkpoint: Checkpoint,
        ranking: Ranking,
        curve: Callable[[], Sequence[Point]],
        terminal: Terminal,
        device: str,
    ) -> int:
        """How many blocks have to go, or may; says what can be reached first.

        Args:
            checkpoint: the whole network.
            ranking: the order in which its blocks are removed.
            curve: accuracy on held-out images, from no removal on, if it is asked for.
            terminal: where to say it.
            device: where latency is measured.
        """
        from gatepruner.pruning.goals import fewest, most_within, reach
        from gatepruner.report.tables import loss_text, reached_text

        target = self.target
        if target is None:
            points = curve()
            most = most_within(points, self.max_loss or 0.0)
            terminal.say(loss_text(points, most, self.max_loss or 0.0))
            return most
        measure = self.measure(target.cost, device)
        limits = reach(checkpoint.network, ranking, target, measure)
        terminal.say(f"reachable: {limits}")
        least = fewest(checkpoint.network, ranking, limits, measure)
        terminal.say(reached_text(limits, least))
        return least
