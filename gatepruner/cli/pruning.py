"""`prune`: the command that removes blocks and writes the smaller network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.changing import Statistics, recalibrated
from gatepruner.cli.foretelling import Work, foretell
from gatepruner.cli.goals import Targets
from gatepruner.cli.learning import read
from gatepruner.cli.looking import Criterion
from gatepruner.cli.options import Data, HoldOut, Source, Writing
from gatepruner.cli.problems import Problems
from gatepruner.errors import DataError, PlanError

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.measuring.cost import Cost
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Choice:
    """Blocks to remove.

    Attributes:
        drop: remove this many, least important first.
        keep: remove all but this many.
        threshold: remove those with a score of at most this.
        blocks: remove these, as in layer1.2,layer3.0.
        shortcuts: also remove the shortcuts of this many of the most important blocks left.
        fold: fold the gates into the weights.
    """

    drop: Annotated[int | None, typer.Option(min=0)] = None
    keep: Annotated[int | None, typer.Option(min=0)] = None
    threshold: float | None = None
    blocks: str | None = None
    shortcuts: Annotated[int, typer.Option(min=0)] = 0
    fold: bool = True

    def named(self, targets: Targets) -> str:
        """What is asked for, as a part of a file's name; refuses more or less than one choice."""
        numbers = {"drop": self.drop, "keep": self.keep, "threshold": self.threshold}
        given = [f"{key}{value:g}" for key, value in numbers.items() if value is not None]
        given += [f"blocks{len(self.names)}"] if self.blocks is not None else []
        given += targets.given
        if len(given) > 1 or not (given or self.shortcuts):
            raise typer.BadParameter(
                "give one of --drop, --keep, --threshold, --blocks, --target-macs, "
                "--target-params, --target-latency and --max-loss, or --shortcuts"
            )
        return "-".join([*given, *([f"shortcuts{self.shortcuts}"] if self.shortcuts else [])])

    @property
    def names(self) -> tuple[str, ...]:
        """The blocks that are given by name."""
        return tuple(name.strip() for name in (self.blocks or "").split(",") if name.strip())

    def plan(self, checkpoint: Checkpoint, ranking: Ranking) -> tuple[str, ...]:
        """The blocks to remove, where they are given by number or score."""
        if self.threshold is not None:
            return ranking.up_to(self.threshold)
        removable = len(ranking.names)
        if self.keep is not None and self.keep > removable:
            raise PlanError(
                f"cannot keep {self.keep} blocks: {checkpoint.network} has {removable} removable "
                "ones"
            )
        return ranking.first(removable - self.keep if self.keep is not None else self.drop or 0)


@dataclass(frozen=True)
class Afterwards:
    """After the removal.

    Attributes:
        latency: measure latency, too.
        recalibrate: training images to estimate batch-norm statistics from again; 0 keeps them.
    """

    latency: bool = False
    recalibrate: Annotated[int, typer.Option(min=0)] = 2000


