"""The steps of a compression, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gatepruner import processes
from gatepruner.compression.folder import Folder
from gatepruner.compression.recipe import CompressionRecipe
from gatepruner.compression.record import Choice, Trial
from gatepruner.errors import TrainingError
from gatepruner.images.examples import Examples, Track
from gatepruner.images.normalization import Normalization
from gatepruner.learning.gates import learn_gates
from gatepruner.learning.recipes import Recipe
from gatepruner.learning.training import finetune
from gatepruner.learning.units import every_unit, removable_blocks
from gatepruner.measuring.agreement import agreement
from gatepruner.measuring.recalibration import recalibrate
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.norms import statistics
from gatepruner.networks.slices import slice_named
from gatepruner.pruning.curve import Point, sweep
from gatepruner.pruning.goals import COSTS, Goal, blocks_for, most_needed
from gatepruner.pruning.groups import reduced
from gatepruner.pruning.meter import Meter
from gatepruner.pruning.ranking import rank
from gatepruner.pruning.surgery import fold_gates, prune, remove

SPARE = 3  # more blocks on the path than a latency seems to need, since measurements vary


@dataclass(frozen=True)
class Request:
    """What to compress, and how; see `compress`.

    Attributes:
        whole: the trained network.
        goal: what to reach.
        recipe: how to compress.
        train: training images.
        held_out: training images that are not in `train`, to choose on.
        normalization: of all images.
        device: where to compute.
        meter: measures costs.
        folder: keeps the finished steps.
        watch: called with every moment, reach, trial, choice and record.
        track: maps a description to a wrapper of an iterable that shows progress.
        on_stop: called when a signal asks a learning step to stop.
    """

    whole: Checkpoint
    goal: Goal
    recipe: CompressionRecipe
    train: Examples
    held_out: Examples | None
    normalization: Normalization
    device: torch.device
    meter: Meter
    folder: Folder
    watch: Callable[[Any], None]
    track: Callable[[str], Track]
    on_stop: Callable[[], None]

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of the blocks that may be removed."""
        return removable_blocks(self.whole.network, self.recipe.gating)

    def learning(self, step: str) -> dict[str, Any]:
        """Arguments of the learning run of a step."""
        state = self.folder.state(step)
        return {
            "normalization": self.normalization,
            "device": self.device,
            "state": state,
            "resume": state is not None and processes.agreed(state.exists),
            "watch": self.watch,
            "on_stop": self.on_stop,
        }


def _gate(request: Request, whole: Checkpoint) -> Checkpoint:
    """Add gates and learn a path that is long enough for the goal."""
    cost = request.goal.kind if request.goal.kind in COSTS else "none"
    recipe = replace(request.recipe.gating, cost=cost, blocks=_blocks(request))
    return learn_gates(
        whole,
        request.train.spread(request.recipe.gate_images).kept(),
        recipe,
        meter=request.meter,
        **request.learning("gated"),
    )


def _blocks(request: Request) -> int | None:
    """The most blocks that the goal may need to remove; `None` for all."""
    goal, meter, candidates = request.goal, request.meter, request.candidates
    if goal.kind == "blocks":
        return max(1, int(goal.amount))
    if goal.kind == "loss":
        return None
    if request.recipe.gating.units != "blocks":
        smallest = reduced(meter.whole, every_unit(meter.whole, request.recipe.gating))
        whole, least = meter.costs(goal.kind, [meter.whole, smallest])
        share = (whole - goal.limit(whole)) / max(whole - least, 1e-12)
        return min(max(1, math.ceil(share * len(candidates)) + SPARE), len(candidates))
    whole, savings = meter.cost(goal.kind, meter.whole), meter.savings(goal.kind)
    saved = {name: savings[name] for name in candidates}
    needed = most_needed(whole, goal.limit(whole), saved)
    needed += SPARE if goal.kind == "latency" else 0
    return max(1, needed) if needed < len(candidates) else None


def _remove(request: Request, gated: Checkpoint) -> Checkpoint:
    """Remove as many blocks as the goal needs, with the weights learned along the path."""
    goal = request.goal
    saved = request.meter.savings(goal.kind) if goal.kind in COSTS else None
    slices = [name for name in gated.path.blocks if slice_named(name)]
    ranking = rank(gated, saved=saved).among([*request.candidates, *slices])

    def curve() -> Sequence[Point]:
        assert request.held_out is not None  # `compress` has checked it
        count = request.recipe.recalibrate
        points = sweep(
            gated,
            request.held_out,
            ranking,
            statistics=request.train.spread(count).kept() if count else None,
            device=request.device,
            batch_size=request.recipe.at_once(256),
            normalization=request.normalization,
            track=request.track("measuring the loss of accuracy"),
        )
        return list(points)

    reach = blocks_for(goal, request.meter.whole, ranking, request.meter, curve)
    request.watch(reach)
    return prune(gated, ranking, reach.removed)


