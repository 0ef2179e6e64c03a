"""`compress`: from a trained network and a goal to a smaller network, in one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli import options as o
from gatepruner.cli.goals import Goal
from gatepruner.cli.keeping import stopping
from gatepruner.cli.stages import Learning, Plan, Work
from gatepruner.errors import DataError

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.report.compression import Step
    from gatepruner.report.terminal import Terminal


def compress(
    ckpt: o.File,
    data: o.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    drop: Annotated[o.MaybeInt, typer.Option(help="Remove this many blocks.", min=1)] = None,
    target_macs: o.TargetMacs = None,
    target_params: o.TargetParams = None,
    target_latency: o.TargetLatency = None,
    max_loss: o.MaxLoss = None,
    epochs: Annotated[int, typer.Option(help="Of fine-tuning; 0 for none.", min=0)] = 10,
    gate_images: Annotated[int, typer.Option(help="Images to learn gates from.", min=2)] = 10_000,
    gate_steps: Annotated[int, typer.Option(help="Steps after each block's going.", min=1)] = 50,
    gate_learning_rate: Annotated[float, typer.Option(help="Of the gates.")] = 0.02,
    norm_learning_rate: Annotated[
        float, typer.Option(help="Of scales and shifts while gates are learned; 0 leaves them.")
    ] = 0.02,
    learning_rate: Annotated[float, typer.Option(help="Of fine-tuning.")] = 0.02,
    recalibrate: o.Recalibrate = 2000,
    hold_out: o.HoldOut = 1000,
    export: Annotated[
        o.MaybePath,
        typer.Option(help="Also write this .safetensors, or .pth for stock torchvision."),
    ] = None,
    split: o.Split = None,
    limit: o.Limit = None,
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    latency_batch: o.LatencyBatch = 1,
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    batch_size: o.BatchSize = 128,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Gate, remove, fold, recalibrate, fine-tune, evaluate, export and report, in one go.

    The folder OUTPUT-compress beside the output keeps the network of every step, and the report.
    Interrupted or killed, it goes on with `--resume`.

    Example: `gatepruner compress resnet56.th --data imagefolder:cifar10 --target-latency 50%
    -o small.pt`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.files.export import to_torchvision
    from gatepruner.files.storage import refuse_existing, refuse_name
    from gatepruner.learning.recipes import FINE_TUNING, GateRecipe

    goal = Goal(target_macs, target_params, target_latency, max_loss, device, latency_batch)
    _refuse_wish(goal, drop, hold_out)
    for file in (output, *([export] if export else [])):
        refuse_name(file)
        refuse_existing(file, force=force or resume)
    terminal = o.terminal_of(quiet, as_json)
    whole = o.read(ckpt, arch, num_classes, input_size)
    stock = export is not None and export.suffix != ".safetensors"
    if stock:
        to_torchvision(whole)  # refuses a network that torchvision does not have
    measuring = o.Measuring(data, split, normalize, resize, limit, device, batch_size)
    shape = whole.network.base.input_shape
    train = measuring.training(shape, terminal)
    if train is None:
        raise DataError(f"{data} has no train split: compress learns from training images")
    train, held_out = train.held_out(hold_out, seed)
    test = measuring.images(shape, terminal)
    gating = GateRecipe(
        identity_only=stock,
        steps=gate_steps,
        batch_size=batch_size,
        learning_rate=gate_learning_rate,
        norm_learning_rate=norm_learning_rate,
        cost=goal.target.cost if goal.target is not None else "none",
        latency_batch=latency_batch,
        seed=seed,
    )
    tuning = replace(
        FINE_TUNING,
        epochs=max(epochs, 1),
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
    )
    plan = Plan(gate_images, gating, recalibrate, tuning if epochs else None)
    _refuse_images(whole, (train, test), drop, batch_size, device)
    normalization = measuring.normalization(whole, test, terminal)
    learning = Learning(goal, drop, train, held_out, normalization, device, stock, terminal)
    if goal.target is not None:
        _refuse_unreachable(whole, goal, learning, terminal)
    asked = f"drop{drop}" if drop is not None else goal.given[0]
    configuration = {
        "input": str(ckpt),
        "network": whole.fingerprint,
        "goal": asked,
        "training images": f"{train.source}, {len(train)}",
        "test images": f"{test.source}, {len(test)}",
        "normalize": f"mean {normalization.mean}, deviation {normalization.std}",
        **plan.to_json(),
    }
    folder = output.with_name(f"{output.stem}-compress")

    def evaluated(name: str, network: Checkpoint, seconds: float) -> Step:
        return _evaluated(name, network, seconds, test, normalization, measuring, terminal)

    work = Work(folder, configuration, evaluated, terminal)
    work.begin(resume=resume, force=force)
    with stopping(folder / "steps.json"):
        removed, small = learning.carry_out(plan, whole, work)
        steps = _timed(work, whole, removed, small, goal, terminal)
    save(small, output, force=True)
    if export is not None:
        _export(small, export, terminal)
    _report(steps, configuration, folder, output, terminal)
    o.finish({"output": str(output), "steps": [asdict(step) for step in steps]}, as_json)


def _refuse_wish(goal: Goal, drop: int | None, hold_out: int) -> None:
    """Refuse what is no goal, or more than one."""
    if (drop is None) == (not goal.given):
        raise typer.BadParameter(
            "give one of --drop, --target-macs, --target-params, --target-latency and --max-loss"
        )
    if goal.max_loss is not None and not hold_out:
        raise typer.BadParameter("--max-loss is measured on held-out images: --hold-out above 0")


def _refuse_images(
    whole: Checkpoint, sets: Sequence[Images], drop: int | None, batch_size: int, device: str
) -> None:
    """Refuse before anything is written what would be found out only later."""
    from gatepruner.errors import TrainingError
    from gatepruner.measuring.device import pick_device
    from gatepruner.measuring.inputs import check_fit
    from gatepruner.pruning.ranking import rank

    pick_device(device)
    rank(whole, "depth").first(drop or 0)
    for images in sets:
        check_fit(whole.network, images)
    if len(sets[0]) < batch_size:
        raise TrainingError(
            f"{sets[0].source} has {len(sets[0])} images: a batch of {batch_size} was expected "
            "to fit; lower --batch-size"
        )


def _refuse_unreachable(
    whole: Checkpoint, goal: Goal, learning: Learning, terminal: Terminal
) -> None:
    """Refuse a cost that cannot be reached before anything is learned; say what can."""
    from gatepruner.pruning.goals import reach
    from gatepruner.pruning.ranking import rank

    target = goal.target
    assert target is not None
    measure = goal.measure(target.cost)
    ranking = rank(whole, "depth").among(learning.may_go(whole))
    found = reach(whole.network, ranking, target, measure)
    terminal.say(f"reachable: {found}")


def _evaluated(
    name: str,
    network: Checkpoint,
    seconds: float,
    test: Images,
    normalization: Normalization,
    measuring: o.Measuring,
    terminal: Terminal,
) -> Step:
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.measuring.cost import count
    from gatepruner.report.compression import Step

    found = accuracy(
        network,
        test,
        device=measuring.device,
        batch_size=measuring.batch_size,
        normalization=normalization,
        track=terminal.track(f"accuracy, {name}"),
    )
    cost, blocks = count(network.network), o.blocks_left(network)
    low, high = found.interval
    size = (found.images, blocks, cost.params, cost.macs)
    return Step(name, found.accuracy, low, high, *size, seconds)


def _timed(
    work: Work,
    whole: Checkpoint,
    removed: Checkpoint,
    small: Checkpoint,
    goal: Goal,
    terminal: Terminal,
) -> list[Step]:
    """The steps with their latencies; from folding on it is one network with other weights."""
    from gatepruner.learning.gates import add_gates
    from gatepruner.measuring.device import pick_device
    from gatepruner.measuring.latency import latency
    from gatepruner.report.compression import Step

    modules = {
        "whole": whole.build(),
        "gated": add_gates(whole).build(),
        "removed": removed.build(),
        "small": small.build(),
    }
    found = latency(
        modules,
        whole.network.base.input_shape,
        batch=goal.latency_batch,
        device=pick_device(goal.device),
        track=terminal.track("measuring latency"),
    )
    times = {
        name: found.get(name, found["small"]).median for name in (it["name"] for it in work.rows)
    }
    return [replace(Step(**row), latency=times[row["name"]]) for row in work.rows]


def _export(small: Checkpoint, path: Path, terminal: Terminal) -> None:
    """A file for other software, by its suffix."""
    from gatepruner.files.checkpoints import save
    from gatepruner.files.export import to_torchvision
    from gatepruner.files.storage import write_tensors

    if path.suffix == ".safetensors":
        save(small, path, force=True)
    else:
        stock = to_torchvision(small)
        write_tensors(stock.state, path, force=True)
        terminal.say(stock.recipe(str(path)))
    terminal.say(f"wrote {path}")


def _report(
    steps: list[Step],
    configuration: dict[str, Any],
    folder: Path,
    output: Path,
    terminal: Terminal,
) -> None:
    from gatepruner.report.compression import write_compression
    from gatepruner.report.terminal import steps_table

    report = write_compression(steps, configuration, folder)
    terminal.say(steps_table(steps))
    terminal.say(f"wrote {output} and {report}")
