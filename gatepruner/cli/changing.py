"""`recalibrate` and `export`: commands that write the same network in another form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gatepruner.cli.foretelling import Work, foretell
from gatepruner.cli.learning import read, warn_of_misfit
from gatepruner.cli.measuring import say_images
from gatepruner.cli.options import COMMON, Data, Source, Writing
from gatepruner.cli.problems import Problems
from gatepruner.cli.signature import Group
from gatepruner.errors import DataError, PlanError

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
    warn_of_misfit(source.ckpt, checkpoint, images, data)
    track, augment = call.terminal.track("recalibrating"), statistics.augment
    done = estimated(checkpoint, images, **data.how, augment=augment, track=track)
    if done is checkpoint:
        raise PlanError(f"{checkpoint.network} has no batch norm: there is nothing to estimate")
    say_images(done, len(images), call.terminal)
    save(done, target, force=call.force)
    call.record(target)
    call.terminal.say(f"wrote {target}")
    written = {"input": str(source.ckpt), "output": str(target)}
    return call.finish({**written, **done.notes["history"][-1]})


@dataclass(frozen=True)
class Target:
    """Format.

    Attributes:
        to: format to write; by default what the name of the file says.
    """

    to: Annotated[
        Literal["onnx", "torch", "openvino", "torchvision", "timm", "safetensors"] | None,
        typer.Option(rich_help_panel=COMMON),
    ] = None


def export(
    source: Source,
    *,
    form: Target,
    call: Annotated[Writing, Group(needs=("output",), leave_out=("quiet",))],
) -> None:
    """Write a network for other software, gates folded, and check what was written.

    ONNX (.onnx), torch.export (.pt2), OpenVINO (.xml), a state dict for the stock classes of
    torchvision or timm (.pth), or safetensors. FILE.config.json says how to prepare images.

    Example: `gatepruner export small.pt -o small.onnx`

    Example: `gatepruner export resnet50-drop4.pt --to torchvision -o small.pth`
    """
    from gatepruner.files.formats import check_format, format_of
    from gatepruner.files.writing import refuse_existing

    target = call.target(source.ckpt, "")
    problems = Problems()
    with problems:
        refuse_existing(target, force=call.force)
        call.hold(target)
    with problems:
        checkpoint = source.read()
    problems.refuse()
    to = form.to or format_of(target, checkpoint.network)
    check_format(to, target, checkpoint.network)
    if call.dry_run:
        return foretell(call, checkpoint, [target], [], Data())
    document = write_export(checkpoint, target, to, call)
    call.record(target)
    return call.finish({"input": str(source.ckpt), "output": str(target), "to": to, **document})


def write_export(checkpoint: Checkpoint, target: Path, to: str, call: Writing) -> dict[str, Any]:
    """Write a network for other software and say how to load it; what there is to know of it."""
    from gatepruner.files.formats import export as exported

    written = exported(checkpoint, target, to, force=call.force)
    call.terminal.say(f"{written.recipe}\nwrote {target} and {written.sidecar}")
    call.terminal.say(f"its logits differ by {written.difference:.1e} of the greatest one")
    files = {"sidecar": str(written.sidecar), "difference": written.difference}
    return {**files, **written.details}
