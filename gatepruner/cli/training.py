"""`finetune` and `train`: the commands that train all weights."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatepruner.cli.foretelling import foretell
from gatepruner.cli.keeping import Kept, recording, stopping
from gatepruner.cli.learning import (
    check,
    check_device,
    finish,
    list_images,
    read,
    training_work,
    warn_of_misfit,
)
from gatepruner.cli.options import (
    Data,
    HoldOut,
    Resumable,
    Source,
    say_remarks,
    shape_of,
    words_of,
)
from gatepruner.cli.problems import Problems
from gatepruner.cli.signature import Group
from gatepruner.learning.recipes import CHOICES, FINE_TUNING, Recipe

if TYPE_CHECKING:
    from gatepruner.networks.network import Network

ALL = Data(split="train")
TUNING = Data(split="train", batch_size=FINE_TUNING.batch_size)
NONE = HoldOut(hold_out=0)
TAUGHT = ("match", "distillation", "temperature", "statistics")  # of learning from a teacher


@dataclass(frozen=True)
class Teacher:
    """Fine-tuning with a teacher.

    Attributes:
        teacher: checkpoint of the network to learn from as well, the whole one as a rule.
    """

    teacher: Annotated[Path | None, typer.Option(rich_help_panel="Options")] = None


def finetune(
    source: Source,
    *,
    call: Resumable,
    data: Annotated[Data, Group(needs=("data",))] = TUNING,
    teacher: Teacher,
    recipe: Annotated[Recipe, Group(leave_out=("initial_gate",), words=CHOICES)] = FINE_TUNING,
    held: HoldOut = NONE,
) -> None:
    """Train all weights of a pruned network further, with the whole one as its teacher.

    `--arch`, `--num-classes` and `--input-size` also say what the teacher is, where its file
    does not.

    Example: `gatepruner finetune small.pt --teacher resnet56.th --data imagefolder:cifar10`
    """
    from gatepruner.learning.learner import matched
    from gatepruner.learning.training import check_teacher
    from gatepruner.learning.training import finetune as tune

    target = call.target(source.ckpt, "finetuned", seed=recipe.seed)
    problems = Problems()
    with problems:
        kept = Kept.beside(target, call)
    known = None
    if teacher.teacher is not None:
        with problems:
            described = _described(source, teacher.teacher)
            known = described.read()
            source = _described(source, source.ckpt, described)
    whole = read(source, data, problems, recipe.amp)
    images, held_out = list_images(lambda: data.listed(whole, call.terminal), held, problems)
    check(whole, images, recipe.batch_size, problems, labels=known is None)
    if known is not None:
        with problems:
            check_teacher(whole.network, known, recipe.match)
    problems.refuse()
    if call.dry_run:
        work = training_work(images, recipe, "fine-tune", taught=known is not None)
        how = replace(data, batch_size=recipe.at_once(data.batch_size))
        return foretell(call, whole, [target, kept.history], [work], how)
    images, held_out = data.kept_parts(images, held_out, call.terminal)
    data.normalization(whole, images, call.terminal)  # says which
    warn_of_misfit(source.ckpt, whole, images, data)
    document = {"input": str(source.ckpt)}
    if known is not None:
        warn_of_misfit(described.ckpt, known, images, data)
        document["matched"] = matched(recipe.match, whole.network, known)
        call.terminal.say(f"matching {document['matched']} of the teacher {known.network}")
    with stopping(kept.state), call.terminal.watching() as watch:
        tuned = tune(
            whole,
            images,
            recipe,
            teacher=known,
            validation=held_out,
            normalization=data.chosen,
            device=data.device,
            state=kept.state,
            resume=kept.resume,
            watch=recording(kept.history, watch, anew=not kept.resume),
            on_stop=call.terminal.stopping,
        )
    return finish(tuned, target, kept, call, document)


def _described(source: Source, path: Path, teacher: Source | None = None) -> Source:
    """A file with the options that it does not answer, and those that its teacher does not need.

    What neither of them has a use for is refused with the file.
    """
    from gatepruner.files.checkpoints import is_named

    named = is_named(path)
    own = replace(source, ckpt=path, arch=source.arch if named is None else None)
    own = replace(own, module=None, leaves=None) if named else own
    if teacher is not None and teacher.arch is None:
        own = replace(own, arch=source.arch)
    if teacher is not None and teacher.module is None:
        own = replace(own, module=source.module, leaves=source.leaves)
    return own


@dataclass(frozen=True)
class Fresh:
    """The network.

    Attributes:
        arch: as in gated-resnet20, gated-wrn-16-4,dropout=0.3 or resnet56-b.
        num_classes: number of logits; by default the classes of the images.
        input_size: side of the images, or CxHxW.
        module: your own module in place of ARCH, as in net.py:Net or package.module:function.
        leaves: classes of its parts to keep whole where they cannot be traced.
        gates: put a gate into every block of it.
    """

    arch: Annotated[str | None, typer.Argument(metavar="ARCH")] = None
    num_classes: Annotated[int | None, typer.Option(min=1)] = None
    input_size: Annotated[str | None, typer.Option(metavar="SIZE")] = None
    module: Annotated[str | None, typer.Option(metavar="FILE.py:CALLABLE")] = None
    leaves: Annotated[str | None, typer.Option(metavar="CLASS,…")] = None
    gates: Annotated[bool, typer.Option("--gates")] = False

    def __post_init__(self) -> None:
        if (self.arch is None) == (self.module is None):
            raise typer.BadParameter("give either ARCH or --module")
        if self.module is None and (self.leaves or self.gates):
            raise typer.BadParameter("--leaves and --gates are about --module")
        if self.module is not None and self.num_classes is not None:
            raise typer.BadParameter("--num-classes is about ARCH: the module has its own")

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint records of it."""
        return {} if self.module is None else {"module": self.module}

    def network(self) -> Network:
        """The network, with the number of logits that was given, or else its usual one."""
        from gatepruner.networks.network import Network

        shape = shape_of(self.input_size)
        if self.module is None:
            assert self.arch is not None
            return Network.named(self.arch, num_classes=self.num_classes, input_shape=shape)
        with contextlib.redirect_stdout(sys.stderr):  # where a module prints, if it does
            leaves = words_of(self.leaves)
            network = Network.imported(self.module, shape or (3, 224, 224), leaves)
        return network.with_gates() if self.gates else network

    def network_for(self, classes: int, network: Network) -> Network:
        """The network with as many logits as there are classes, where nothing else was said."""
        given = self.num_classes is not None or self.module is not None
        return network if given or not classes else replace(self, num_classes=classes).network()


