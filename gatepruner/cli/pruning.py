"""`prune`: the command that removes blocks and writes the smaller network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.foretelling import Work, foretell
from gatepruner.cli.goals import GOALS, Goals, reached_text
from gatepruner.cli.learning import read, warn_of_misfit
from gatepruner.cli.looking import Criterion
from gatepruner.cli.measuring import Timing, change, latencies, say_images
from gatepruner.cli.options import Data, HoldOut, Source, Writing, words_of
from gatepruner.cli.problems import Problems
from gatepruner.cli.several import writes
from gatepruner.cli.signature import Group
from gatepruner.errors import DataError, PlanError
from gatepruner.learning.recipes import CHOICES

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.meter import Meter
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal

COMPARED = 500  # most images on which a network is compared with the whole one


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
        return words_of(self.blocks)

    def plan(self, ranking: Ranking) -> tuple[str, ...]:
        """The blocks to remove."""
        if self.threshold is not None:
            return ranking.up_to(self.threshold)
        if self.keep is None:
            return self.names
        removable = len(ranking.names)
        if self.keep > removable:
            raise PlanError(
                f"cannot keep {self.keep} {ranking.noun}s: {ranking.subject} has {removable} "
                "removable ones"
            )
        return ranking.first(removable - self.keep)


@dataclass(frozen=True)
class Afterwards:
    """After the removal.

    Attributes:
        recalibrate: training images to estimate batch-norm statistics from; 0 keeps them.
    """

    recalibrate: Annotated[int, typer.Option(min=0)] = 2000


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
    timing: Annotated[Timing, Group(words=CHOICES)],
) -> None:
    """Remove blocks and write the smaller network.

    Needs no data. With `--data` it also estimates the statistics of batch norm from training
    images, and reports accuracy before and after; without labels, agreement with the whole network.
    Blocks of a path that `gatepruner gate` has learned are removed with what was learned by then.

    Example: `gatepruner prune gated.pt --drop 10`

    Example: `gatepruner prune gated.pt --target-latency 50% --engine onnxruntime --threads 1`

    Example: `gatepruner prune resnet56.th --blocks layer1.2,layer1.5 --data imagefolder:cifar10`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.pruning.goals import remeasured
    from gatepruner.report.tables import loading_text

    name, terminal = _name(goals, choice, criterion, data), call.terminal
    target = call.target(source.ckpt, name, seed=criterion.seed)
    problems = Problems()
    call.check([target], problems)
    timing.check(problems)
    whole = read(source, data, problems, deferred=not data.data)
    sets = _Sets.read(whole, data, held, goals, after, terminal)
    request = _Request(whole, goals, choice, criterion, data, sets, timing, terminal)
    plan = request.plan()
    if call.dry_run:
        return foretell(call, whole, [target], _works(whole, plan, choice.shortcuts, sets), data)
    if sets.statistics is not None:
        warn_of_misfit(source.ckpt, whole, sets.statistics, data)
    small, document = request.pruned(plan)
    if sets.statistics is not None and (plan or choice.shortcuts):
        small = request.recalibrated(small, sets.statistics)
    if sets.test is not None:
        measured = _accuracies if sets.test.labelled else _agreement
        document |= measured(whole, small, sets.test, data, terminal)
        small = _noted(small, document)
    if timing.latency:
        document["latency"] = latencies(request.meter, small)
    again = remeasured(goals.goal, request.meter, small.network) if goals.goal else None
    if again is not None:
        document["target"] = again.to_json()
    if not writes():
        return None
    save(small, target, force=call.force)
    call.record(target)
    _show(document, terminal)
    if again is not None:
        terminal.say(str(again))
    terminal.say(f"wrote {target}\n{loading_text(str(target), whole)}")
    return call.finish({"input": str(source.ckpt), "output": str(target), **document})


