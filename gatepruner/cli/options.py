"""Options that several commands take: dataclasses, each a panel of the help."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.completion import data_words, device_words
from gatepruner.cli.configuration import (
    configuration_path,
    read_configuration,
    write_configuration,
)
from gatepruner.cli.problems import Problems
from gatepruner.cli.signature import EVERYTHING
from gatepruner.errors import CheckpointError, DataError, listed, visible
from gatepruner.files.folders import local
from gatepruner.files.locks import held, held_folder
from gatepruner.files.writing import refuse_existing, refuse_name
from gatepruner.learning.recipes import refuse_seed
from gatepruner.processes import agreed

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.images.normalization import Normalization
    from gatepruner.images.scaling import Scaling
    from gatepruner.models import Shape
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.networks.onnx_file import OnnxFile, Subject
    from gatepruner.report.terminal import Terminal

DOCUMENT = 1  # version of the JSON documents that the commands print
COMMON = "Options"  # the panel that typer shows first


@dataclass(frozen=True)
class Source:
    """Files without the project's header.

    Attributes:
        ckpt: checkpoint: .pt, .pth, .th, .ckpt or .safetensors, or a folder of timm or of
            transformers.
        arch: architecture, as in torchvision:resnet50, or hf:DIR with a folder of transformers.
        num_classes: number of logits, where the file does not tell.
        input_size: side of the images, or CxHxW.
        weights: which of several states to take, as in state_dict or model_ema.
        module: your own module, as in net.py:Net or package.module:function; nothing is imported
            that is not named here.
        leaves: classes of its parts to keep whole where they cannot be traced.
    """

    ckpt: Annotated[Path, typer.Argument(metavar="CKPT", callback=local)]
    arch: str | None = None
    num_classes: Annotated[int | None, typer.Option(min=1)] = None
    input_size: Annotated[str | None, typer.Option(metavar="SIZE")] = None
    weights: Annotated[str | None, typer.Option(metavar="NAME")] = None
    module: Annotated[str | None, typer.Option(metavar="FILE.py:CALLABLE")] = None
    leaves: Annotated[str | None, typer.Option(metavar="CLASS,…")] = None

    def read(self, *, deferred: bool = False) -> Checkpoint:
        """The checkpoint; says on stderr what was assumed, left out or cast.

        Args:
            deferred: whether its weights are left in the file, as by `load`.
        """
        from gatepruner.files.checkpoints import load

        with contextlib.redirect_stdout(sys.stderr):  # where a module prints, if it does
            checkpoint = load(
                self.ckpt,
                arch=self.arch,
                num_classes=self.num_classes,
                input_shape=shape_of(self.input_size),
                module=self.module,
                leaves=words_of(self.leaves),
                weights=self.weights,
                deferred=deferred,
            )
        say_remarks(str(self.ckpt), checkpoint)
        return checkpoint

    def subject(self) -> Subject:
        """What can only be measured, too: the checkpoint, or the ONNX file."""
        return self._onnx() if self.ckpt.suffix == ".onnx" else self.read()

    def _onnx(self) -> OnnxFile:
        """The ONNX file.

        Raises:
            CheckpointError: it cannot be read, or options say how to read a checkpoint.
        """
        from gatepruner.files.onnx_files import load_onnx

        given = {
            f"--{one.name.replace('_', '-')}"
            for one in fields(self)
            if one.name != "ckpt" and getattr(self, one.name) is not None
        }
        if given:
            raise CheckpointError(
                f"{self.ckpt} is an ONNX file, which says all of itself: leave out "
                f"{listed(sorted(given))}"
            )
        return load_onnx(self.ckpt)


def say_remarks(name: str, checkpoint: Checkpoint) -> None:
    """Say on stderr what was assumed, left out, cast or kept whole."""
    from gatepruner.networks.graph import remarks_on

    remarks = [*checkpoint.notes.get("remarks", ()), *remarks_on(checkpoint.network.kept)]
    for remark in dict.fromkeys(remarks):
        typer.echo(visible(f"{name}: {remark}"), err=True)


def words_of(text: str | None) -> tuple[str, ...]:
    """The words of a list with commas; one in brackets, as in `conv1[0-3,6]`, is of the word."""
    words = re.split(r",(?![^\[\]]*\])", text or "")
    return tuple(word.strip() for word in words if word.strip())


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


@dataclass(frozen=True)
class Data:
    """Images.

    Attributes:
        data: images, as mnist:DIR, fashion-mnist:DIR, cifar10:DIR, cifar100:DIR or imagefolder:DIR;
            pictures:DIR without labels; hf:DIR (saved by datasets) or parquet:DIR.
        split: which of them: train, val or test; by default test, or val where there is no test.
        limit: at most this many images, spread evenly over the set.
        classes: file with the names of the network's classes, one a line in the order of its
            logits, by which folders of classes are found; by default the checkpoint's own.
        normalize: normalisation, as mnist, cifar10, imagenet, … or MEAN,…/STD,…; by default the
            checkpoint's own.
        resize: scale the shorter side to this and crop the centre; 0 takes images as they are; by
            default as the checkpoint's author did, if that is known.
        interpolation: how to scale, as bilinear or bicubic.
        device: where to compute: auto, cpu, cuda, cuda:N or mps.
        batch_size: images in one pass.
        cache: folder for decoded pictures: they are decoded once, and read from there by later
            commands; it may take more room than there is memory.
    """

    data: Annotated[
        str, typer.Option(rich_help_panel=COMMON, metavar="DATA", autocompletion=data_words)
    ] = ""
    split: Annotated[str | None, typer.Option(metavar="NAME")] = None
    limit: Annotated[int | None, typer.Option(min=1)] = None
    classes: Annotated[Path | None, typer.Option(metavar="FILE")] = None
    normalize: str | None = None
    resize: Annotated[int | None, typer.Option(min=0)] = None
    interpolation: Annotated[str | None, typer.Option(metavar="NAME")] = None
    device: Annotated[
        str, typer.Option(rich_help_panel=COMMON, metavar="NAME", autocompletion=device_words)
    ] = "auto"
    batch_size: Annotated[int, typer.Option(min=1)] = 128
    cache: Annotated[Path | None, typer.Option(metavar="DIR")] = None

    def images(self, whole: Subject, terminal: Terminal, *, labels: bool = True) -> Images:
        """The images as the network takes them, with its classes, read."""
        return self.kept(self.listed(whole, terminal, labels=labels), terminal)

    def listed(self, whole: Subject, terminal: Terminal, *, labels: bool = True) -> Images:
        """The images as the network takes them, with its classes; pictures are not yet decoded.

        Where labels are not needed, images of other classes go without.
        """
        from gatepruner.images.classes import NAMED, map_classes, read_classes

        names = read_classes(self.classes) if self.classes is not None else ()
        shape, scaling = whole.network.base.input_shape, self.scaling(whole)
        images = self.found(shape, scaling)
        if self.data.partition(":")[0] not in NAMED or not images.labelled:
            if names:
                raise DataError(f"--classes names classes of images: {self.data} has none")
            return images
        try:
            mapped, how = map_classes(images, whole, names)
        except DataError:
            if labels:
                raise
            return images.unlabelled()
        if mapped.classes != images.classes or "order" in how:
            count, among = len(images.classes), whole.network.num_classes
            terminal.once(f"{count:,} of the {among:,} classes, found {how}")
        return mapped

    def found(self, shape: Shape, scaling: Scaling | None) -> Images:
        """The images of this size, with their own classes; pictures are not yet decoded."""
        from gatepruner.images.readers import load_images

        return load_images(
            self.data,
            shape,
            split=self.split,
            resize=scaling,
            limit=self.limit,
            decode=False,
            cache=self.cache,
        )

    def kept(self, images: Images, terminal: Terminal) -> Images:
        """Images with their pictures decoded, if they fit in memory."""
        return images.kept(terminal.track("reading images"))

    def kept_parts(
        self, images: Images, held_out: Images | None, terminal: Terminal
    ) -> tuple[Images, Images | None]:
        """Images to learn from and those that are held out, both with their pictures decoded."""
        apart = None if held_out is None else self.kept(held_out, terminal)
        return self.kept(images, terminal), apart

    def training(
        self,
        whole: Checkpoint,
        terminal: Terminal,
        limit: int | None = None,
        *,
        labels: bool = True,
    ) -> Images | None:
        """Training images of the same set, at most so many; `None` if it has no such split."""
        images = self.training_listed(whole, terminal, limit, labels=labels)
        return None if images is None else self.kept(images, terminal)

    def training_listed(
        self,
        whole: Checkpoint,
        terminal: Terminal,
        limit: int | None = None,
        *,
        labels: bool = True,
    ) -> Images | None:
        """The same with pictures that are not yet decoded."""
        from gatepruner.images.readers import has_split

        if not self.data or not has_split(self.data, "train"):
            return None
        return replace(self, split="train", limit=limit).listed(whole, terminal, labels=labels)

    def scaling(self, whole: Subject | None = None) -> Scaling | None:
        """How to scale: as chosen, or else as the network's author did, if these are files."""
        from gatepruner.images.preprocessing import preprocessing_of
        from gatepruner.images.readers import PICTURES
        from gatepruner.images.scaling import Scaling

        authors = preprocessing_of(whole).scaling if whole is not None else None
        scaling = authors if self.data.partition(":")[0] in PICTURES else None
        if self.resize is not None:
            scaling = Scaling(self.resize) if self.resize else None
        if self.interpolation is None:
            return scaling
        if scaling is None:
            raise DataError("--interpolation says how to scale: give --resize, too")
        return replace(scaling, interpolation=self.interpolation)

    @property
    def chosen(self) -> Normalization | None:
        """The normalisation that was given, if one was."""
        from gatepruner.images.normalization import parse_normalization

        return parse_normalization(self.normalize) if self.normalize else None

    @property
    def how(self) -> dict[str, Any]:
        """How to compute, as the library's verbs take it."""
        batch, chosen = self.batch_size, self.chosen
        return {"device": self.device, "batch_size": batch, "normalization": chosen}

    def normalization(
        self, checkpoint: Subject, images: Images, terminal: Terminal
    ) -> Normalization:
        """The normalisation to use; says which."""
        from gatepruner.images.preprocessing import preprocessing_of
        from gatepruner.measuring.inputs import normalization_of

        chosen, known = (
            normalization_of(checkpoint, images, self.chosen),
            preprocessing_of(checkpoint),
        )
        scaled = f", {images.resize}" if images.resize is not None else ""
        if scaled and images.resize == known.scaling:
            scaled += f" ({known.source})"
        terminal.say(
            f"{len(images):,} images of {images.source}{scaled}, {chosen.source} normalisation"
        )
        return chosen