def train(
    fresh: Fresh,
    *,
    call: Annotated[Resumable, Group(needs=("output",))],
    data: Annotated[Data, Group(needs=("data",), leave_out=("classes",))] = ALL,
    recipe: Annotated[Recipe, Group(leave_out=TAUGHT, words=CHOICES)],
    held: HoldOut = NONE,
) -> None:
    """Train a network, gates and weights together, from fresh weights.

    Interrupted or killed, it continues with `--resume` and ends with the same weights. Every
    epoch is written to the history beside the output.

    Example: `gatepruner train gated-resnet20 --data cifar10:DIR --epochs 40 -o gated.pt`
    """
    from gatepruner.images.normalization import parse_normalization
    from gatepruner.learning import training
    from gatepruner.networks.checkpoint import Checkpoint

    target = call.target(Path(), "")
    problems = Problems()
    with problems:
        kept = Kept.beside(target, call)
    with problems:
        network = fresh.network()
    check_device(data, problems, recipe.amp)
    problems.refuse()
    images, held_out = list_images(
        lambda: data.found(network.base.input_shape, data.scaling()), held, problems
    )
    network = fresh.network_for(len(images.classes), network)
    start = Checkpoint(network, {}, fresh.notes)
    say_remarks(str(network), start)
    check(start, images, recipe.batch_size, problems)
    problems.refuse()
    if call.dry_run:
        start = replace(start, weights=network.initial_weights())
        work = training_work(images, recipe, f"train {network}", taught=False)
        how = replace(data, batch_size=recipe.at_once(data.batch_size))
        return foretell(call, start, [target, kept.history], [work], how)
    images, held_out = data.kept_parts(images, held_out, call.terminal)
    call.terminal.say(f"{network}: {len(images):,} images of {images.source}")
    with stopping(kept.state), call.terminal.watching() as watch:
        trained = training.train(
            network,
            images,
            recipe,
            validation=held_out,
            normalization=parse_normalization(data.normalize) if data.normalize else None,
            device=data.device,
            state=kept.state,
            resume=kept.resume,
            watch=recording(kept.history, watch, anew=not kept.resume),
            on_stop=call.terminal.stopping,
        )
    trained = replace(trained, notes={**trained.notes, **fresh.notes})
    return finish(trained, target, kept, call, {"name": str(network)})
