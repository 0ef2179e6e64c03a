"""Options that several commands share, and the values they are read into."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.models import Shape
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.report.terminal import Terminal

# typer reads these as they stand, on Python 3.10 too: hence Optional.
MaybeStr = Optional[str]  # noqa: UP045
MaybeInt = Optional[int]  # noqa: UP045
MaybeFloat = Optional[float]  # noqa: UP045
MaybePath = Optional[Path]  # noqa: UP045
MaybeBool = Optional[bool]  # noqa: UP045

File = Annotated[
    Path, typer.Argument(metavar="CKPT", help="Checkpoint: .pt, .pth, .th, .ckpt, .safetensors.")
]
Arch = Annotated[
    MaybeStr, typer.Option(help="Architecture of a foreign file, as in torchvision:resnet50.")
]
Classes = Annotated[
    MaybeInt, typer.Option("--num-classes", help="Logits, where the file does not tell.", min=1)
]
Size = Annotated[
    MaybeStr,
    typer.Option("--input-size", help="Side of the images, or CxHxW.", metavar="SIZE"),
]
SPECS = "mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR or imagefolder:DIR"
Data = Annotated[str, typer.Option(help=f"{SPECS}.")]
MaybeData = Annotated[MaybeStr, typer.Option("--data", help=f"To measure accuracy on: {SPECS}.")]
Split = Annotated[
    MaybeStr, typer.Option(help="train, val or test; by default test, or val if there is no test.")
]
Normalize = Annotated[
    MaybeStr,
    typer.Option(help="mnist, cifar10, imagenet, ... or MEAN,.../STD,...; else the file's own."),
]
Resize = Annotated[
    MaybeInt, typer.Option(help="Scale the shorter side to this and cut out the middle.", min=1)
]
Limit = Annotated[
    MaybeInt, typer.Option(help="At most so many images, evenly from all over the set.", min=1)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time.", min=1)]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]
By = Annotated[str, typer.Option(help="gate, random or depth.", metavar="CRITERION")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]
Recalibrate = Annotated[
    int,
    typer.Option(
        help="Training images to estimate batch-norm statistics on anew; 0: keep them.", min=0
    ),
]
TargetMacs = Annotated[
    MaybeStr, typer.Option(help="At most so many MACs, as in 50% or 62M.", metavar="AMOUNT")
]
TargetParams = Annotated[
    MaybeStr, typer.Option(help="At most so many parameters, as in 50% or 400K.", metavar="AMOUNT")
]
TargetLatency = Annotated[
    MaybeStr,
    typer.Option(help="At most this time on the device, as in 50% or 8.5ms.", metavar="AMOUNT"),
]
MaxLoss = Annotated[
    MaybeFloat,
    typer.Option(
        help="As many as can go within so many points of accuracy on held-out training images.",
        min=0,
        metavar="POINTS",
    ),
]
HoldOut = Annotated[
    int, typer.Option(help="Training images held out to choose on; never learned from.", min=0)
]
LatencyBatch = Annotated[int, typer.Option(help="Images in a timed pass.", min=1)]
Output = Annotated[
    MaybePath,
    typer.Option("--output", "-o", help="What to write; by default beside the input."),
]


def shape_of(size: str | None) -> Shape | None:
    """`(C, H, W)` of a `--input-size`."""
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


def read(path: Path, arch: str | None, classes: int | None, size: str | None) -> Checkpoint:
    """The checkpoint that a command is given."""
    from gatepruner.files.checkpoints import load

    return load(path, arch=arch, num_classes=classes, input_shape=shape_of(size))


@dataclass(frozen=True)
class Measuring:
    """What accuracy is measured on, and how."""

    data: str
    split: str | None
    normalize: str | None
    resize: int | None
    limit: int | None
    device: str
    batch_size: int

    def images(self, shape: Shape, terminal: Terminal) -> Images:
        """The images, at the size that the network takes."""
        from gatepruner.images.readers import load_images

        return load_images(
            self.data,
            shape,
            split=self.split,
            resize=self.resize,
            limit=self.limit,
            track=terminal.track("reading images"),
        )

    def training(self, shape: Shape, terminal: Terminal, limit: int | None = None) -> Images | None:
        """Training images of the same set, at most so many; `None` if it has no such split."""
        from gatepruner.images.readers import has_split

        if not has_split(self.data, "train"):
            terminal.say(f"{self.data} has no training images: batch norm keeps its statistics")
            return None
        return replace(self, split="train", limit=limit).images(shape, terminal)

    def normalization(
        self, checkpoint: Checkpoint, images: Images, terminal: Terminal
    ) -> Normalization:
        """The normalisation to use; says which."""
        from gatepruner.images.normalization import parse_normalization
        from gatepruner.measuring.inputs import normalization_of

        given = parse_normalization(self.normalize) if self.normalize else None
        found = normalization_of(checkpoint.notes, images.shape[0], given)
        terminal.say(f"{len(images):,} images of {images.source}, {found.source} normalisation")
        return found


def terminal_of(quiet: bool, as_json: bool) -> Terminal:
    """Where to talk: with `--json` stdout is left to the document."""
    from gatepruner.report.terminal import Terminal

    return Terminal(quiet=quiet, silent=as_json)


def finish(document: dict[str, Any], as_json: bool) -> None:
    """Print the document if it is asked for."""
    if as_json:
        typer.echo(json.dumps(document, indent=1))


def beside(path: Path, what: str, suffix: str | None = None) -> Path:
    """A name beside the input that says what was done."""
    kept = path.suffix if path.suffix == ".safetensors" else ".pt"
    return path.with_name(f"{path.stem}-{what}{kept if suffix is None else suffix}")


def blocks_left(checkpoint: Checkpoint) -> int:
    """How many blocks still have their branch."""
    return sum(block.branch for block in checkpoint.network.blocks)
