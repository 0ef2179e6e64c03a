"""The command line: each command is a few calls of the library, and one JSON document of them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatepruner.errors import CheckpointError, GatePrunerError

if TYPE_CHECKING:
    from gatepruner.checkpoint import Checkpoint
    from gatepruner.curve import Point
    from gatepruner.data import Images, Normalization
    from gatepruner.models import Shape
    from gatepruner.ranking import Ranking
    from gatepruner.report.terminal import Terminal

app = typer.Typer(
    name="gatepruner",
    help="Remove the residual blocks that a trained network can live without, as its gates tell.",
    epilog="Begin with: gatepruner demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

File = Annotated[
    Path, typer.Argument(metavar="CKPT", help="Checkpoint: .pt, .pth, .th, .ckpt, .safetensors.")
]
Arch = Annotated[
    Optional[str],  # noqa: UP045 - typer reads annotations as they run, on Python 3.10 too
    typer.Option(help="Architecture of a foreign file, as in torchvision:resnet50."),
]
Classes = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--num-classes", help="Logits, where the file does not tell.", min=1),
]
Size = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--input-size", help="Side of the images, or CxHxW.", metavar="SIZE"),
]
Data = Annotated[
    str,
    typer.Option(help="mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR, imagefolder:DIR."),
]
MaybeData = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--data", help="Images to measure accuracy on, as in mnist:DIR."),
]
Split = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="train, val or test; by default test, or val where there is no test."),
]
Normalize = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="mnist, cifar10, imagenet, ... or MEAN,.../STD,...; else the file's own."),
]
Resize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Scale the shorter side to this and cut out the middle.", min=1),
]
Limit = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="At most so many images, evenly from all over the set.", min=1),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Batch = Annotated[int, typer.Option("--batch-size", help="Images at a time.", min=1)]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]
By = Annotated[str, typer.Option(help="gate, random or depth.", metavar="CRITERION")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", help="What to write; by default beside the input."),
]


def main() -> None:
    """Run the command line; refused inputs end in one line and exit code 1."""
    try:
        app()
    except GatePrunerError as error:
        fail(" ".join(str(error).split()))
    except OSError as error:
        fail(f"{error.filename or 'the disk'}: {error.strerror or error}")
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        fail("out of memory: lower --batch-size")


def fail(message: str) -> None:
    """One line on stderr and exit code 1."""
    typer.echo(f"error: {message}", err=True)
    sys.exit(1)


# --------------------------------------------------------------------------- what commands share


def _terminal(quiet: bool, as_json: bool) -> Terminal:
    from gatepruner.report.terminal import Terminal

    return Terminal(quiet=quiet, silent=as_json)


def _finish(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document, indent=1))


def _shape(size: str | None) -> Shape | None:
    if size is None:
        return None
    try:
        sides = [int(side) for side in size.split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        sides = [3, sides[0], sides[0]]
    if len(sides) != 3 or min(sides) < 1:
        raise typer.BadParameter(f"{size!r}: expected a side as in 64, or CxHxW as in 1x28x28")
    return sides[0], sides[1], sides[2]


def _read(path: Path, arch: str | None, classes: int | None, size: str | None) -> Checkpoint:
    from gatepruner.checkpoint import load

    return load(path, arch=arch, num_classes=classes, input_shape=_shape(size))


def _images(
    checkpoint: Checkpoint,
    data: str,
    split: str | None,
    resize: int | None,
    limit: int | None,
    terminal: Terminal,
) -> Images:
    from gatepruner.data import load_images

    return load_images(
        data,
        checkpoint.network.base.input_shape,
        split=split,
        resize=resize,
        limit=limit,
        track=terminal.track("reading images"),
    )


def _normalization(
    checkpoint: Checkpoint, images: Images, chosen: str | None, terminal: Terminal
) -> Normalization:
    """The normalisation to use, which the output names."""
    from gatepruner.data import normalization_of, parse_normalization

    given = parse_normalization(chosen) if chosen else None
    found = normalization_of(checkpoint.notes, images.shape[0], given)
    terminal.say(f"{len(images):,} images of {images.source}, {found.source} normalisation")
    return found


def _beside(path: Path, what: str, suffix: str | None = None) -> Path:
    """A name beside the input that says what was done."""
    kept = path.suffix if path.suffix == ".safetensors" else ".pt"
    return path.with_name(f"{path.stem}-{what}{kept if suffix is None else suffix}")


def _blocks_left(checkpoint: Checkpoint) -> int:
    return sum(block.branch for block in checkpoint.network.blocks)


# --------------------------------------------------------------------------- commands


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "gatepruner-demo"
    ),
    as_json: Json = False,
    quiet: Quiet = False,
    device: Device = "auto",
    force: Force = False,
) -> None:
    """Show the whole of it on an embedded network and embedded images, in seconds.

    Ranks the 50 blocks of a 100-layer network for MNIST, measures accuracy against blocks
    removed, prunes ten of them, writes the smaller network and a report.

    Example: `gatepruner demo`
    """
    from gatepruner.checkpoint import save
    from gatepruner.cost import count
    from gatepruner.demo import demo_checkpoint, demo_images
    from gatepruner.evaluate import accuracy
    from gatepruner.ranking import rank
    from gatepruner.report import terminal as show
    from gatepruner.report.files import Report, refuse_report, write_report
    from gatepruner.storage import refuse_existing
    from gatepruner.surgery import fold_gates, remove

    refuse_report(output, force=force)
    smaller = output / "pruned.pt"
    refuse_existing(smaller, force=force)
    terminal = _terminal(quiet, as_json)
    whole, images = demo_checkpoint(), demo_images()
    ranking = rank(whole)
    terminal.say(f"{whole.network}: the ten blocks with the lowest gates, of {len(ranking.names)}")
    terminal.say(show.ranking_table(ranking, show.gates_of(whole), 10))
    points, baseline = _curves(whole, images, ranking, 3, 0, 1, device, 500, terminal)
    terminal.say(f"\naccuracy against blocks removed, {len(images):,} images it was not trained on")
    terminal.say(show.curve_table(points, baseline))
    plan = ranking.first(10)
    small = fold_gates(remove(whole, plan))
    before, after = (_blocks_left(whole), count(whole.network)), (40, count(small.network))
    found = accuracy(small, images, device=device, batch_size=500)
    times = _latencies(whole, small, 1, device, terminal)
    terminal.say("\nwithout these ten, gates folded into the weights")
    terminal.say(show.change_table(before, after))
    terminal.say(f"accuracy {show.accuracy_text(points[0].accuracy)}")
    terminal.say(f"      to {show.accuracy_text(found)}")
    terminal.say(show.latency_text(times))
    output.mkdir(parents=True, exist_ok=True)
    configuration = {"data": images.source, "images": len(images), "device": device, "seeds": 3}
    report = Report(whole, ranking, points, baseline, plan, times, configuration)
    save(small, smaller, force=force)
    write_report(report, output, force=force)
    terminal.say(
        f"\nwrote {smaller} and the report {output / 'report.md'}\n\n"
        "next, on a gated network of your own:\n"
        "  gatepruner inspect yours.pt\n"
        "  gatepruner sweep yours.pt --data imagefolder:DIR\n"
        "  gatepruner prune yours.pt --drop 10 --data imagefolder:DIR\n"
        "or train one:\n"
        "  gatepruner train gated-resnet20 --data cifar10:DIR -o yours.pt"
    )
    document = report.to_json() | {"output": str(smaller), "accuracy_after": found.accuracy}
    _finish(document, as_json)


def _curves(
    checkpoint: Checkpoint,
    images: Images,
    ranking: Ranking,
    orders: int,
    seed: int,
    step: int,
    device: str,
    batch_size: int,
    terminal: Terminal,
    normalization: Normalization | None = None,
) -> tuple[list[Point], list[list[Point]]]:
    """The removal curve of a ranking and of some random orders."""
    from gatepruner.curve import sweep
    from gatepruner.ranking import rank

    last = len(ranking.names)
    counts = sorted({*range(0, last + 1, step), last})
    rankings = [ranking, *(rank(checkpoint, "random", seed=seed + at) for at in range(orders))]
    names = [f"removing by {ranking.criterion}", *(f"random order {n + 1}" for n in range(orders))]
    curves = [
        list(
            sweep(
                checkpoint,
                images,
                one,
                counts=counts,
                device=device,
                batch_size=batch_size,
                normalization=normalization,
                track=terminal.track(name),
            )
        )
        for one, name in zip(rankings, names, strict=True)
    ]
    return curves[0], curves[1:]


def _latencies(
    whole: Checkpoint, small: Checkpoint, batch: int, device: str, terminal: Terminal
) -> dict[str, Any]:
    from gatepruner.cost import latency
    from gatepruner.device import pick_device

    modules = {"whole": whole.build(), "pruned": small.build()}
    return dict(
        latency(
            modules,
            whole.network.base.input_shape,
            batch=batch,
            device=pick_device(device),
            track=terminal.track("measuring latency"),
        )
    )


@app.command()
def inspect(
    ckpt: File,
    arch: Arch = None,
    num_classes: Classes = None,
    input_size: Size = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint holds: its network, blocks, gates, cost and history.

    Example: `gatepruner inspect resnet56.th`
    """
    from gatepruner.cost import count
    from gatepruner.report import terminal as show

    checkpoint = _read(ckpt, arch, num_classes, input_size)
    network, cost = checkpoint.network, count(checkpoint.network)
    terminal, gates = _terminal(False, as_json), show.gates_of(checkpoint)
    terminal.say(f"{ckpt}: {network}, images of {'x'.join(map(str, network.base.input_shape))}")
    terminal.say(
        f"{_blocks_left(checkpoint)} blocks, {cost.params:,} parameters, {cost.macs:,} MACs"
    )
    terminal.say(show.block_table(network.blocks, gates))
    for done in checkpoint.notes.get("history", ()):
        terminal.say(f"history: {json.dumps(done)}")
    document = {
        "input": str(ckpt),
        "name": str(network),
        "network": network.to_json(),
        "blocks": [
            {
                "name": block.name,
                "stage": block.stage,
                "identity": block.identity,
                "branch": block.branch,
                "shortcut": block.shortcut,
                "gate": gates.get(block.name),
                "layers": list(block.layers),
            }
            for block in network.blocks
        ],
        "params": cost.params,
        "macs": cost.macs,
        "notes": dict(checkpoint.notes),
    }
    _finish(document, as_json)