def _choose(request: Request, small: Checkpoint) -> Checkpoint:
    """The state that is nearest to the whole network on held-out images; else, recalibrated.

    Recalibration can do harm: if training cropped its images, their statistics are not those of
    the images at hand. Nor is what was learned along the path always better than the network's own
    weights. So all of these are compared.
    """
    if request.held_out is None:
        return _recalibrated(request, small)
    plan = next(done["removed"] for done in reversed(small.notes["history"]) if "removed" in done)
    plain = fold_gates(remove(request.whole, plan))
    states = {"learned along the path": small, "the network's own": plain}
    if statistics(small.network.build_blank()):
        states |= {
            f"{name}, recalibrated": _recalibrated(request, state) for name, state in states.items()
        }
    return states[_nearest(request, "weights", states)]


def _recalibrated(request: Request, small: Checkpoint) -> Checkpoint:
    return recalibrate(
        small,
        request.train.spread(request.recipe.recalibrate).kept(),
        device=request.device,
        normalization=request.normalization,
        whole=request.whole,
        track=request.track("recalibrating"),
    )


def _nearest(request: Request, what: str, states: Mapping[str, Checkpoint]) -> str:
    """The name of the state with the least gap to the whole network; the folder keeps it."""
    gaps = {name: _gap(request, state) for name, state in states.items()}
    choice = processes.agreed(lambda: Choice(what, gaps))
    request.folder.facts.setdefault("choices", {})[what] = choice.best
    request.folder.write()
    request.watch(choice)
    return choice.best


def _gap(request: Request, state: Checkpoint) -> float:
    """The gap to the whole network on held-out images; infinite if it is no number."""
    assert request.held_out is not None  # or there is no choice
    found = agreement(
        state,
        request.whole,
        request.held_out,
        device=request.device,
        batch_size=request.recipe.at_once(128),
        normalization=request.normalization,
        track=request.track("comparing with the whole network"),
    )
    return found.gap if math.isfinite(found.gap) else math.inf


def _tune(request: Request, small: Checkpoint) -> Checkpoint:
    """Fine-tune all weights with the whole network as teacher."""
    return finetune(
        small,
        request.train,
        _best_recipe(request, small),
        teacher=request.whole,
        validation=request.held_out,
        **request.learning("fine-tuned"),
    )


def _best_recipe(request: Request, small: Checkpoint) -> Recipe:
    """The recipe that brings the network nearest to the whole one in a short trial."""
    tuning = request.recipe.tuning
    assert tuning is not None  # or the step is skipped
    if not request.recipe.trial or request.held_out is None:
        return tuning
    recipes = {
        f"{recipe.optimizer}, statistics {recipe.statistics}": recipe
        for recipe in (tuning, tuning.careful)
    }
    chosen = request.folder.facts.get("choices", {}).get("recipe")
    if chosen is None:  # a resumed compression does not try again
        tried = {}
        for name, recipe in recipes.items():
            request.watch(Trial(name, request.recipe.trial))
            tried[name] = _tried(request, small, recipe)
        chosen = _nearest(request, "recipe", tried)
    return recipes[chosen]


def _tried(request: Request, small: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The network after a short trial of a recipe."""
    steps, size = request.recipe.trial, recipe.batch_size
    images = request.train.spread(steps * size)
    short = replace(recipe, epochs=max(1, round(steps / max(len(images) // size, 1))))
    learning = {**request.learning("fine-tuned"), "state": None, "resume": False}
    try:
        return finetune(small, images, short, teacher=request.whole, **learning)
    except TrainingError:  # its loss is not finite
        return small


@dataclass(frozen=True)
class Step:
    """A step of a compression.

    Attributes:
        name: of the step, and of the file of its network.
        make: maps the request and the previous step's network to the step's network.
        wanted: whether a recipe includes the step.
        resumable: whether the step can be resumed from a state file.
        shown: whether figures show the step; steps with gates that are still to be folded are not.
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
    Step("folded", lambda request, removed: fold_gates(removed)),
    Step("chosen", _choose, wanted=lambda recipe: recipe.recalibrate > 0),
    Step("fine-tuned", _tune, wanted=lambda recipe: recipe.tuning is not None, resumable=True),
)
