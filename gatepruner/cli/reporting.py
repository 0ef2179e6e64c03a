"""`sweep` and `demo`: commands that write a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatepruner.cli import options as o
from gatepruner.cli.changing import curves, latencies

if TYPE_CHECKING:
    pass

NEXT = """
next, on a trained network of your own:
  gatepruner compress yours.pt --data imagefolder:DIR --target-latency 50% -o small.pt
or step by step:
  gatepruner gate yours.pt --data imagefolder:DIR -o gated.pt
  gatepruner sweep gated.pt --data imagefolder:DIR
  gatepruner prune gated.pt --drop 10 --data imagefolder:DIR"""


def sweep(
    ckpt: o.File,
    data: o.Data,
    by: o.By = "gate",
    output: o.Output = None,
    random: Annotated[int, typer.Option(help="Random orders to compare with.", min=0)] = 3,
    step: Annotated[int, typer.Option(help="Blocks from one point to the next.", min=1)] = 1,
    split: o.Split = None,
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    limit: o.Limit = None,
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 128,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Measure accuracy against blocks removed, and write a report.

    Example: `gatepruner sweep gated.pt --data imagefolder:cifar10 -o report`
    """
    from gatepruner.measuring.device import pick_device
    from gatepruner.pruning.ranking import rank
    from gatepruner.report import terminal as show
    from gatepruner.report.files import Report, refuse_report, write_report

    target = output or o.beside(ckpt, f"sweep-{by}", "")
    refuse_report(target, force=force)
    terminal = o.terminal_of(quiet, as_json)
    checkpoint = o.read(ckpt, arch, num_classes, input_size)
    rankings = [rank(checkpoint, by, seed=seed)]
    rankings += [rank(checkpoint, "random", seed=seed + order) for order in range(random)]
    device = str(pick_device(device))
    measuring = o.Measuring(data, split, normalize, resize, limit, device, batch_size)
    images = measuring.images(checkpoint.network.base.input_shape, terminal)
    chosen = measuring.normalization(checkpoint, images, terminal)
    points, *baseline = curves(
        checkpoint,
        rankings,
        images,
        chosen,
        terminal,
        step=step,
        device=device,
        batch_size=batch_size,
    )
    configuration = {
        "input": str(ckpt),
        "data": images.source,
        "images": len(images),
        "normalize": f"{chosen.source}: mean {chosen.mean}, deviation {chosen.std}",
        "device": device,
        "batch_size": batch_size,
        "seed": seed,
        "random_orders": random,
    }
    report = Report(checkpoint, rankings[0], points, baseline, configuration=configuration)
    write_report(report, target, force=force)
    terminal.say(show.curve_table(points, baseline))
    terminal.say(f"wrote {target / 'report.md'}, with its figures and tables")
    o.finish(report.to_json() | {"output": str(target)}, as_json)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "gatepruner-demo"
    ),
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Show the whole of it on an embedded network and embedded images, in seconds.

    Ranks the 50 blocks of a 100-layer network for MNIST, measures accuracy against blocks
    removed, prunes ten of them, writes the smaller network and a report.

    Example: `gatepruner demo`
    """
    import torch

    from gatepruner.demo import demo_checkpoint, demo_images
    from gatepruner.files.checkpoints import save
    from gatepruner.files.storage import refuse_existing
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.measuring.cost import count
    from gatepruner.measuring.device import pick_device
    from gatepruner.measuring.inputs import normalization_of
    from gatepruner.pruning.ranking import rank
    from gatepruner.pruning.surgery import fold_gates, remove
    from gatepruner.report import terminal as show
    from gatepruner.report.files import Report, refuse_report, write_report

    refuse_report(output, force=force)
    smaller = output / "pruned.pt"
    refuse_existing(smaller, force=force)
    torch.set_num_threads(1)  # layers of 50 units are done before a second thread has begun
    terminal = o.terminal_of(quiet, as_json)
    whole, images = demo_checkpoint(), demo_images()
    rankings = [rank(whole), *(rank(whole, "random", seed=seed) for seed in range(3))]
    plan = rankings[0].first(10)
    terminal.say(f"{whole.network}: the ten lowest gates of its {len(rankings[0].names)} blocks")
    terminal.say(show.ranking_table(rankings[0], whole.known_gates, 10))

    normalization = normalization_of(whole.notes, images.shape[0])
    found_curves = curves(
        whole, rankings, images, normalization, terminal, device=device, batch_size=500
    )
    terminal.say(f"\naccuracy against blocks removed, {len(images):,} images it was not trained on")
    terminal.say(show.curve_table(found_curves[0], found_curves[1:]))

    small = fold_gates(remove(whole, plan))
    found = accuracy(small, images, device=device, batch_size=500)
    times = latencies(whole, small, 1, device, terminal)
    before, after = ((o.blocks_left(it), count(it.network)) for it in (whole, small))
    terminal.say("\nwithout these ten, the other gates folded into the weights")
    terminal.say(show.change_table(before, after))
    terminal.say(f"accuracy before: {show.accuracy_text(found_curves[0][0].accuracy)}")
    terminal.say(f"accuracy after:  {show.accuracy_text(found)}")
    terminal.say(show.latency_text(times))

    chosen = str(pick_device(device))
    configuration = {"data": images.source, "images": len(images), "device": chosen, "seed": 0}
    report = Report(
        whole, rankings[0], found_curves[0], found_curves[1:], plan, times, configuration
    )
    write_report(report, output, force=force)
    save(small, smaller, force=force)
    terminal.say(f"\nwrote {smaller} and the report {output / 'report.md'}\n{NEXT}")
    o.finish(report.to_json() | {"output": str(smaller), "after": found.to_json()}, as_json)