@dataclass(frozen=True)
class HoldOut:
    """Images that nothing is learned from.

    Attributes:
        hold_out: training images held out for choosing; nothing is learned from them.
        seed: seed of all random choices.
    """

    hold_out: Annotated[int, typer.Option(min=0)] = 1000
    seed: Annotated[int, typer.Option(rich_help_panel=COMMON)] = 0

    def __post_init__(self) -> None:
        refuse_seed(self.seed)

    def at_most_a_fifth(self, images: int) -> int:
        """How many of so many images are held out if most are to be learned from."""
        return min(self.hold_out, images // 5)


@dataclass(frozen=True)
class Call:
    """Options.

    Attributes:
        config: read options from this YAML file; options on the command line win.
        as_json: print one JSON document on stdout.
        quiet: show no progress.
    """

    config: Annotated[
        Path | None, typer.Option(is_eager=True, callback=read_configuration, metavar="FILE")
    ] = None
    as_json: Annotated[bool, typer.Option("--json")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False
    given: Annotated[Mapping[str, Any], EVERYTHING] = field(default_factory=dict)

    @functools.cached_property
    def terminal(self) -> Terminal:
        """Where to talk: with `--json` stdout is left to the document."""
        from gatepruner.report.terminal import Terminal

        return Terminal(quiet=self.quiet, silent=self.as_json)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Print the document if it is asked for."""
        if self.as_json:
            typer.echo(json.dumps({"document": DOCUMENT, **document}, indent=1))


@dataclass(frozen=True)
class Writing(Call):
    """Options.

    Attributes:
        output: what to write; by default beside the input, with a name that says what was done.
        force: replace files that exist.
        dry_run: say what would be done, its sizes and about how long it takes; write nothing.
    """

    output: Annotated[Path | None, typer.Option("--output", "-o")] = None
    force: Annotated[bool, typer.Option("--force")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run")] = False

    def target(self, path: Path, what: str, *, seed: int = 0, suffix: str | None = None) -> Path:
        """What to write: as given, or beside the input with a name that says what was done."""
        kept = path.suffix if path.suffix == ".safetensors" else ".pt"
        seeded = f"-seed{seed}" if seed else ""
        name = f"{path.stem}-{what}{seeded}{kept if suffix is None else suffix}"
        return self.output or path.with_name(name)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *error: object) -> None:
        self.locks.close()

    @functools.cached_property
    def locks(self) -> contextlib.ExitStack:
        """The outputs that no other run may write until the command ends."""
        return contextlib.ExitStack()

    def check(self, outputs: Sequence[Path], problems: Problems, *, resume: bool = False) -> None:
        """Collect which of these files cannot be written, and keep other runs from writing them."""
        force = self.force or resume

        def check_one(output: Path) -> None:
            refuse_existing(output, force=force)
            refuse_name(output)
            self.hold(output)

        for output in outputs:
            with problems:
                agreed(functools.partial(check_one, output))
        with problems:
            agreed(lambda: refuse_existing(configuration_path(outputs[0]), force=force))

    def hold(self, output: Path) -> None:
        """Keep other runs from writing a file; a dry run writes nothing."""
        if not self.dry_run:
            self.locks.enter_context(held(output))

    def hold_folder(self, output: Path) -> None:
        """Keep other runs from writing a folder of reports, of which nothing may be lost."""
        refuse_existing(configuration_path(output), force=self.force)
        if not self.dry_run:
            self.locks.enter_context(held_folder(output))

    def record(self, output: Path) -> None:
        """Write the options of this call beside what it wrote, or into the folder."""
        write_configuration({**self.given, "output": output}, output)


@dataclass(frozen=True)
class Resumable(Writing):
    """Options.

    Attributes:
        resume: go on from where an earlier run stopped, or begin.
    """

    resume: Annotated[bool, typer.Option("--resume")] = False
