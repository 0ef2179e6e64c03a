"""`sweep` and `demo`: commands that write a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from gatepruner.cli.foretelling import Work, foretell
from gatepruner.cli.learning import read
from gatepruner.cli.looking import Criterion
from gatepruner.cli.measuring import curve as draw
from gatepruner.cli.measuring import latencies, measured, meter_of
from gatepruner.cli.options import Data, Source, Writing
from gatepruner.cli.problems import Problems
from gatepruner.cli.signature import Group

NEXT = """
next, on a trained network of your own:
  gatepruner compress yours.pt --data imagefolder:DIR --target-latency 50% -o small.pt
or step by step:
  gatepruner gate yours.pt --data imagefolder:DIR -o gated.pt
  gatepruner sweep gated.pt --data imagefolder:DIR
  gatepruner prune gated.pt --drop 10 --data imagefolder:DIR"""


@dataclass(frozen=True)
class Curve:
    """Curve.

    Attributes:
        random: random orders to compare with.
        step: blocks from one point to the next.
        recalibrate: training images to estimate batch-norm statistics from for every point, as
            prune does; 0 keeps the checkpoint's.
    """

    random: Annotated[int, typer.Option(min=0)] = 3
    step: Annotated[int, typer.Option(min=1)] = 1
    recalibrate: Annotated[int, typer.Option(min=0)] = 2000


def sweep(
    source: Source,
    *,
    criterion: Criterion,
    curve: Curve,
    call: Writing,
    data: Annotated[Data, Group(needs=("data",))],
) -> None:
    """Measure accuracy against blocks removed, and write a report.

    Every point is the network that `prune` would write: batch-norm statistics are estimated
    again, for the random orders too.

    Example: `gatepruner sweep gated.pt --data imagefolder:cifar10 -o report`
    """
    from gatepruner.measuring.device import pick_device
    from gatepruner.report.files import Report, refuse_report, write_report
    from gatepruner.report.tables import curve_table

    name = f"sweep-{criterion.by}"
    target = call.target(source.ckpt, name, seed=criterion.seed, suffix="")
    problems = Problems()
    with problems:
        refuse_report(target, force=call.force)
    checkpoint = read(source, data, problems)
    data = replace(data, device=str(pick_device(data.device)))
    shape = checkpoint.network.base.input_shape
    images = data.images(shape, call.terminal)
    chosen = data.normalization(checkpoint, images, call.terminal)
    train = data.training(shape, call.terminal, curve.recalibrate) if curve.recalibrate else None
    if call.dry_run:
        counts = len(checkpoint.network.removable) // curve.step + 1
        networks = counts * (1 + curve.random)
        what = f"measure {networks} networks on {len(images):,} images"
        return foretell(call, checkpoint, [target], [Work(what, networks * len(images) / 2)], data)
    rankings = [criterion.ranking(checkpoint, data, call.terminal)]
    for seed in range(criterion.seed, criterion.seed + curve.random):
        order = Criterion(by="random", seed=seed)
        rankings.append(order.ranking(checkpoint, data, call.terminal))
    points, *baseline = [
        draw(checkpoint, one, images, data, call.terminal, statistics=train, step=curve.step)
        for one in rankings
    ]
    configuration = {
        "input": str(source.ckpt),
        "data": images.source,
        "images": len(images),
        "normalize": f"{chosen.source}: mean {chosen.mean}, deviation {chosen.std}",
        "statistics": f"{len(train)} images of {train.source}" if train else "the checkpoint's",
        "device": data.device,
        "batch_size": data.batch_size,
        "seed": criterion.seed,
        "random_orders": curve.random,
    }
    report = Report(checkpoint, rankings[0], points, baseline, configuration=configuration)
    write_report(report, target, force=call.force)
    call.record(target)
    call.terminal.say(curve_table(points, baseline))
    call.terminal.say(f"wrote {target / 'report.md'}, with its figures and tables")
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
    from gatepruner.files.storage import refuse_existing
    from gatepruner.measuring.cost import count
    from gatepruner.measuring.device import pick_device
    from gatepruner.pruning.ranking import rank
    from gatepruner.pruning.surgery import fold_gates, remove
    from gatepruner.report import tables
    from gatepruner.report.files import Report, refuse_report, write_report

    terminal, output, device = call.terminal, place.output, place.device
    how = Data(device=device, batch_size=500)
    refuse_report(output, force=call.force)
    smaller = output / "pruned.pt"
    refuse_existing(smaller, force=call.force)
    torch.set_num_threads(1)  # layers of 50 units are done before a second thread has begun
    whole, images = demo_checkpoint(), demo_images()
    rankings = [rank(whole), *(rank(whole, "random", seed=seed) for seed in range(3))]
    plan = rankings[0].first(10)
    terminal.say(f"{whole.network}: the ten lowest gates of its {len(rankings[0].names)} blocks")
    terminal.say(tables.ranking_table(rankings[0], whole.known_gates, 10))

    points, *baseline = [draw(whole, one, images, how, terminal) for one in rankings]
    terminal.say(f"\naccuracy against blocks removed, {len(images):,} images it was not trained on")
    terminal.say(tables.curve_table(points, baseline))

    small = fold_gates(remove(whole, plan))
    accuracy = measured(small, images, how, terminal, "evaluating")
    times = latencies(meter_of(whole, how, 1, terminal), small)
    before, after = ((one.network.depth, count(one.network)) for one in (whole, small))
    terminal.say("\nwithout these ten, the other gates folded into the weights")
    terminal.say(tables.change_table(before, after))
    terminal.say(f"accuracy before: {tables.accuracy_text(points[0].accuracy)}")
    terminal.say(f"accuracy after:  {tables.accuracy_text(accuracy)}")
    terminal.say(tables.latency_text(times))

    chosen = str(pick_device(device))
    configuration = {"data": images.source, "images": len(images), "device": chosen, "seed": 0}
    report = Report(whole, rankings[0], points, baseline, plan, times, configuration)
    write_report(report, output, force=call.force)
    save(small, smaller, force=call.force)
    terminal.say(f"\nwrote {smaller} and the report {output / 'report.md'}\n{NEXT}")
    call.finish(report.to_json() | {"output": str(smaller), "after": accuracy.to_json()})