@app.command("rank")
def rank_(
    ckpt: File,
    by: By = "gate",
    arch: Arch = None,
    num_classes: Classes = None,
    input_size: Size = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """List the blocks that can go, least important first.

    Example: `gatepruner rank gated.pt`
    """
    from gatepruner.ranking import rank
    from gatepruner.report import terminal as show

    checkpoint = _read(ckpt, arch, num_classes, input_size)
    ranking, gates = rank(checkpoint, by, seed=seed), show.gates_of(checkpoint)
    _terminal(False, as_json).say(show.ranking_table(ranking, gates))
    blocks = [
        {"name": name, "gate": gates.get(name), "score": score} for name, score in ranking.scores
    ]
    _finish({"input": str(ckpt), "criterion": by, "seed": seed, "blocks": blocks}, as_json)


@app.command()
def prune(
    ckpt: File,
    drop: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Remove this many, least important first.", min=0),
    ] = None,
    keep: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Keep this many.", min=0),
    ] = None,
    threshold: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Remove those with a score of at most this."),
    ] = None,
    blocks: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Remove these, as in layer1.2,layer3.0."),
    ] = None,
    shortcuts: Annotated[
        int, typer.Option(help="Also remove the shortcuts of this many most important ones.", min=0)
    ] = 0,
    fold: Annotated[bool, typer.Option(help="Fold the gates into the weights.")] = True,
    by: By = "gate",
    data: MaybeData = None,
    output: Out = None,
    split: Split = None,
    normalize: Normalize = None,
    resize: Resize = None,
    limit: Limit = None,
    latency: Annotated[bool, typer.Option("--latency", help="Measure latency, too.")] = False,
    latency_batch: Annotated[int, typer.Option(help="Images in a timed pass.", min=1)] = 1,
    arch: Arch = None,
    num_classes: Classes = None,
    input_size: Size = None,
    device: Device = "auto",
    seed: Seed = 0,
    batch_size: Batch = 128,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Remove blocks and write the smaller network.

    Needs no data; with `--data` it reports accuracy before and after, too.

    Example: `gatepruner prune gated.pt --drop 10`

    Example: `gatepruner prune resnet56.th --blocks layer1.2,layer1.5 --data imagefolder:cifar10`
    """
    from gatepruner.checkpoint import save
    from gatepruner.cost import count
    from gatepruner.storage import refuse_existing
    from gatepruner.surgery import fold_gates, remove, remove_shortcuts

    given = {"drop": drop, "keep": keep, "threshold": threshold, "blocks": blocks}
    chosen = [f"{key}{value}" for key, value in given.items() if value is not None]
    if len(chosen) > 1 or not (chosen or shortcuts):
        raise typer.BadParameter("give one of --drop, --keep, --threshold and --blocks")
    terminal = _terminal(quiet, as_json)
    whole = _read(ckpt, arch, num_classes, input_size)
    plan = _plan(whole, drop, keep, threshold, blocks, by, seed)
    what = [f"blocks{len(plan)}" if blocks is not None else "".join(chosen)] if chosen else []
    what += [f"shortcuts{shortcuts}"] if shortcuts else []
    target = output or _beside(ckpt, "-".join(what))
    refuse_existing(target, force=force)
    small = remove(whole, plan)
    loose = _most_important(small, shortcuts, by, seed)
    small = remove_shortcuts(small, loose)
    kept_gated, small = small, fold_gates(small) if fold else small
    document: dict[str, Any] = {
        "input": str(ckpt),
        "output": str(target),
        "removed": list(plan),
        "shortcuts_removed": list(loose),
        "constants": [*small.network.edits.scaled_branches, *small.network.edits.scaled_shortcuts],
        "blocks_before": _blocks_left(whole),
        "blocks_after": _blocks_left(small),
    }
    costs = [count(checkpoint.network) for checkpoint in (whole, small)]
    for name, cost in zip(("before", "after"), costs, strict=True):
        document |= {f"params_{name}": cost.params, f"macs_{name}": cost.macs}
    if data is not None:
        images = _images(whole, data, split, resize, limit, terminal)
        document |= _accuracies(whole, small, images, normalize, device, batch_size, terminal)
    if latency:
        times = _latencies(whole, small, latency_batch, device, terminal)
        document["latency"] = {name: vars(found) for name, found in times.items()}
    save(small, target, force=force)
    _show_pruned(document, costs, len(kept_gated.network.edits.gated) if fold else 0, terminal)
    _finish(document, as_json)


def _plan(
    checkpoint: Checkpoint,
    drop: int | None,
    keep: int | None,
    threshold: float | None,
    blocks: str | None,
    by: str,
    seed: int,
) -> tuple[str, ...]:
    """The blocks to remove."""
    from gatepruner.errors import PlanError
    from gatepruner.ranking import rank

    if blocks is not None:
        return tuple(name.strip() for name in blocks.split(",") if name.strip())
    if drop is keep is threshold is None:
        return ()
    ranking = rank(checkpoint, by, seed=seed)
    if threshold is not None:
        return ranking.up_to(threshold)
    if keep is not None and keep > len(ranking.names):
        raise PlanError(
            f"cannot keep {keep} blocks: {checkpoint.network} has {len(ranking.names)} that can "
            "be removed"
        )
    return ranking.first(len(ranking.names) - keep if keep is not None else drop or 0)


def _most_important(checkpoint: Checkpoint, count: int, by: str, seed: int) -> tuple[str, ...]:
    from gatepruner.ranking import rank

    return rank(checkpoint, by, seed=seed).last(count) if count else ()


def _accuracies(
    whole: Checkpoint,
    small: Checkpoint,
    images: Images,
    normalize: str | None,
    device: str,
    batch_size: int,
    terminal: Terminal,
) -> dict[str, Any]:
    """Accuracy before and after, on the same images."""
    from gatepruner.evaluate import accuracy
    from gatepruner.report.terminal import accuracy_text

    normalization = _normalization(whole, images, normalize, terminal)
    found: dict[str, Any] = {"images": len(images), "data": images.source}
    for name, checkpoint in (("before", whole), ("after", small)):
        result = accuracy(
            checkpoint,
            images,
            device=device,
            batch_size=batch_size,
            normalization=normalization,
            track=terminal.track(f"accuracy {name}"),
        )
        found[f"accuracy_{name}"] = result.accuracy
        terminal.say(f"accuracy {name}: {accuracy_text(result)}")
    return found


def _show_pruned(
    document: dict[str, Any], costs: list[Any], folded: int, terminal: Terminal
) -> None:
    from gatepruner.cost import Latency
    from gatepruner.report import terminal as show

    if document["removed"]:
        terminal.say(f"removed {', '.join(document['removed'])}")
    if document["shortcuts_removed"]:
        terminal.say(f"shortcuts removed: {', '.join(document['shortcuts_removed'])}")
    if folded:
        terminal.say(f"{folded} gates folded into the weights")
    if document["constants"]:
        terminal.say(f"a constant factor stays in {', '.join(document['constants'])}")
    terminal.say(
        show.change_table(
            (document["blocks_before"], costs[0]), (document["blocks_after"], costs[1])
        )
    )
    if "latency" in document:
        times = {name: Latency(**found) for name, found in document["latency"].items()}
        terminal.say(show.latency_text(times))
    terminal.say(f"wrote {document['output']}")


@app.command("sweep")
def sweep_(
    ckpt: File,
    data: Data,
    by: By = "gate",
    output: Out = None,
    random: Annotated[int, typer.Option(help="Random orders to compare with.", min=0)] = 3,
    step: Annotated[int, typer.Option(help="Blocks from one point to the next.", min=1)] = 1,
    split: Split = None,
    normalize: Normalize = None,
    resize: Resize = None,
    limit: Limit = None,
    arch: Arch = None,
    num_classes: Classes = None,
    input_size: Size = None,
    device: Device = "auto",
    seed: Seed = 0,
    batch_size: Batch = 128,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Measure accuracy against blocks removed, and write a report.

    Example: `gatepruner sweep gated.pt --data imagefolder:cifar10 -o report`
    """
    from gatepruner.device import pick_device
    from gatepruner.ranking import rank
    from gatepruner.report import terminal as show
    from gatepruner.report.files import Report, refuse_report, write_report

    target = output or _beside(ckpt, f"sweep-{by}", "")
    refuse_report(target, force=force)
    terminal = _terminal(quiet, as_json)
    checkpoint = _read(ckpt, arch, num_classes, input_size)
    ranking = rank(checkpoint, by, seed=seed)
    chosen_device = str(pick_device(device))
    images = _images(checkpoint, data, split, resize, limit, terminal)
    chosen = _normalization(checkpoint, images, normalize, terminal)
    points, baseline = _curves(
        checkpoint, images, ranking, random, seed, step, chosen_device, batch_size, terminal, chosen
    )
    configuration = {
        "input": str(ckpt),
        "data": images.source,
        "images": len(images),
        "normalize": f"{chosen.source}: mean {chosen.mean}, deviation {chosen.std}",
        "device": chosen_device,
        "batch_size": batch_size,
        "seed": seed,
        "random_orders": random,
    }
    report = Report(checkpoint, ranking, points, baseline, configuration=configuration)
    write_report(report, target, force=force)
    terminal.say(show.curve_table(points, baseline))
    terminal.say(f"wrote {target / 'report.md'}, with its figures and tables")
    _finish(report.to_json() | {"output": str(target)}, as_json)


