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
from gatepruner.cli.several import writes
from gatepruner.cli.signature import Group
from gatepruner.errors import DataError, PlanError

if TYPE_CHECKING:
    from gatepruner.files.quantization import Calibration
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.report.terminal import Terminal


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
    if not writes():
        return None
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
        Literal["onnx", "torch", "openvino", "torchvision", "timm", "transformers", "safetensors"]
        | None,
        typer.Option(rich_help_panel=COMMON),
    ] = None


@dataclass(frozen=True)
class Quantizing:
    """8-bit integers.

    Attributes:
        int8: quantise an ONNX file after training, calibrated on the training images of --data, 500
            of them if --limit does not say otherwise.
        least_agreement: smallest fraction of these images that must stay in the same class; 0
            accepts any.
    """

    int8: Annotated[bool, typer.Option("--int8")] = False
    least_agreement: Annotated[float, typer.Option(min=0, max=1)] = 0.95

    def check(self, to: str, data: Data) -> None:
        """Refuse what can be refused before any image is read."""
        from gatepruner.files.formats import check_quantizable
        from gatepruner.images.readers import has_split

        if not self.int8:
            if data.data:
                raise typer.BadParameter("--data is what --int8 is calibrated on: give both")
            return
        check_quantizable(to)
        if not data.data:
            raise typer.BadParameter("--int8 is calibrated on training images: give --data, too")
        if not has_split(data.data, "train"):
            raise DataError(f"{data.data} has no train split: expected training images")

    def calibration(
        self, checkpoint: Checkpoint, data: Data, terminal: Terminal
    ) -> Calibration | None:
        """The images to quantise with, if that is asked for."""
        from gatepruner.files.quantization import IMAGES, Calibration

        if not self.int8:
            return None
        images = data.training(checkpoint, terminal, data.limit or IMAGES, labels=False)
        assert images is not None  # refused by check
        chosen = data.normalization(checkpoint, images, terminal)
        return Calibration(images, chosen, self.least_agreement)


def export(
    source: Source,
    *,
    form: Target,
    quantizing: Quantizing,
    call: Annotated[Writing, Group(needs=("output",))],
    data: Annotated[Data, Group(leave_out=("split", "device", "batch_size"))],
) -> None:
    """Write a network for other software, gates folded, and check what was written.

    ONNX (.onnx), torch.export (.pt2), OpenVINO (.xml), a state dict for the stock classes of
    torchvision or timm (.pth), a folder of transformers, or safetensors. FILE.config.json says how
    to prepare images.

    Example: `gatepruner export small.pt -o small.onnx`

    Example: `gatepruner export small.pt -o small-int8.onnx --int8 --data imagefolder:cifar10`

    Example: `gatepruner export resnet50-drop4.pt --to torchvision -o small.pth`
    """
    from gatepruner.files.formats import check_format, format_of, refuse_outputs
    from gatepruner.files.writing import refuse_existing

    target = call.target(source.ckpt, "")
    problems = Problems()
    with problems:
        if not target.is_dir():  # of transformers; what it may hold is known with the format
            refuse_existing(target, force=call.force)
        call.hold(target)
    with problems:
        checkpoint = source.read()
    problems.refuse()
    to = form.to or format_of(target, checkpoint.network)
    refuse_outputs(to, target, force=call.force)
    check_format(to, target, checkpoint.network)
    quantizing.check(to, data)
    if call.dry_run:
        return foretell(call, checkpoint, [target], [], Data())
    calibration = quantizing.calibration(checkpoint, data, call.terminal)
    document = write_export(checkpoint, target, to, call, calibration)
    call.record(target)
    return call.finish({"input": str(source.ckpt), "output": str(target), "to": to, **document})


def write_export(
    checkpoint: Checkpoint,
    target: Path,
    to: str,
    call: Writing,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Write a network for other software and say how to load it; what there is to know of it."""
    from gatepruner.files.formats import export as exported

    written = exported(checkpoint, target, to, force=call.force, calibration=calibration)
    call.terminal.say(f"{written.recipe}\nwrote {target} and {written.sidecar}")
    call.terminal.say(f"its logits differ by {written.difference:.1e} of the greatest one")
    if calibration is not None:
        int8 = written.details["int8"]
        same, images = int8["agreement"], int8["images"]
        call.terminal.say(f"{same:.1%} of {images:,} training images stay in the same class")
    files = {"sidecar": str(written.sidecar), "difference": written.difference}
    return {**files, **written.details}