def _name(goals: Goals, choice: Choice, criterion: Criterion, data: Data) -> str:
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
    shortcuts = [f"shortcuts{choice.shortcuts}"] if choice.shortcuts else []
    other = [criterion.by] if criterion.by != Criterion.by else []
    return "-".join([*given, *shortcuts, *other])


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
        from gatepruner.measuring.inputs import check_fit

        if not data.data:
            return cls()
        choosing = goals.max_loss is not None
        test = data.listed(whole, terminal)
        if test.labelled or choosing:
            check_fit(whole, test)
        data.normalization(whole, test, terminal)
        train = held_out = None
        if choosing or after.recalibrate:
            limit = None if choosing else after.recalibrate
            train = data.training_listed(whole, terminal, limit, labels=choosing)
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
        kept = (
            None if images is None else data.kept(images, terminal)
            for images in (test, statistics, held_out)
        )
        return cls(*kept)


@dataclass(frozen=True)
class _Request:
    """What is asked of a removal, and with what."""

    whole: Checkpoint
    goals: Goals
    choice: Choice
    criterion: Criterion
    data: Data
    sets: _Sets
    timing: Timing
    terminal: Terminal

    @functools.cached_property
    def meter(self) -> Meter:
        """What tells costs, each found out once."""
        network = self.whole.network.without_gates() if self.choice.fold else self.whole.network
        return self.timing.meter(network, self.data, self.terminal)

    @functools.cached_property
    def ranking(self) -> Ranking | None:
        """The order of removal, if blocks are not named; for a cost, by what each block saves."""
        from gatepruner.pruning.goals import COSTS
        from gatepruner.pruning.ranking import path_of

        goal, network = self.goals.goal, self.whole.network
        if goal is None and self.choice.keep is None and self.choice.threshold is None:
            return None
        learned = path_of(self.whole, self.criterion.by).blocks
        known = set(learned).issuperset(network.removable)
        saved = self.meter.savings(goal.kind) if goal and goal.kind in COSTS and not known else None
        return self.criterion.ranking(self.whole, self.data, self.terminal, saved)

    def plan(self) -> tuple[str, ...]:
        """The blocks to remove."""
        from gatepruner.pruning.goals import blocks_for

        goal, ranking = self.goals.goal, self.ranking
        if ranking is None:
            return self.choice.names
        if goal is None:
            return self.choice.plan(ranking)
        reach = blocks_for(goal, self.meter.whole, ranking, self.meter, self._curve)
        if goal.kind != "blocks":
            self.terminal.say(reached_text(reach))
        return ranking.first(reach.removed)

    def _curve(self) -> list[Point]:
        """Accuracy on held-out images of every network that might be written."""
        from gatepruner.pruning.curve import sweep

        assert self.sets.held_out is not None
        assert self.ranking is not None
        points = sweep(
            self.whole,
            self.sets.held_out,
            self.ranking,
            statistics=self.sets.statistics,
            **self.data.how,
            track=self.terminal.track("measuring the loss of accuracy"),
        )
        return list(points)

    def pruned(self, plan: Sequence[str]) -> tuple[Checkpoint, dict[str, Any]]:
        """The network without the blocks of a plan, and what was done to it."""
        from gatepruner.pruning import surgery

        whole, ranking, loose = self.whole, self.ranking, tuple[str, ...]()
        small = surgery.prune(whole, ranking, len(plan)) if ranking else surgery.follow(whole, plan)
        if self.choice.shortcuts:
            order = self.criterion.ranking(small, self.data, self.terminal)
            loose = order.last(self.choice.shortcuts)
            small = surgery.remove_shortcuts(small, loose)
        folded = len(small.network.edits.gated) if self.choice.fold else 0
        small = surgery.fold_gates(small) if folded else small
        edits = small.network.edits
        return small, {
            "removed": list(plan),
            "shortcuts_removed": list(loose),
            "folded": folded,
            "constants": [*edits.scaled_branches, *edits.scaled_shortcuts],
            **change(whole, small),
        }

    def recalibrated(self, small: Checkpoint, images: Images) -> Checkpoint:
        """The smaller network with the statistics of images as the whole one saw them."""
        from gatepruner.measuring.recalibration import recalibrate

        track = self.terminal.track("recalibrating")
        done = recalibrate(small, images, **self.data.how, whole=self.whole, track=track)
        if done is not small:  # it has batch norm
            say_images(done, len(images), self.terminal)
        self._warn(small, done, images.spread(COMPARED))
        return done

    def _warn(self, small: Checkpoint, recalibrated: Checkpoint, images: Images) -> None:
        """Say so if recalibration takes the network away from the whole one.

        It does where training cropped its images: then these images have other statistics.
        """
        from gatepruner.measuring.agreement import agreement

        before, after = (
            agreement(one, self.whole, images, **self.data.how).gap for one in (small, recalibrated)
        )
        if after > before:
            self.terminal.say(
                f"recalibration takes the network away from the whole one (distance {before:.3f} "
                f"before, {after:.3f} after): --recalibrate 0 keeps the statistics"
            )


