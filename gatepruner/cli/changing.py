"""`prune` and `export`: commands that write another network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli import options as o
from gatepruner.cli.goals import Goal
from gatepruner.errors import CheckpointError, DataError, PlanError

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.measuring.cost import Cost
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.pruning.curve import Point
    from gatepruner.pruning.ranking import Ranking
    from gatepruner.report.terminal import Terminal


@dataclass(frozen=True)
class Wish:
    """Which blocks are to go, as it is asked for on the command line."""

    drop: int | None
    keep: int | None
    threshold: float | None
    blocks: str | None
    shortcuts: int
    by: str
    seed: int
    goal: Goal

    def __post_init__(self) -> None:
        if len(self._given) > 1 or not (self._given or self.shortcuts):
            raise typer.BadParameter(
                "give one of --drop, --keep, --threshold, --blocks, --target-macs, "
                "--target-params, --target-latency and --max-loss, or --shortcuts"
            )

    @property
    def _given(self) -> list[str]:
        wishes = {"drop": self.drop, "keep": self.keep, "threshold": self.threshold}
        given = [f"{key}{value:g}" for key, value in wishes.items() if value is not None]
        named = [f"blocks{len(self._names)}"] if self.blocks is not None else []
        return given + named + self.goal.given

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in (self.blocks or "").split(",") if name.strip())

    def __str__(self) -> str:
        loose = [f"shortcuts{self.shortcuts}"] if self.shortcuts else []
        return "-".join([*self._given, *loose])

    def plan(
        self, checkpoint: Checkpoint, curve: Callable[[Ranking], list[Point]], terminal: Terminal
    ) -> tuple[str, ...]:
        """The blocks to remove; `curve` tells accuracies on held-out images, if it is asked."""
        if self.blocks is not None or not self._given:
            return self._names
        ranking = self.goal.ranking(checkpoint, self.by, self.seed)
        if self.goal.given:
            count = self.goal.count(checkpoint, ranking, lambda: curve(ranking), terminal)
            return ranking.first(count)
        if self.threshold is not None:
            return ranking.up_to(self.threshold)
        there = len(ranking.names)
        if self.keep is not None and self.keep > there:
            raise PlanError(
                f"cannot keep {self.keep} blocks: {checkpoint.network} has {there} that can go"
            )
        return ranking.first(there - self.keep if self.keep is not None else self.drop or 0)

    def loose(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """The blocks whose shortcuts to remove: the most important of those that are left."""
        from gatepruner.pruning.ranking import rank

        if not self.shortcuts:
            return ()
        return rank(checkpoint, self.by, seed=self.seed).last(self.shortcuts)


def prune(
    ckpt: o.File,
    drop: Annotated[
        o.MaybeInt, typer.Option(help="Remove this many, least important first.", min=0)
    ] = None,
    keep: Annotated[o.MaybeInt, typer.Option(help="Keep this many.", min=0)] = None,
    threshold: Annotated[
        o.MaybeFloat, typer.Option(help="Remove those with a score of at most this.")
    ] = None,
    blocks: Annotated[
        o.MaybeStr, typer.Option(help="Remove these, as in layer1.2,layer3.0.")
    ] = None,
    shortcuts: Annotated[
        int, typer.Option(help="Also remove the shortcuts of this many most important ones.", min=0)
    ] = 0,
    fold: Annotated[bool, typer.Option(help="Fold the gates into the weights.")] = True,
    by: o.By = "gate",
    data: o.MaybeData = None,
    output: o.Output = None,
    split: o.Split = None,
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    limit: o.Limit = None,
    target_macs: o.TargetMacs = None,
    target_params: o.TargetParams = None,
    target_latency: o.TargetLatency = None,
    max_loss: o.MaxLoss = None,
    hold_out: o.HoldOut = 1000,
    recalibrate: o.Recalibrate = 2000,
    latency: Annotated[bool, typer.Option("--latency", help="Measure latency, too.")] = False,
    latency_batch: o.LatencyBatch = 1,
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
    """Remove blocks and write the smaller network.

    Needs no data. With `--data` it also estimates the statistics of batch norm anew on training
    images, and reports accuracy before and after. Blocks of a path that `gatepruner gate` has
    learned go with what was learned when they went.

    Example: `gatepruner prune gated.pt --drop 10`

    Example: `gatepruner prune gated.pt --target-latency 50% --data imagefolder:cifar10`

    Example: `gatepruner prune resnet56.th --blocks layer1.2,layer1.5 --data imagefolder:cifar10`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.files.storage import refuse_existing
    from gatepruner.measuring.cost import count
    from gatepruner.pruning.surgery import fold_gates, follow, remove, remove_shortcuts

    goal = Goal(target_macs, target_params, target_latency, max_loss, device, latency_batch)
    wish = Wish(drop, keep, threshold, blocks, shortcuts, by, seed, goal)
    if max_loss is not None and data is None:
        raise typer.BadParameter("--max-loss is measured on held-out training images: give --data")
    terminal = o.terminal_of(quiet, as_json)
    target = output or o.beside(ckpt, str(wish))
    refuse_existing(target, force=force)
    whole = o.read(ckpt, arch, num_classes, input_size)
    measuring = o.Measuring(data or "", split, normalize, resize, limit, device, batch_size)
    held_out = functools.partial(_held_out_curve, whole, measuring, hold_out, seed, terminal)
    plan = wish.plan(whole, held_out, terminal)
    small = (follow if by == "gate" else remove)(whole, plan)
    loose = wish.loose(small)
    small = remove_shortcuts(small, loose) if loose else small
    folded = len(small.network.edits.gated) if fold else 0
    small = fold_gates(small) if folded else small
    edits = small.network.edits
    document: dict[str, Any] = {
        "input": str(ckpt),
        "output": str(target),
        "removed": list(plan),
        "shortcuts_removed": list(loose),
        "folded": folded,
        "constants": [*edits.scaled_branches, *edits.scaled_shortcuts],
        "blocks_before": o.blocks_left(whole),
        "blocks_after": o.blocks_left(small),
    }
    costs = [count(checkpoint.network) for checkpoint in (whole, small)]
    for name, cost in zip(("before", "after"), costs, strict=True):
        document |= {f"params_{name}": cost.params, f"macs_{name}": cost.macs}
    if data is not None:
        if recalibrate and (plan or loose):
            small = recalibrated(small, measuring, recalibrate, terminal)
        document |= _accuracies(whole, small, measuring, terminal)
    if latency:
        document["latency"] = latencies(whole, small, latency_batch, device, terminal)
    save(small, target, force=force)
    _show_pruned(document, costs, terminal)
    o.finish(document, as_json)


