"""`prune`: the command that removes blocks and writes the smaller network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.foretelling import Work, foretell
from gatepruner.cli.goals import GOALS, Goals, reached_text
from gatepruner.cli.learning import read
from gatepruner.cli.looking import Criterion
from gatepruner.cli.measuring import curve, latencies, measured, meter_of, recalibrated
from gatepruner.cli.options import Data, HoldOut, Source, Writing
from gatepruner.cli.problems import Problems
from gatepruner.errors import DataError, PlanError

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.measuring.cost import Cost
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.meter import Meter
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Choice:
    """Other choices of blocks.

    Attributes:
        keep: remove all but this many.
        threshold: remove those with a score of at most this.
        blocks: remove these, as in layer1.2,layer3.0.
        shortcuts: also remove the shortcuts of this many of the most important blocks left.
        fold: fold the gates into the weights.
    """

    keep: Annotated[int | None, typer.Option(min=0)] = None
    threshold: float | None = None
    blocks: str | None = None
    shortcuts: Annotated[int, typer.Option(min=0)] = 0
    fold: bool = True

    @property
    def given(self) -> list[str]:
        """What is asked for, as parts of a file's name."""
        named = len(self.names) if self.blocks is not None else None
        numbers = {"keep": self.keep, "threshold": self.threshold, "blocks": named}
        return [f"{key}{value:g}" for key, value in numbers.items() if value is not None]

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks that are given by name."""
        return tuple(name.strip() for name in (self.blocks or "").split(",") if name.strip())

    def plan(self, ranking: Ranking) -> tuple[str, ...]:
        """The blocks to remove."""
        if self.threshold is not None:
            return ranking.up_to(self.threshold)
        if self.keep is None:
            return self.names
        removable = len(ranking.names)
        if self.keep > removable:
            raise PlanError(
                f"cannot keep {self.keep} blocks: {ranking.subject} has {removable} removable ones"
            )
        return ranking.first(removable - self.keep)


@dataclass(frozen=True)
class Afterwards:
    """After the removal.

    Attributes:
        recalibrate: training images to estimate batch-norm statistics from; 0 keeps them.
        latency: measure latency, too.
        latency_batch: images in a timed pass.
    """

    recalibrate: Annotated[int, typer.Option(min=0)] = 2000
    latency: bool = False
    latency_batch: Annotated[int, typer.Option(min=1)] = 1


def prune(
    source: Source,
    *,
    goals: Goals,
    choice: Choice,
    criterion: Criterion,
    call: Writing,
    data: Data,
    held: HoldOut,
    after: Afterwards,
) -> None:
    """Remove blocks and write the smaller network.

    Needs no data. With `--data` it also estimates the statistics of batch norm from training
    images, and reports accuracy before and after. Blocks of a path that `gatepruner gate` has
    learned are removed with what was learned by then.

    Example: `gatepruner prune gated.pt --drop 10`

    Example: `gatepruner prune gated.pt --target-latency 50% --data imagefolder:cifar10`

    Example: `gatepruner prune resnet56.th --blocks layer1.2,layer1.5 --data imagefolder:cifar10`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.files.storage import refuse_existing, refuse_name
    from gatepruner.measuring.cost import count
    from gatepruner.report.tables import loading_text

    name = _name(goals, choice, data)
    target = call.target(source.ckpt, name, seed=criterion.seed)
    problems = Problems()
    with problems:
        refuse_existing(target, force=call.force)
        refuse_name(target)
    whole = read(source, data, problems)
    sets = _Sets.read(whole, data, held, goals, after, call.terminal)
    kept = whole.network.without_gates() if choice.fold else whole.network
    meter = meter_of(kept, data, after.latency_batch, call.terminal)
    ranking = _ranking(whole, goals, choice, criterion, data, meter, call.terminal)
    plan = _plan(whole, ranking, goals, choice, sets, data, meter, call.terminal)
    if call.dry_run:
        return foretell(call, whole, [target], _works(whole, plan, sets), data)
    small, document = _pruned(whole, plan, choice, ranking, criterion, data, call.terminal)
    if sets.statistics is not None and small.network != whole.network:
        small = recalibrated(small, sets.statistics, data, call.terminal, whole=whole)
    if sets.test is not None:
        document |= _accuracies(whole, small, sets.test, data, call.terminal)
    if after.latency:
        document["latency"] = latencies(meter, small)
    save(small, target, force=call.force)
    call.record(target)
    costs = count(whole.network), count(small.network)
    _show(document, costs, call.terminal)
    call.terminal.say(f"wrote {target}\n{loading_text(str(target))}")
    return call.finish({"input": str(source.ckpt), "output": str(target), **document})