@app.command()
def evaluate(
    ckpt: File,
    data: Data,
    split: Split = None,
    normalize: Normalize = None,
    resize: Resize = None,
    limit: Limit = None,
    arch: Arch = None,
    num_classes: Classes = None,
    input_size: Size = None,
    device: Device = "auto",
    batch_size: Batch = 128,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure top-1 accuracy, with its 95 % interval, and mean loss.

    Example: `gatepruner evaluate resnet56.th --data imagefolder:cifar10`
    """
    from gatepruner.evaluate import accuracy
    from gatepruner.report.terminal import accuracy_text

    terminal = _terminal(quiet, as_json)
    checkpoint = _read(ckpt, arch, num_classes, input_size)
    images = _images(checkpoint, data, split, resize, limit, terminal)
    chosen = _normalization(checkpoint, images, normalize, terminal)
    found = accuracy(
        checkpoint,
        images,
        device=device,
        batch_size=batch_size,
        normalization=chosen,
        track=terminal.track("evaluating"),
    )
    terminal.say(accuracy_text(found))
    low, high = found.interval
    document = {
        "input": str(ckpt),
        "data": images.source,
        "normalize": {"mean": chosen.mean, "std": chosen.std, "source": chosen.source},
        "accuracy": found.accuracy,
        "low": low,
        "high": high,
        "correct": found.correct,
        "images": found.images,
        "loss": found.loss,
    }
    _finish(document, as_json)


@app.command("train")
def train_(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH", help="As in gated-resnet20, gated-wrn-16-4,dropout=0.3, resnet56-b."
        ),
    ],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    epochs: Annotated[int, typer.Option(help="Passes over the images.", min=1)] = 10,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    learning_rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Peak, of the weights; 0.1 for SGD, 0.001 for Adam."),
    ] = None,
    schedule: Annotated[str, typer.Option(help="onecycle or step.")] = "onecycle",
    weight_decay: Annotated[float, typer.Option(help="Of the weights, not of gates.")] = 5e-4,
    gate_learning_rate: Annotated[float, typer.Option(help="Peak, of the gates.")] = 0.05,
    gate_penalty: Annotated[float, typer.Option(help="Times the sum of all gates.")] = 0.0,
    augment: Annotated[bool, typer.Option(help="Shift, and mirror if in colour.")] = True,
    hold_out: Annotated[int, typer.Option(help="Training images to validate on.", min=0)] = 0,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    normalize: Normalize = None,
    resize: Resize = None,
    limit: Limit = None,
    num_classes: Classes = None,
    input_size: Size = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    batch_size: Batch = 128,
    as_json: Json = False,
    quiet: Quiet = False,
    force: Force = False,
) -> None:
    """Train a network, gates and weights together, from fresh weights.

    Interrupted or killed, it goes on with `--resume` and ends with the same weights. Every epoch
    is written to the history beside the output.

    Example: `gatepruner train gated-resnet20 --data cifar10:DIR --epochs 40 -o gated.pt`
    """
    from gatepruner.checkpoint import save
    from gatepruner.data import load_images, parse_normalization
    from gatepruner.network import Network
    from gatepruner.storage import refuse_existing
    from gatepruner.training import Recipe, train

    state, history = (output.with_name(output.name + end) for end in (".state", ".history.jsonl"))
    refuse_existing(output, force=force)
    if state.exists() and not resume and not force:
        raise CheckpointError(
            f"{state} is the state of a run that was interrupted: --resume to go on with it, or "
            "--force to begin anew"
        )
    recipe = Recipe(
        epochs,
        batch_size,
        optimizer,
        learning_rate,
        schedule,
        weight_decay,
        gate_learning_rate,
        gate_penalty,
        augment,
        seed,
    )
    terminal = _terminal(quiet, as_json)
    network = Network.named(arch, num_classes=num_classes, input_shape=_shape(input_size))
    images = load_images(
        data,
        network.base.input_shape,
        split=split,
        resize=resize,
        limit=limit,
        track=terminal.track("reading images"),
    )
    images, held_out = images.held_out(hold_out, seed)
    terminal.say(f"{network}: {len(images):,} images of {images.source}")
    with _stopping(state), terminal.training() as watch, _recording(history, resume) as record:

        def both(moment: Any) -> None:
            watch(moment)
            record(moment)

        checkpoint = train(
            network,
            images,
            recipe,
            validation=held_out,
            normalization=parse_normalization(normalize) if normalize else None,
            device=device,
            state=state,
            resume=resume,
            watch=both,
        )
        save(checkpoint, output, force=force)
    state.unlink(missing_ok=True)
    last = checkpoint.notes["epochs"][-1]
    terminal.say(f"wrote {output} (training loss {last['loss']:.4f}) and {history}")
    _finish({"output": str(output), "history": str(history), "name": str(network), **last}, as_json)


@contextlib.contextmanager
def _stopping(state: Path) -> Iterator[None]:
    """Say how to go on when a run is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; {state} is kept: go on with the same command and --resume", err=True
        )
        sys.exit(130)