def _works(whole: Checkpoint, plan: Sequence[str], shortcuts: int, sets: _Sets) -> list[Work]:
    """What a removal would do."""
    from gatepruner.measuring.cost import count
    from gatepruner.networks.slices import sorted_out
    from gatepruner.pruning.groups import reduced
    from gatepruner.report.tables import counted

    before, after = count(whole.network), count(reduced(whole.network, plan))
    left = f"{after.params / before.params:.1%} of the parameters would be left"
    blocks, slices = sorted_out(plan)
    channels = f" and {counted(len(slices), 'slice')} of channels" if slices else ""
    removal = f"remove {len(blocks)} of {whole.network.depth} blocks{channels}; {left}"
    works = [Work(removal, 0)]
    if shortcuts:
        works.append(Work(f"remove the shortcuts of {shortcuts} of the others", 0))
    if sets.statistics is not None:
        images = len(sets.statistics)
        works.append(Work(f"estimate statistics from {images:,} training images", 2 * images))
    if sets.test is not None:
        images = len(sets.test)
        measure = "accuracy" if sets.test.labelled else "agreement"
        works.append(Work(f"measure {measure} on {images:,} images", 2 * images))
    return works


def _accuracies(
    whole: Checkpoint, small: Checkpoint, images: Images, data: Data, terminal: Terminal
) -> dict[str, Any]:
    """Accuracy before and after, on the same images."""
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.report.tables import accuracy_text

    document: dict[str, Any] = {"images": len(images), "data": images.source}
    for name, checkpoint in (("before", whole), ("after", small)):
        track = terminal.track(f"accuracy {name}")
        counted = accuracy(checkpoint, images, **data.how, track=track)
        document[f"accuracy_{name}"] = counted.accuracy
        document[f"interval_{name}"] = list(counted.interval)
        terminal.say(f"accuracy {name}: {accuracy_text(counted)}")
    return document


def _noted(small: Checkpoint, document: dict[str, Any]) -> Checkpoint:
    """The smaller network with its accuracy in its notes, if it was measured."""
    from gatepruner.measuring.recorded import Recorded

    if "accuracy_after" not in document:
        return small
    low, high = document["interval_after"]
    images = document["images"], document["data"]
    return Recorded(document["accuracy_after"], low, high, *images).noted(small)


def _agreement(
    whole: Checkpoint, small: Checkpoint, images: Images, data: Data, terminal: Terminal
) -> dict[str, Any]:
    """Agreement of the smaller network with the whole one, where images have no labels."""
    from gatepruner.measuring.agreement import agreement
    from gatepruner.report.tables import agreement_text

    agreed = agreement(small, whole, images, **data.how, track=terminal.track("agreement"))
    terminal.say(f"agreement with the whole network: {agreement_text(agreed)}")
    return {"images": len(images), "data": images.source, **agreed.to_json()}


def _show(document: dict[str, Any], terminal: Terminal) -> None:
    from gatepruner.report import tables

    if document["removed"]:
        terminal.say(tables.plan_text(document["removed"]))
    if document["shortcuts_removed"]:
        terminal.say(f"shortcuts removed: {', '.join(document['shortcuts_removed'])}")
    if document["folded"]:
        terminal.say(f"{document['folded']} gates folded into the weights")
    if document["constants"]:
        terminal.say(f"a constant factor stays in {', '.join(document['constants'])}")
    terminal.say(tables.change_table(document))
    if "latency" in document:
        terminal.say(tables.latency_text(document["latency"]))
