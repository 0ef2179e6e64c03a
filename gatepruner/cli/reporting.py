"""`sweep` and `demo`: commands that write a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatepruner.cli.completion import criterion_words
from gatepruner.cli.foretelling import Work, foretell
from gatepruner.cli.learning import read, warn_of_misfit
from gatepruner.cli.looking import Criterion, criterion_images
from gatepruner.cli.measuring import Engines, Timing, change, latencies
from gatepruner.cli.options import COMMON, Data, Source, Writing
from gatepruner.cli.problems import Problems
from gatepruner.cli.prune_command import prune_command
from gatepruner.cli.several import writes
from gatepruner.cli.signature import Group
from gatepruner.errors import PlanError
from gatepruner.processes import agreed
from gatepruner.pruning.criteria import CRITERIA

if TYPE_CHECKING:
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.report.terminal import Terminal

NEXT = """
next, on a trained network of your own:
  gatepruner compress yours.pt --data imagefolder:DIR --target-latency 50% -o small.pt
or step by step:
  gatepruner gate yours.pt --data imagefolder:DIR -o gated.pt
  gatepruner sweep gated.pt --data imagefolder:DIR
  gatepruner prune gated.pt --drop 10 --data imagefolder:DIR"""


@dataclass(frozen=True)
class Curves(Criterion):
    """Curves.

    Attributes:
        random: random orders.
        step: blocks from one point to the next.
        recalibrate: training images to estimate batch-norm statistics from for every point, as
            prune does; 0 keeps the checkpoint's.
    """

    by: Annotated[
        str,
        typer.Option(
            rich_help_panel=COMMON,
            metavar="CRITERIA",
            autocompletion=criterion_words,
            help=f"Criteria to compare, with commas: {', '.join(CRITERIA)}.",
        ),
    ] = "gate,random"
    random: Annotated[int, typer.Option(min=1)] = 3
    step: Annotated[int, typer.Option(min=1)] = 1
    recalibrate: Annotated[int, typer.Option(min=0)] = 2000

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.by.split(",") if name.strip()))

    @property
    def name(self) -> str:
        """Part of a folder's name; the random baseline is not in it."""
        return "-".join(["sweep", *(one for one in self.criteria if one != "random")])

    def check(self, checkpoint: Checkpoint, problems: Problems) -> None:
        """Refuse criteria that are unknown, or that look at gates where there are none."""
        from gatepruner.pruning.ranking import criterion_named, rank
        from gatepruner.report.style import COLORS

        with problems:
            if not 0 < len(self.criteria) <= len(COLORS):
                raise PlanError(
                    f"cannot compare {len(self.criteria)} criteria in one figure: expected 1 to "
                    f"{len(COLORS)}"
                )
        for criterion in self.criteria:
            with problems:
                if criterion_named(criterion).needs == "gates":
                    rank(checkpoint, criterion)
        problems.refuse()

    def comparable(self, checkpoint: Checkpoint, terminal: Terminal) -> Curves:
        """The curves without orders of blocks alone, if one follows a path that removes channels.

        After as many removals these would have removed far more.
        """
        from gatepruner.pruning.ranking import path_of

        sliced = [name for name in self.criteria if path_of(checkpoint, name).sliced]
        if not sliced:
            return self
        if others := [name for name in self.criteria if name not in sliced]:
            terminal.say(
                f"the path removes channels, too: without {' and '.join(others)}, whose orders are "
                f"of blocks alone (--by {','.join(others)} sweeps them)"
            )
        return replace(self, by=",".join(sliced))

    def works(self, checkpoint: Checkpoint) -> list[Work]:
        """Rankings that take their time."""
        blocks = len(checkpoint.network.removable)
        passes = {name: CRITERIA[name].passes(blocks) for name in self.criteria}
        return [
            Work(f"rank by {name} on {self.criterion_images:,} images", self.criterion_images * one)
            for name, one in passes.items()
            if one
        ]

    def counts(self, checkpoint: Checkpoint) -> list[int]:
        """Numbers of blocks to remove, from none to all; of units along the turns of their path."""
        from gatepruner.pruning.ranking import path_of

        path = path_of(checkpoint, self.criteria[0])
        turns = path.turns if path.sliced else range(len(checkpoint.network.removable) + 1)
        return sorted({*turns[:: self.step], turns[-1]})

    def orders(self) -> int:
        """How many orders are measured."""
        return len(self.criteria) + ("random" in self.criteria) * (self.random - 1)


