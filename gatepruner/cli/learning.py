"""What the commands that learn share: their images, what refuses them, and their outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from gatepruner.cli.foretelling import LEARNING, Work
from gatepruner.cli.keeping import Kept, write_epochs
from gatepruner.cli.options import Data, HoldOut, Resumable, Source
from gatepruner.cli.problems import Problems
from gatepruner.cli.several import writes
from gatepruner.errors import visible

if TYPE_CHECKING:
    from gatepruner.images.images import Images
    from gatepruner.learning.recipes import GateRecipe, Recipe
    from gatepruner.networks.checkpoint import Checkpoint
    from gatepruner.networks.onnx_file import Subject
    from gatepruner.report.terminal import Terminal

Read = TypeVar("Read")


def gating_work(whole: Checkpoint, images: Images, recipe: GateRecipe) -> Work:
    """The learning of gates: the network shrinks on the way, its teacher does not."""
    removable = len(whole.network.removable)
    blocks = recipe.blocks or removable
    steps = recipe.warmup + blocks * recipe.steps
    seen = steps * recipe.batch_size
    taught = 0 if recipe.labels else min(seen, 2 * len(images))  # its answers are kept
    what = f"learn gates from {len(images):,} images, {blocks} blocks in {steps:,} steps"
    return Work(what, seen * LEARNING * (1 - blocks / (2 * removable)) + taught)


def training_work(images: Images, recipe: Recipe, verb: str, *, taught: bool) -> Work:
    """Training: every epoch all images, and a pass more for a teacher."""
    epochs = recipe.passes(len(images))
    what = f"{verb} on {len(images):,} images for {epochs} epochs"
    return Work(what, epochs * len(images) * (LEARNING + taught))


def read(
    source: Source, data: Data, problems: Problems, amp: str = "auto", *, deferred: bool = False
) -> Checkpoint:
    """The network; what has been found wrong by then is refused, as nothing else can be read."""
    return _read(functools.partial(source.read, deferred=deferred), data, problems, amp)


def read_subject(source: Source, data: Data, problems: Problems) -> Subject:
    """As `read`, or an ONNX file."""
    return _read(source.subject, data, problems, "auto")


def _read(reading: Callable[[], Read], data: Data, problems: Problems, amp: str) -> Read:
    from gatepruner.images.readers import located

    with problems:
        checkpoint = reading()
    with problems:
        if data.data:
            located(data.data)
    check_device(data, problems, amp)
    problems.refuse()
    return checkpoint


def check_device(data: Data, problems: Problems, amp: str = "auto") -> None:
    """Collect whether this machine has the device, and the device the precision."""
    from gatepruner.measuring.device import check_amp, pick_device

    with problems:
        check_amp(pick_device(data.device), amp)


def list_images(
    listing: Callable[[], Images], held: HoldOut, problems: Problems
) -> tuple[Images, Images | None]:
    """Images to learn from, and those that are held out; only one picture is decoded yet."""
    import torch

    with problems:
        images = listing()
        next(images.batches(torch.arange(1), 1))  # raises if it cannot be decoded as it should
    problems.refuse()
    with problems:
        return images.held_out(held.hold_out, held.seed)
    return images, None


def held_out_fifth(
    images: Images, held: HoldOut, terminal: Terminal
) -> tuple[Images, Images | None]:
    """Images to learn from and those that are held out: as many as asked for, at most a fifth."""
    count = held.at_most_a_fifth(len(images))
    if count < held.hold_out:
        terminal.say(f"holding out {count:,} of {len(images):,} training images, at most a fifth")
    return images.held_out(count, held.seed)


def check(
    checkpoint: Checkpoint, images: Images, batch: int, problems: Problems, *, labels: bool = True
) -> None:
    """Collect what makes learning from these images impossible."""
    from gatepruner.measuring.inputs import check_batch, check_fit, check_size

    with problems:
        if labels:
            check_fit(checkpoint, images)
        else:
            check_size(checkpoint.network, images)
    with problems:
        check_batch(images, batch)


def warn_of_misfit(name: Path, checkpoint: Checkpoint, images: Images, data: Data) -> None:
    """Say on stderr if a foreign network is not the one whose statistics its file records.

    A caller's module is the network itself, and what gatepruner has changed fits no more.
    """
    from gatepruner.measuring.statistics import LIMIT, compare_statistics

    notes = checkpoint.notes
    foreign = "source" in notes and checkpoint.network.base.source != "caller"
    if not foreign or notes.get("history"):
        return
    fit = compare_statistics(checkpoint, images, device=data.device, normalization=data.chosen)
    if fit.first_misfit is not None:
        text = (
            f"{name}: warning: from {fit.first_misfit} on, {len(fit.misfits)} of its "
            f"{len(fit.divergences)} batch norms recorded other statistics than {fit.images} "
            f"training images have (divergence up to {fit.worst:.2f}, usual is below {LIMIT}): its "
            "author's network computes something else, or got other images; try --arch (as in "
            "torchvision:resnet50,v1=true or torchvision:resnet18,stem=small), --module, "
            "--normalize or --resize"
        )
        typer.echo(visible(text), err=True)


def finish(
    learned: Checkpoint, target: Path, kept: Kept, call: Resumable, document: dict[str, Any]
) -> None:
    """Write a trained network and its history, and say so."""
    from gatepruner.files.checkpoints import save

    if not writes():
        return
    epochs = learned.notes["epochs"]
    save(learned, target, force=kept.force)
    write_epochs(epochs, kept.history)
    call.record(target)
    kept.state.unlink(missing_ok=True)  # last: until then, a killed run can be resumed
    last, best = epochs[-1] if epochs else {}, learned.notes.get("kept")
    call.terminal.say(f"wrote {target} ({_ended(last, best)}) and {kept.history}")
    document = {**document, "output": str(target), "history": str(kept.history), **last}
    call.finish(document if best is None else {**document, "kept": best})


def _ended(last: Mapping[str, Any], best: Mapping[str, Any] | None) -> str:
    """What a run has come to: its best state, or its last epoch."""
    if best is None:
        return f"training loss {last['loss']:.4f}"
    agreement = 100 * best["agreement"]
    return f"state of step {best['step']}, agreement {agreement:.2f} % on held-out images"