def recalibrated(
    small: Checkpoint,
    measuring: o.Measuring,
    count: int,
    terminal: Terminal,
    augment: bool | None = None,
) -> Checkpoint:
    """The network with its statistics of so many training images, if there are any."""
    from gatepruner.measuring.recalibration import recalibrate

    images = measuring.training(small.network.base.input_shape, terminal, count)
    if images is None:
        return small
    return recalibrate(
        small,
        images,
        device=measuring.device,
        batch_size=measuring.batch_size,
        normalization=measuring.normalization(small, images, terminal),
        augment=augment,
        track=terminal.track("recalibrating"),
    )


def _held_out_curve(
    whole: Checkpoint,
    measuring: o.Measuring,
    hold_out: int,
    seed: int,
    terminal: Terminal,
    ranking: Ranking,
) -> list[Point]:
    """Accuracy against blocks removed on training images that nothing was learned from."""
    images = measuring.training(whole.network.base.input_shape, terminal)
    held_out = images.held_out(hold_out, seed)[1] if images is not None else None
    if held_out is None:
        raise DataError(
            f"--max-loss is measured on held-out training images: {measuring.data} was expected "
            "to have a train split, and --hold-out to be above 0"
        )
    return curves(
        whole,
        [ranking],
        held_out,
        measuring.normalization(whole, held_out, terminal),
        terminal,
        device=measuring.device,
        batch_size=measuring.batch_size,
    )[0]