def _name(goals: Goals, choice: Choice, data: Data) -> str:
    """What is asked for, as a part of a file's name; refuses more or less than one thing."""
    goal = goals.goal
    given = [*([str(goal)] if goal is not None else []), *choice.given]
    if len(given) > 1 or not (given or choice.shortcuts):
        raise typer.BadParameter(
            f"give one of {GOALS.replace(' and', ',')}, --keep, --threshold and --blocks, or "
            "--shortcuts"
        )
    if goals.max_loss is not None and not data.data:
        raise typer.BadParameter("--max-loss is measured on held-out training images: give --data")
    return "-".join([*given, *([f"shortcuts{choice.shortcuts}"] if choice.shortcuts else [])])


@dataclass(frozen=True)
class _Sets:
    """Images, as far as they are needed.

    Attributes:
        test: to measure accuracy on.
        statistics: training images to estimate batch-norm statistics from.
        held_out: training images to choose on.
    """

    test: Images | None = None
    statistics: Images | None = None
    held_out: Images | None = None

    @classmethod
    def read(
        cls,
        whole: Checkpoint,
        data: Data,
        held: HoldOut,
        goals: Goals,
        after: Afterwards,
        terminal: Terminal,
    ) -> _Sets:
        if not data.data:
            return cls()
        shape, choosing = whole.network.base.input_shape, goals.max_loss is not None
        test = data.images(shape, terminal)
        data.normalization(whole, test, terminal)
        train = held_out = None
        if choosing or after.recalibrate:
            train = data.training(shape, terminal, None if choosing else after.recalibrate)
        if train is None and after.recalibrate:
            terminal.say(f"{data.data} has no training images: batch norm keeps its statistics")
        if choosing:
            if train is None or not held.hold_out:
                raise DataError(
                    f"--max-loss is measured on held-out training images: {data.data} was "
                    "expected to have a train split, and --hold-out to be above 0"
                )
            train, held_out = train.held_out(held.hold_out, held.seed)
        statistics = train.spread(after.recalibrate) if train and after.recalibrate else None
        return cls(test, statistics, held_out)


def _ranking(
    whole: Checkpoint,
    goals: Goals,
    choice: Choice,
    criterion: Criterion,
    data: Data,
    meter: Meter,
    terminal: Terminal,
) -> Ranking | None:
    """The order of removal, if blocks are not named; for a cost, by what each block saves."""
    from gatepruner.pruning.goals import COSTS
    from gatepruner.pruning.ranking import path_of

    goal = goals.goal
    if goal is None and choice.keep is None and choice.threshold is None:
        return None
    known = set(path_of(whole, criterion.by).blocks).issuperset(whole.network.removable)
    saved = meter.savings(goal.kind) if goal and goal.kind in COSTS and not known else None
    return criterion.ranking(whole, data, terminal, saved)


