"""The steps of a compression, as data, and what each of them does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gatepruner.compression.folder import Folder
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.errors import PlanError
from gatepruner.images.images import Images, Track
from gatepruner.images.normalization import Normalization
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.training import finetune
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.pruning.curve import Point, sweep
from gatepruner.pruning.goals import COSTS, Goal, blocks_for, most_needed
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, prune

SPARE = 3  # blocks that a path goes beyond a latency, since what is measured scatters


@dataclass(frozen=True)
class Request:
    """What a compression is asked for, and with what.

    Attributes:
        whole: the trained network.
        goal: what is to be reached.
        recipe: how.
        train: training images.
        held_out: training images that nothing is learned from, for a goal of loss.
        normalization: of all images.
        device: where to compute.
        meter: tells costs.
        folder: keeps what is done.
        watch: called with what happens.
        track: makes wrappers that show progress.
        on_stop: called when a signal asks to stop.
    """

    whole: Checkpoint
    goal: Goal
    recipe: CompressionRecipe
    train: Images
    held_out: Images | None
    normalization: Normalization
    device: torch.device
    meter: Meter
    folder: Folder
    watch: Callable[[Any], None]
    track: Callable[[str], Track]
    on_stop: Callable[[], None]

    @property
    def may_go(self) -> tuple[str, ...]:
        """The blocks that may be removed."""
        blocks = [block for block in self.whole.network.blocks if block.removable]
        only = self.recipe.gating.identity_only
        return tuple(block.name for block in blocks if block.identity or not only)

    def learning(self, step: str) -> dict[str, Any]:
        """The options of a run of learning that a step makes."""
        state = self.folder.state(step)
        return {
            "normalization": self.normalization,
            "device": self.device,
            "state": state,
            "resume": state is not None and state.exists(),
            "watch": self.watch,
            "on_stop": self.on_stop,
        }


def _gate(request: Request, whole: Checkpoint) -> Checkpoint:
    """With gates, and as much of a path as the goal can take."""
    cost = request.goal.kind if request.goal.kind in COSTS else "none"
    saved = request.meter.savings(cost) if cost != "none" else None
    recipe = replace(request.recipe.gating, cost=cost, blocks=_blocks(request))
    return learn_gates(
        whole,
        request.train.spread(request.recipe.gate_images),
        recipe,
        savings=saved,
        **request.learning("gated"),
    )


def _blocks(request: Request) -> int | None:
    """The most blocks that may have to go; `None` for all."""
    goal, meter, may_go = request.goal, request.meter, request.may_go
    if goal.kind == "blocks":
        return max(1, int(goal.amount))
    if goal.kind == "loss":
        return None
    whole = meter.cost(goal.kind, meter.whole)
    every = meter.savings(goal.kind)
    needed = most_needed(whole, goal.limit(whole), {name: every[name] for name in may_go})
    needed += SPARE if goal.kind == "latency" else 0
    return max(1, needed) if needed < len(may_go) else None


def _remove(request: Request, gated: Checkpoint) -> Checkpoint:
    """Without the blocks that the goal asks for, with what was learned meanwhile."""
    goal = request.goal
    saved = request.meter.savings(goal.kind) if goal.kind in COSTS else None
    ranking = rank(gated, saved=saved).among(request.may_go)

    def curve() -> Sequence[Point]:
        if request.held_out is None:
            raise PlanError("a goal of loss is measured on held-out images: give some")
        count = request.recipe.recalibrate
        points = sweep(
            gated,
            request.held_out,
            ranking,
            statistics=request.train.spread(count) if count else None,
            device=request.device,
            normalization=request.normalization,
            track=request.track("measuring the loss of accuracy"),
        )
        return list(points)

    reach = blocks_for(goal, request.meter.whole, ranking, request.meter, curve)
    request.watch(reach)
    return prune(gated, ranking, reach.removed)


def _fold(request: Request, removed: Checkpoint) -> Checkpoint:
    """Without a gate."""
    return fold_gates(removed)


def _recalibrate(request: Request, small: Checkpoint) -> Checkpoint:
    """With statistics of batch norm estimated anew."""
    return recalibrate(
        small,
        request.train.spread(request.recipe.recalibrate),
        device=request.device,
        normalization=request.normalization,
        whole=request.whole,
        track=request.track("recalibrating"),
    )


def _tune(request: Request, small: Checkpoint) -> Checkpoint:
    """With all weights trained further, the whole network being the teacher."""
    assert request.recipe.tuning is not None
    return finetune(
        small,
        request.train,
        request.recipe.tuning,
        teacher=request.whole,
        **request.learning("fine-tuned"),
    )


@dataclass(frozen=True)
class Step:
    """A step of a compression.

    Attributes:
        name: of the step, and of the file that keeps what it makes.
        make: from the network of the step before.
        wanted: whether a recipe asks for it.
        resumable: whether it is a long run that keeps a state of its own.
        shown: whether figures show it; where gates are still to be folded they do not.
    """

    name: str
    make: Callable[[Request, Checkpoint], Checkpoint]
    wanted: Callable[[CompressionRecipe], bool] = lambda recipe: True
    resumable: bool = False
    shown: bool = True


STEPS = (
    Step("whole", lambda request, whole: whole),
    Step("gated", _gate, resumable=True, shown=False),
    Step("removed", _remove, shown=False),
    Step("folded", _fold),
    Step("recalibrated", _recalibrate, wanted=lambda recipe: recipe.recalibrate > 0),
    Step("fine-tuned", _tune, wanted=lambda recipe: recipe.tuning is not None, resumable=True),
)