def _accuracies(
    whole: Checkpoint, small: Checkpoint, measuring: o.Measuring, terminal: Terminal
) -> dict[str, Any]:
    """Accuracy before and after, on the same images."""
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.report.terminal import accuracy_text

    images = measuring.images(whole.network.base.input_shape, terminal)
    normalization = measuring.normalization(whole, images, terminal)
    found: dict[str, Any] = {"images": len(images), "data": images.source}
    for name, checkpoint in (("before", whole), ("after", small)):
        result = accuracy(
            checkpoint,
            images,
            device=measuring.device,
            batch_size=measuring.batch_size,
            normalization=normalization,
            track=terminal.track(f"accuracy {name}"),
        )
        found[f"accuracy_{name}"] = result.accuracy
        terminal.say(f"accuracy {name}: {accuracy_text(result)}")
    return found


def curves(
    checkpoint: Checkpoint,
    rankings: list[Ranking],
    images: Images,
    normalization: Normalization,
    terminal: Terminal,
    *,
    step: int = 1,
    device: str = "auto",
    batch_size: int = 128,
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
            device=device,
            batch_size=batch_size,
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

    found = latency(
        {"whole": whole.build(), "pruned": small.build()},
        whole.network.base.input_shape,
        batch=batch,
        device=pick_device(device),
        track=terminal.track("measuring latency"),
    )
    return {name: asdict(one) for name, one in found.items()}


def _show_pruned(document: dict[str, Any], costs: Sequence[Cost], terminal: Terminal) -> None:
    from gatepruner.report import terminal as show

    if document["removed"]:
        terminal.say(f"removed {', '.join(document['removed'])}")
    if document["shortcuts_removed"]:
        terminal.say(f"shortcuts removed: {', '.join(document['shortcuts_removed'])}")
    if document["folded"]:
        terminal.say(f"{document['folded']} gates folded into the weights")
    if document["constants"]:
        terminal.say(f"a constant factor stays in {', '.join(document['constants'])}")
    before, after = (document[f"blocks_{name}"] for name in ("before", "after"))
    terminal.say(show.change_table((before, costs[0]), (after, costs[1])))
    if "latency" in document:
        terminal.say(show.latency_text(document["latency"]))
    terminal.say(f"wrote {document['output']}")


def export(
    ckpt: o.File,
    to: Annotated[str, typer.Option(help="torchvision or safetensors.", metavar="FORMAT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    as_json: o.Json = False,
    force: o.Force = False,
) -> None:
    """Write a network for other software.

    `torchvision` writes a state dict that the stock ResNet loads strictly, `safetensors` the
    weights, gates folded.

    Example: `gatepruner export resnet50-drop4.pt --to torchvision -o small.pth`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.files.export import to_torchvision
    from gatepruner.files.storage import write_tensors
    from gatepruner.pruning.surgery import fold_gates

    if to not in ("torchvision", "safetensors"):
        raise typer.BadParameter(f"unknown format {to!r}: expected torchvision or safetensors")
    terminal = o.terminal_of(False, as_json)
    checkpoint = o.read(ckpt, arch, num_classes, input_size)
    document: dict[str, Any] = {"input": str(ckpt), "output": str(output), "to": to}
    if to == "safetensors":
        if output.suffix != ".safetensors":
            raise CheckpointError(f"cannot write {output}: expected a name ending in .safetensors")
        gated = checkpoint.network.edits.gated
        save(fold_gates(checkpoint) if gated else checkpoint, output, force=force)
    else:
        stock = to_torchvision(checkpoint)
        write_tensors(stock.state, output, force=force)
        arguments = dict(stock.arguments)
        document |= {"block": stock.block, "layers": stock.layers, "arguments": arguments}
        terminal.say(stock.recipe(str(output)))
    terminal.say(f"wrote {output}")
    o.finish(document, as_json)