def _plan(
    whole: Checkpoint,
    ranking: Ranking | None,
    goals: Goals,
    choice: Choice,
    sets: _Sets,
    data: Data,
    meter: Meter,
    terminal: Terminal,
) -> tuple[str, ...]:
    """The blocks to remove."""
    from gatepruner.pruning.goals import blocks_for

    goal = goals.goal
    if ranking is None:
        return choice.names
    if goal is None:
        return choice.plan(ranking)

    def held_out() -> list[Point]:
        assert sets.held_out is not None
        assert ranking is not None
        return curve(whole, ranking, sets.held_out, data, terminal, statistics=sets.statistics)

    reach = blocks_for(goal, meter.whole, ranking, meter, held_out)
    if goal.kind != "blocks":
        terminal.say(reached_text(reach))
    return ranking.first(reach.removed)


def _pruned(
    whole: Checkpoint,
    plan: Sequence[str],
    choice: Choice,
    ranking: Ranking | None,
    criterion: Criterion,
    data: Data,
    terminal: Terminal,
) -> tuple[Checkpoint, dict[str, Any]]:
    """The network without the blocks of the plan, and what was done to it."""
    from gatepruner.measuring.cost import count
    from gatepruner.pruning import surgery

    small = surgery.prune(whole, ranking, len(plan)) if ranking else surgery.follow(whole, plan)
    loose: tuple[str, ...] = ()
    if choice.shortcuts:
        loose = criterion.ranking(small, data, terminal).last(choice.shortcuts)
        small = surgery.remove_shortcuts(small, loose)
    folded = len(small.network.edits.gated) if choice.fold else 0
    small = surgery.fold_gates(small) if folded else small
    edits = small.network.edits
    document: dict[str, Any] = {
        "removed": list(plan),
        "shortcuts_removed": list(loose),
        "folded": folded,
        "constants": [*edits.scaled_branches, *edits.scaled_shortcuts],
        "blocks_before": whole.network.depth,
        "blocks_after": small.network.depth,
    }
    for name, checkpoint in (("before", whole), ("after", small)):
        cost = count(checkpoint.network)
        document |= {f"params_{name}": cost.params, f"macs_{name}": cost.macs}
    return small, document


def _works(whole: Checkpoint, plan: Sequence[str], sets: _Sets) -> list[Work]:
    """What a removal would do."""
    from gatepruner.measuring.cost import count

    before, after = count(whole.network), count(whole.network.without(plan))
    left = f"{after.params / before.params:.1%} of the parameters would be left"
    works = [Work(f"remove {len(plan)} of {whole.network.depth} blocks; {left}", 0)]
    if sets.statistics is not None:
        images = len(sets.statistics)
        works.append(Work(f"estimate statistics from {images:,} training images", 2 * images))
    if sets.test is not None:
        images = len(sets.test)
        works.append(Work(f"measure accuracy on {images:,} images", 2 * images))
    return works


def _accuracies(
    whole: Checkpoint, small: Checkpoint, images: Images, data: Data, terminal: Terminal
) -> dict[str, Any]:
    """Accuracy before and after, on the same images."""
    from gatepruner.report.tables import accuracy_text

    document: dict[str, Any] = {"images": len(images), "data": images.source}
    for name, checkpoint in (("before", whole), ("after", small)):
        accuracy = measured(checkpoint, images, data, terminal, f"accuracy {name}")
        document[f"accuracy_{name}"] = accuracy.accuracy
        terminal.say(f"accuracy {name}: {accuracy_text(accuracy)}")
    return document


def _show(document: dict[str, Any], costs: tuple[Cost, Cost], terminal: Terminal) -> None:
    from gatepruner.report import tables

    if document["removed"]:
        terminal.say(f"removed {', '.join(document['removed'])}")
    if document["shortcuts_removed"]:
        terminal.say(f"shortcuts removed: {', '.join(document['shortcuts_removed'])}")
    if document["folded"]:
        terminal.say(f"{document['folded']} gates folded into the weights")
    if document["constants"]:
        terminal.say(f"a constant factor stays in {', '.join(document['constants'])}")
    before, after = (document[f"blocks_{name}"] for name in ("before", "after"))
    terminal.say(tables.change_table((before, costs[0]), (after, costs[1])))
    if "latency" in document:
        terminal.say(tables.latency_text(document["latency"]))
