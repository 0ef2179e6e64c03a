"""What a removal is to reach, as options: one goal, or the blocks themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gatepruner.pruning.goals import Goal, Reach

AMOUNT = typer.Option(metavar="AMOUNT")
GOALS = "--drop, --target-macs, --target-params, --target-latency and --max-loss"


@dataclass(frozen=True)
class Goals:
    """Goal, one of these.

    Attributes:
        drop: remove this many blocks, least important first; along a path of units, `prune`
            removes this many units.
        target_macs: remove blocks until at most this many MACs are left, as in 50% or 62M.
        target_params: the same for parameters, as in 50% or 400K.
        target_latency: the same for the time of a pass on the device, as in 50% or 8.5ms.
        max_loss: remove as many blocks as can be within this many points of accuracy on held-out
            training images.
    """

    drop: Annotated[int | None, typer.Option(min=0)] = None
    target_macs: Annotated[str | None, AMOUNT] = None
    target_params: Annotated[str | None, AMOUNT] = None
    target_latency: Annotated[str | None, AMOUNT] = None
    max_loss: Annotated[float | None, typer.Option(min=0, metavar="POINTS")] = None

    def __post_init__(self) -> None:
        if len(self.given) > 1:
            raise typer.BadParameter(f"give one of {GOALS}")

    @property
    def given(self) -> dict[str, str]:
        """The amounts that were given, by the kind of goal."""
        amounts = {
            "blocks": self.drop,
            "macs": self.target_macs,
            "params": self.target_params,
            "latency": self.target_latency,
            "loss": self.max_loss,
        }
        return {kind: str(amount) for kind, amount in amounts.items() if amount is not None}

    @property
    def goal(self) -> Goal | None:
        """The goal that was given, if one was."""
        from gatepruner.pruning.goals import Goal

        return next((Goal.parse(kind, text) for kind, text in self.given.items()), None)


def reached_text(reach: Reach) -> str:
    """What a goal takes, and what else could be reached."""
    from gatepruner.report.tables import counted

    goal = reach.goal
    if goal.kind == "blocks":
        return f"goal: {counted(reach.removed, reach.noun)} removed"
    if goal.kind == "loss":
        asked = f"at most {goal.amount:g} points lower"
        reached = f"{reach.reached:.1f} %"
    else:
        asked = goal.text(goal.limit(reach.whole), reach.whole)
        reached = goal.text(reach.reached, reach.whole)
    return (
        f"reachable: {reach.range}\n"
        f"goal: {asked}, reached by removing {counted(reach.removed, reach.noun)} ({reached})"
    )
