"""`compress`: from a trained network and a goal to a smaller network, in one command."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.foretelling import Work as Effort
from gatepruner.cli.foretelling import foretell
from gatepruner.cli.goals import Targets
from gatepruner.cli.keeping import stopping
from gatepruner.cli.learning import check, gating_work, read, training_work
from gatepruner.cli.options import Data, HoldOut, Resumable, Source
from gatepruner.cli.problems import Problems
from gatepruner.cli.signature import Group
from gatepruner.cli.stages import Learning, Plan, Work, refuse_work
from gatepruner.errors import DataError
from gatepruner.learning.recipes import FINE_TUNING, GateRecipe, Recipe

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.report.compression import Step
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Wanted:
    """The smaller network.

    Attributes:
        drop: remove this many blocks.
        export: also write this file, .safetensors or .pth for stock torchvision.
        epochs: epochs of fine-tuning; 0 leaves it out.
        recalibrate: training images to estimate batch-norm statistics from; 0 leaves it out.
        gate_images: training images to learn gates from.
    """

    drop: Annotated[int | None, typer.Option(min=1)] = None
    export: Path | None = None
    epochs: Annotated[int, typer.Option(min=0)] = 10
    recalibrate: Annotated[int, typer.Option(min=0)] = 2000
    gate_images: Annotated[int, typer.Option(min=2)] = 10_000

    @property
    def stock(self) -> bool:
        """Whether stock torchvision is to load the result."""
        return self.export is not None and self.export.suffix != ".safetensors"


GATING = {
    "warmup": "gate_warmup",
    "steps": "gate_steps",
    "learning_rate": "gate_learning_rate",
    "norm_learning_rate": "norm_learning_rate",
    "batch_size": "batch_size",
    "seed": "seed",
}


def compress(
    source: Source,
    *,
    wanted: Wanted,
    targets: Targets,
    call: Annotated[Resumable, Group(needs=("output",))],
    data: Annotated[Data, Group(needs=("data",))],
    gating: Annotated[GateRecipe, Group(only=GATING)],
    tuning: Annotated[
        Recipe, Group(only={name: name for name in ("learning_rate", "batch_size", "seed")})
    ] = FINE_TUNING,
    held: HoldOut,
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
    from gatepruner.pruning.ranking import rank
    from gatepruner.report.tables import loading_text

    _refuse_wish(targets, wanted.drop, held.hold_out)
    terminal, goal, drop = call.terminal, targets, wanted.drop
    output = call.target(source.ckpt, "")
    problems = Problems()
    for file in (output, *([wanted.export] if wanted.export else [])):
        with problems:
            refuse_name(file)
            refuse_existing(file, force=call.force or call.resume)
    folder = output.with_name(f"{output.stem}-compress")
    with problems:
        if not call.resume:
            refuse_work(folder, force=call.force)
    whole = read(source, data, problems)
    if wanted.stock:
        with problems:
            to_torchvision(whole)  # refuses a network that torchvision does not have
    shape = whole.network.base.input_shape
    with problems:
        train = data.training(shape, terminal)
        if train is None:
            raise DataError(f"{data.data} has no train split: compress learns from training images")
        test = data.images(shape, terminal)
    with problems:
        rank(whole, "depth").first(drop or 0)
    if problems.errors:
        problems.refuse()
    assert train is not None
    held_out = None
    with problems:
        train, held_out = train.held_out(held.hold_out, held.seed)
    check(whole.network, train, gating.batch_size, problems)
    if train.classes != test.classes:
        check(whole.network, test, 1, problems)
    gating = replace(
        gating,
        identity_only=wanted.stock,
        cost=goal.target.cost if goal.target is not None else "none",
        latency_batch=goal.latency_batch,
    )
    tuning = replace(tuning, epochs=max(wanted.epochs, 1))
    plan = Plan(wanted.gate_images, gating, wanted.recalibrate, tuning if wanted.epochs else None)
    problems.refuse()
    normalization = data.normalization(whole, test, terminal)
    learning = Learning(
        goal, drop, train, held_out, normalization, data.device, wanted.stock, terminal
    )
    if goal.target is not None:
        _refuse_unreachable(whole, goal, learning, terminal)
    if call.dry_run:
        efforts = [
            gating_work(whole, train.spread(wanted.gate_images), replace(gating, blocks=drop))
        ]
        if wanted.epochs:
            efforts.append(training_work(train, tuning, "fine-tune", taught=True))
        efforts.append(Effort(f"measure accuracy on {len(test):,} images", 6 * len(test)))
        outputs = [output, folder, *([wanted.export] if wanted.export else [])]
        return foretell(call, whole, outputs, efforts, data)
    asked = f"drop{drop}" if drop is not None else goal.given[0]
    configuration = {
        "input": str(source.ckpt),
        "network": whole.fingerprint,
        "goal": asked,
        "training images": f"{train.source}, {len(train)}",
        "test images": f"{test.source}, {len(test)}",
        "normalize": f"mean {normalization.mean}, deviation {normalization.std}",
        **plan.to_json(),
    }

    def evaluated(name: str, network: Checkpoint, seconds: float) -> Step:
        return _evaluated(name, network, seconds, test, normalization, data, terminal)

    work = Work(folder, configuration, evaluated, terminal)
    work.begin(resume=call.resume, force=call.force)
    with stopping(folder / "steps.json"):
        removed, small = learning.carry_out(plan, whole, work)
        steps = _timed(work, whole, removed, small, goal, data.device, terminal)
    save(small, output, force=True)
    if wanted.export is not None:
        _export(small, wanted.export, terminal)
    _report(steps, configuration, folder, output, terminal)
    call.record(output)
    terminal.say(loading_text(str(output)))
    return call.finish({"output": str(output), "steps": [asdict(step) for step in steps]})


def _refuse_wish(targets: Targets, drop: int | None, hold_out: int) -> None:
    """Refuse what is no goal, or more than one."""
    if (drop is None) == (not targets.given):
        raise typer.BadParameter(
            "give one of --drop, --target-macs, --target-params, --target-latency and --max-loss"
        )
    if targets.max_loss is not None and not hold_out:
        raise typer.BadParameter("--max-loss is measured on held-out images: --hold-out above 0")


def _refuse_unreachable(
    whole: Checkpoint, goal: Targets, learning: Learning, terminal: Terminal
) -> None:
    """Refuse a cost that cannot be reached before anything is learned; say what can."""
    from gatepruner.pruning.goals import reach
    from gatepruner.pruning.ranking import rank

    target = goal.target
    assert target is not None
    measure = goal.measure(target.cost, learning.device)
    ranking = rank(whole, "depth").among(learning.may_go(whole))
    found = reach(whole.network, ranking, target, measure)
    terminal.say(f"reachable: {found}")


def _evaluated(
    name: str,
    network: Checkpoint,
    seconds: float,
    test: Images,
    normalization: Normalization,
    data: Data,
    terminal: Terminal,
) -> Step:
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.measuring.cost import count
    from gatepruner.report.compression import Step

    found = accuracy(
        network,
        test,
        device=data.device,
        batch_size=data.batch_size,
        normalization=normalization,
        track=terminal.track(f"accuracy, {name}"),
    )
    cost, blocks = count(network.network), network.network.depth
    low, high = found.interval
    size = (found.images, blocks, cost.params, cost.macs)
    return Step(name, found.accuracy, low, high, *size, seconds)


def _timed(
    work: Work,
    whole: Checkpoint,
    removed: Checkpoint,
    small: Checkpoint,
    goal: Targets,
    device: str,
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
        device=pick_device(device),
        track=terminal.track("measuring latency"),
    )
    times = {row["name"]: found.get(row["name"], found["small"]).median for row in work.rows}
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
    from gatepruner.report.tables import steps_table

    report = write_compression(steps, configuration, folder)
    terminal.say(steps_table(steps))
    terminal.say(f"wrote {output} and {report}")