def sweep(
    source: Source,
    *,
    curves: Curves,
    call: Writing,
    data: Annotated[Data, Group(needs=("data",))],
    engines: Engines,
) -> None:
    """Measure accuracy against blocks removed, for one criterion or several, and write a report.

    Every point is the network that `prune` would write: batch-norm statistics are estimated from
    training images, for every order alike. Criteria look at training images, curves are measured
    on `--split`. With `--engine` the report shows latency, too.

    Example: `gatepruner sweep gated.pt --data imagefolder:cifar10 -o report`

    Example: `gatepruner sweep gated.pt --data imagefolder:cifar10 --by gate,taylor,random`

    Example: `gatepruner sweep gated.pt --data imagefolder:cifar10 --engine onnxruntime --threads 1`
    """
    from gatepruner.measuring.device import pick_device
    from gatepruner.pruning.block_times import block_times
    from gatepruner.pruning.orders import compare
    from gatepruner.report.files import Report, refuse_report, write_report
    from gatepruner.report.tables import curve_table

    target = call.target(source.ckpt, curves.name, seed=curves.seed, suffix="")
    problems = Problems()

    def check_target() -> None:
        refuse_report(target, force=call.force)
        call.hold_folder(target)

    with problems:
        agreed(check_target)
    engines.check(problems)
    checkpoint = read(source, data, problems)
    curves.check(checkpoint, problems)
    curves = curves.comparable(checkpoint, call.terminal)
    data = replace(data, device=str(pick_device(data.device)))
    counts = curves.counts(checkpoint)
    images = data.images(checkpoint, call.terminal)
    chosen = data.normalization(checkpoint, images, call.terminal)
    if call.dry_run:
        networks = len(counts) * curves.orders()
        passes = networks * (len(images) + 2 * curves.recalibrate) / 2
        works = [*curves.works(checkpoint), Work(f"measure {networks} networks", passes)]
        return foretell(call, checkpoint, [target], works, data)
    training = criterion_images(
        curves.criteria, curves.criterion_images, checkpoint, data, call.terminal
    )
    statistics = None
    if curves.recalibrate:
        statistics = data.training(checkpoint, call.terminal, curves.recalibrate, labels=False)
        if statistics is None:
            call.terminal.say(
                f"{data.data} has no training images: batch norm keeps its statistics"
            )
        else:
            warn_of_misfit(source.ckpt, checkpoint, statistics, data)
    meters = engines.meters(checkpoint.network, data, call.terminal)
    compared = compare(
        checkpoint,
        images,
        curves.criteria,
        training=training,
        statistics=statistics,
        counts=counts,
        seeds=range(curves.seed, curves.seed + curves.random),
        **data.how,
        track=call.terminal.track,
    )
    orders = list(compared)
    times = [block_times(meter, orders[0].rankings[0], counts) for meter in meters]
    configuration = {
        "input": str(source.ckpt),
        "data": images.source,
        "images": len(images),
        "normalize": f"{chosen.source}: mean {chosen.mean}, deviation {chosen.std}",
        "device": data.device,
        "batch_size": data.batch_size,
        "seed": curves.seed,
    }
    commands = {name: prune_command(call.given, name) for name in curves.criteria}
    if not writes():
        return None
    report = Report(checkpoint, orders, configuration=configuration, commands=commands, times=times)
    write_report(report, target, force=call.force)
    call.record(target)
    call.terminal.say(curve_table(report.orders))
    for one in times:
        call.terminal.say(str(one))
    call.terminal.say(f"wrote {target / 'report.md'} and report.html, with figures and tables")
    return call.finish(report.to_json() | {"output": str(target)})


@dataclass(frozen=True)
class Place:
    """Options.

    Attributes:
        output: folder to write to.
        device: where to compute: auto, cpu, cuda, cuda:N or mps.
    """

    output: Annotated[Path, typer.Option("--output", "-o")] = Path("gatepruner-demo")
    device: str = "auto"


def demo(*, place: Place, call: Annotated[Writing, Group(leave_out=("output", "dry_run"))]) -> None:
    """Show the whole of it on an embedded network and embedded images, in seconds.

    Ranks the 50 blocks of a 100-layer network for MNIST, measures accuracy against blocks
    removed, prunes ten of them, writes the smaller network and a report.

    Example: `gatepruner demo`
    """
    import torch

    from gatepruner.demo import demo_checkpoint, demo_images
    from gatepruner.files.checkpoints import save
    from gatepruner.files.writing import refuse_existing
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.measuring.device import pick_device
    from gatepruner.pruning.orders import compare
    from gatepruner.pruning.ranking import rank
    from gatepruner.pruning.surgery import fold_gates, remove
    from gatepruner.report import tables
    from gatepruner.report.files import Report, refuse_report, write_report

    terminal, output, device = call.terminal, place.output, place.device
    how = Data(device=device, batch_size=500)
    refuse_report(output, force=call.force)
    smaller = output / "pruned.pt"
    refuse_existing(smaller, force=call.force)
    call.hold_folder(output)
    torch.set_num_threads(1)  # layers of 50 units are done before a second thread has begun
    whole, images = demo_checkpoint(), demo_images()
    ranking = rank(whole)
    plan = ranking.first(10)
    terminal.say(f"{whole.network}: the ten lowest gates of its {len(ranking.names)} blocks")
    terminal.say(tables.ranking_table(ranking, whole.known_gates, 10))

    compared = compare(
        whole,
        images,
        ("gate", "random"),
        seeds=range(3),
        **how.how,
        track=terminal.track,
    )
    orders = list(compared)
    terminal.say(f"\naccuracy against blocks removed, {len(images):,} images it was not trained on")
    terminal.say(tables.curve_table(orders))

    small = fold_gates(remove(whole, plan))
    counted = accuracy(small, images, **how.how, track=terminal.track("evaluating"))
    times = latencies(Timing().meter(whole.network, how, terminal), small)
    terminal.say("\nwithout these ten, the other gates folded into the weights")
    terminal.say(tables.change_table(change(whole, small)))
    terminal.say(f"accuracy before: {tables.accuracy_text(orders[0].points[0].accuracy)}")
    terminal.say(f"accuracy after:  {tables.accuracy_text(counted)}")
    terminal.say(tables.latency_text(times))

    chosen = str(pick_device(device))
    configuration = {"data": images.source, "images": len(images), "device": chosen, "seed": 0}
    report = Report(whole, orders, plan, times, configuration)
    write_report(report, output, force=call.force)
    save(small, smaller, force=call.force)
    call.record(output)
    terminal.say(f"\nwrote {smaller} and the report {output / 'report.md'}\n{NEXT}")
    call.finish(report.to_json() | {"output": str(smaller), "after": counted.to_json()})
