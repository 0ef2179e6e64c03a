"""`recalibrate` and `export`: commands that write the same network in another form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gatepruner.cli.foretelling import Work, foretell
from gatepruner.cli.learning import read
from gatepruner.cli.options import COMMON, Data, Source, Writing
from gatepruner.cli.problems import Problems
from gatepruner.cli.signature import Group
from gatepruner.errors import CheckpointError, DataError, PlanError

if TYPE_CHECKING:
    from gatepruner.networks.checkpoint import Checkpoint


@dataclass(frozen=True)
class Statistics:
    """Statistics of batch norm.

    Attributes:
        images: training images to estimate them from.
        augment: shift them, and mirror them if in colour; by default if training did.
    """

    images: Annotated[int, typer.Option(min=2)] = 2000
    augment: bool | None = None


def recalibrate(
    source: Source,
    *,
    call: Writing,
    data: Annotated[Data, Group(needs=("data",), leave_out=("split", "limit"))],
    statistics: Statistics,
) -> None:
    """Estimate the statistics of batch norm again on training images; no weight changes.

    Example: `gatepruner recalibrate small.pt --data imagefolder:cifar10`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.images.readers import has_split
    from gatepruner.measuring.recalibration import recalibrate as estimated

    target = call.target(source.ckpt, "recalibrated")
    problems = Problems()
    call.check([target], problems)
    with problems:
        if not has_split(data.data, "train"):
            raise DataError(f"{data.data} has no train split: statistics are of training images")
    checkpoint = read(source, data, problems)
    images = data.training(checkpoint, call.terminal, statistics.images, labels=False)
    assert images is not None  # refused above
    if call.dry_run:
        work = Work(f"estimate statistics from {len(images):,} training images", 2 * len(images))
        return foretell(call, checkpoint, [target], [work], data)
    data.normalization(checkpoint, images, call.terminal)
    track, augment = call.terminal.track("recalibrating"), statistics.augment
    done = estimated(checkpoint, images, **data.how, augment=augment, track=track)
    if done is checkpoint:
        raise PlanError(f"{checkpoint.network} has no batch norm: there is nothing to estimate")
    save(done, target, force=call.force)
    call.record(target)
    call.terminal.say(f"wrote {target}")
    written = {"input": str(source.ckpt), "output": str(target)}
    return call.finish({**written, **done.notes["history"][-1]})


@dataclass(frozen=True)
class Format:
    """Format.

    Attributes:
        to: format to write.
    """

    to: Annotated[Literal["torchvision", "safetensors"], typer.Option(rich_help_panel=COMMON)]


def export(
    source: Source,
    *,
    form: Format,
    call: Annotated[Writing, Group(needs=("output",), leave_out=("quiet",))],
) -> None:
    """Write a network for other software.

    `torchvision` writes a state dict that the stock ResNet loads strictly, `safetensors` the
    weights, gates folded.

    Example: `gatepruner export resnet50-drop4.pt --to torchvision -o small.pth`
    """
    target = call.target(source.ckpt, "")
    problems = Problems()
    call.check([target], problems)
    with problems:
        if form.to == "safetensors" and target.suffix != ".safetensors":
            raise CheckpointError(f"cannot write {target}: expected a name ending in .safetensors")
    with problems:
        checkpoint = source.read()
    problems.refuse()
    if call.dry_run:
        return foretell(call, checkpoint, [target], [], Data())
    document = write_export(checkpoint, target, form.to, call)
    call.record(target)
    call.terminal.say(f"wrote {target}")
    return call.finish(
        {"input": str(source.ckpt), "output": str(target), "to": form.to, **document}
    )


def write_export(checkpoint: Checkpoint, target: Path, to: str, call: Writing) -> dict[str, Any]:
    """Write a network for other software; what torchvision's ResNet takes to load it."""
    from gatepruner.files.checkpoints import save
    from gatepruner.files.export import to_torchvision
    from gatepruner.files.storage import write_tensors
    from gatepruner.pruning.surgery import fold_gates

    if to == "safetensors":
        gated = checkpoint.network.edits.gated
        save(fold_gates(checkpoint) if gated else checkpoint, target, force=call.force)
        return {}
    stock = to_torchvision(checkpoint)
    write_tensors(stock.state, target, force=call.force)
    call.terminal.say(stock.recipe(str(target)))
    return {"block": stock.block, "layers": stock.layers, "arguments": dict(stock.arguments)}