def prune(
    source: Source,
    *,
    choice: Choice,
    targets: Targets,
    criterion: Criterion,
    call: Writing,
    data: Data,
    held: HoldOut,
    after: Afterwards,
) -> None:
    """Remove blocks and write the smaller network.

    Needs no data. With `--data` it also estimates the statistics of batch norm again on training
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

    name = choice.named(targets)
    if targets.max_loss is not None and not data.data:
        raise typer.BadParameter("--max-loss is measured on held-out training images: give --data")
    target = call.target(source.ckpt, name, seed=criterion.seed)
    problems = Problems()
    with problems:
        refuse_existing(target, force=call.force)
        refuse_name(target)
    whole = read(source, data, problems)
    plan = _plan(whole, choice, targets, criterion, _HeldOut(data, held), call.terminal)
    if call.dry_run:
        return _foretell(call, whole, plan, target, data, after)
    small, document = _pruned(whole, plan, choice, criterion)
    if data.data:
        if after.recalibrate and small.network != whole.network:
            statistics = Statistics(after.recalibrate)
            small = recalibrated(small, data, statistics, call.terminal)
        document |= _accuracies(whole, small, data, call.terminal)
    if after.latency:
        batch = targets.latency_batch
        document["latency"] = latencies(whole, small, batch, data.device, call.terminal)
    save(small, target, force=call.force)
    call.record(target)
    costs = count(whole.network), count(small.network)
    _show(document, costs, call.terminal)
    call.terminal.say(f"wrote {target}\n{loading_text(str(target))}")
    return call.finish({"input": str(source.ckpt), "output": str(target), **document})


@dataclass(frozen=True)
class _HeldOut:
    """Training images that nothing was learned from."""

    data: Data
    held: HoldOut

    def curve(self, whole: Checkpoint, ranking: Ranking, terminal: Terminal) -> list[Point]:
        """Accuracy against blocks removed."""
        images = self.data.training(whole.network.base.input_shape, terminal)
        held_out = images.held_out(self.held.hold_out, self.held.seed)[1] if images else None
        if held_out is None:
            raise DataError(
                f"--max-loss is measured on held-out training images: {self.data.data} was "
                "expected to have a train split, and --hold-out to be above 0"
            )
        normalization = self.data.normalization(whole, held_out, terminal)
        return curves(whole, [ranking], held_out, normalization, terminal, self.data)[0]


def _plan(
    whole: Checkpoint,
    choice: Choice,
    targets: Targets,
    criterion: Criterion,
    held_out: _HeldOut,
    terminal: Terminal,
) -> tuple[str, ...]:
    """The blocks to remove."""
    if choice.blocks is not None or (choice.shortcuts and choice.named(targets).count("-") == 0):
        return choice.names
    device = held_out.data.device
    ranking = targets.ranking(whole, criterion, device)
    if not targets.given:
        return choice.plan(whole, ranking)

    def curve() -> list[Point]:
        return held_out.curve(whole, ranking, terminal)

    return ranking.first(targets.count(whole, ranking, curve, terminal, device))


def _pruned(
    whole: Checkpoint, plan: Sequence[str], choice: Choice, criterion: Criterion
) -> tuple[Checkpoint, dict[str, Any]]:
    """The network without the blocks of the plan, and what was done to it."""
    from gatepruner.measuring.cost import count
    from gatepruner.pruning.surgery import fold_gates, follow, remove, remove_shortcuts

    small = (follow if criterion.by == "gate" else remove)(whole, plan)
    loose = criterion.ranking(small).last(choice.shortcuts) if choice.shortcuts else ()
    small = remove_shortcuts(small, loose) if loose else small
    folded = len(small.network.edits.gated) if choice.fold else 0
    small = fold_gates(small) if folded else small
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


def _foretell(
    call: Writing,
    whole: Checkpoint,
    plan: Sequence[str],
    target: Path,
    data: Data,
    after: Afterwards,
) -> None:
    """What a removal would do."""
    from gatepruner.measuring.cost import count

    before, after = count(whole.network), count(whole.network.without(plan))
    kept = f"{after.params / before.params:.1%} of the parameters"
    works = [Work(f"remove {len(plan)} of {whole.network.depth} blocks, {kept} kept", 0)]
    if data.data:
        images = data.images(whole.network.base.input_shape, call.terminal)
        works.append(Work(f"estimate statistics from {after.recalibrate:,}", after.recalibrate))
        works.append(Work(f"measure accuracy on {len(images):,} images", 2 * len(images)))
    foretell(call, whole, [target], works, data)


def _accuracies(
    whole: Checkpoint, small: Checkpoint, data: Data, terminal: Terminal
) -> dict[str, Any]:
    """Accuracy before and after, on the same images."""
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.report.tables import accuracy_text

    images = data.images(whole.network.base.input_shape, terminal)
    normalization = data.normalization(whole, images, terminal)
    document: dict[str, Any] = {"images": len(images), "data": images.source}
    for name, checkpoint in (("before", whole), ("after", small)):
        result = accuracy(
            checkpoint,
            images,
            device=data.device,
            batch_size=data.batch_size,
            normalization=normalization,
            track=terminal.track(f"accuracy {name}"),
        )
        document[f"accuracy_{name}"] = result.accuracy
        terminal.say(f"accuracy {name}: {accuracy_text(result)}")
    return document


def curves(
    checkpoint: Checkpoint,
    rankings: Sequence[Ranking],
    images: Images,
    normalization: Normalization,
    terminal: Terminal,
    how: Data,
    step: int = 1,
) -> list[list[Point]]:
    """The removal curve of every ranking, at the same numbers of blocks."""
    from gatepruner.pruning.curve import sweep

    last = len(rankings[0].names)
    curves = []
    for number, ranking in enumerate(rankings):
        what = ranking.criterion if not number else f"random order {number} of {len(rankings) - 1}"
        points = sweep(
            checkpoint,
            images,
            ranking,
            counts=sorted({*range(0, last + 1, step), last}),
            device=how.device,
            batch_size=how.batch_size,
            normalization=normalization,
            track=terminal.track(f"removing by {what}" if not number else what),
        )
        curves.append(list(points))
    return curves


def latencies(
    whole: Checkpoint, small: Checkpoint, batch: int, device: str, terminal: Terminal
) -> dict[str, dict[str, Any]]:
    """Measured times of two networks as plain JSON."""
    from gatepruner.measuring.device import pick_device
    from gatepruner.measuring.latency import latency

    measured = latency(
        {"whole": whole.build(), "pruned": small.build()},
        whole.network.base.input_shape,
        batch=batch,
        device=pick_device(device),
        track=terminal.track("measuring latency"),
    )
    return {name: asdict(one) for name, one in measured.items()}


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