@contextlib.contextmanager
def _recording(history: Path, resume: bool) -> Iterator[Any]:
    """A watcher that writes a line for every epoch; a resumed run keeps what it goes on from."""
    if not resume:
        history.unlink(missing_ok=True)

    def record(moment: Any) -> None:
        if not moment.ends_epoch:
            return
        lines = history.read_text().splitlines() if history.exists() else []
        earlier = [line for line in lines if json.loads(line)["epoch"] < moment.epoch]
        text = "\n".join([*earlier, json.dumps(moment.record())]) + "\n"
        history.write_text(text)

    yield record


@app.command()
def export(
    ckpt: File,
    to: Annotated[str, typer.Option(help="torchvision or safetensors.", metavar="FORMAT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    arch: Arch = None,
    num_classes: Classes = None,
    input_size: Size = None,
    as_json: Json = False,
    force: Force = False,
) -> None:
    """Write a network for other software.

    `torchvision` writes a state dict that the stock ResNet loads strictly, `safetensors` the
    weights, gates folded.

    Example: `gatepruner export resnet50-drop4.pt --to torchvision -o small.pth`
    """
    from gatepruner.checkpoint import save
    from gatepruner.export import to_torchvision
    from gatepruner.storage import write_tensors
    from gatepruner.surgery import fold_gates

    if to not in ("torchvision", "safetensors"):
        raise typer.BadParameter(f"unknown format {to!r}: expected torchvision or safetensors")
    terminal = _terminal(False, as_json)
    checkpoint = _read(ckpt, arch, num_classes, input_size)
    document: dict[str, Any] = {"input": str(ckpt), "output": str(output), "to": to}
    if to == "safetensors":
        if output.suffix != ".safetensors":
            raise CheckpointError(f"cannot write {output}: expected a name ending in .safetensors")
        folded = fold_gates(checkpoint) if checkpoint.network.edits.gated else checkpoint
        save(folded, output, force=force)
    else:
        stock = to_torchvision(checkpoint)
        write_tensors(stock.state, output, force=force)
        arguments = dict(stock.arguments)
        document |= {"block": stock.block, "layers": stock.layers, "arguments": arguments}
        terminal.say(stock.recipe(str(output)))
    terminal.say(f"wrote {output}")
    _finish(document, as_json)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from gatepruner import __version__

        typer.echo(f"gatepruner {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    main()
