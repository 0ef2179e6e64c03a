"""`recalibrate` and `finetune`: commands that win accuracy back."""

from __future__ import annotations

from typing import Annotated

import typer

from gatepruner.cli import options as o
from gatepruner.cli.changing import recalibrated
from gatepruner.cli.keeping import kept_beside, recording, stopping, write_epochs
from gatepruner.errors import DataError, PlanError


def recalibrate(
    ckpt: o.File,
    data: o.Data,
    output: o.Output = None,
    images: Annotated[int, typer.Option(help="Training images to take.", min=2)] = 2000,
    augment: Annotated[
        o.MaybeBool,
        typer.Option(help="Shift, and mirror if in colour; by default if training did."),
    ] = None,
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    device: o.Device = "auto",
    batch_size: o.BatchSize = 128,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Estimate the statistics of batch norm anew on training images; no weight is changed.

    Example: `gatepruner recalibrate small.pt --data imagefolder:cifar10`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.files.storage import refuse_existing
    from gatepruner.images.readers import has_split

    target = output or o.beside(ckpt, "recalibrated")
    refuse_existing(target, force=force)
    terminal = o.terminal_of(quiet, as_json)
    checkpoint = o.read(ckpt, arch, num_classes, input_size)
    measuring = o.Measuring(data, None, normalize, resize, None, device, batch_size)
    if not has_split(data, "train"):
        raise DataError(f"{data} has no train split: statistics are those of training images")
    done = recalibrated(checkpoint, measuring, images, terminal, augment)
    if done is checkpoint:
        raise PlanError(f"{checkpoint.network} has no batch norm: there is nothing to estimate")
    save(done, target, force=force)
    terminal.say(f"wrote {target}")
    o.finish({"input": str(ckpt), "output": str(target), **done.notes["history"][-1]}, as_json)


def finetune(
    ckpt: o.File,
    data: o.Data,
    output: o.Output = None,
    teacher: Annotated[
        o.MaybePath, typer.Option(help="Checkpoint to learn from, too: the whole network.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images.", min=1)] = 10,
    learning_rate: Annotated[float, typer.Option(help="Of the weights, at first.")] = 0.02,
    weight_decay: Annotated[float, typer.Option(help="Of the weights, not of gates.")] = 5e-4,
    distillation: Annotated[
        float, typer.Option(help="Share of the loss that the teacher gives.", min=0, max=1)
    ] = 0.9,
    temperature: Annotated[float, typer.Option(help="That both logits are divided by.")] = 4.0,
    augment: Annotated[bool, typer.Option(help="Shift, and mirror if in colour.")] = True,
    hold_out: Annotated[int, typer.Option(help="Training images to validate on.", min=0)] = 0,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    limit: o.Limit = None,
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
    """Train all weights of a pruned network further, with the whole one as its teacher.

    Example: `gatepruner finetune small.pt --teacher resnet56.th --data imagefolder:cifar10`
    """
    from dataclasses import replace

    from gatepruner.files.checkpoints import load, save
    from gatepruner.learning.recipes import FINE_TUNING
    from gatepruner.learning.training import finetune as tune

    target = output or o.beside(ckpt, "finetuned")
    state, history = kept_beside(target, resume=resume, force=force)
    recipe = replace(
        FINE_TUNING,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        distillation=distillation,
        temperature=temperature,
        augment=augment,
        seed=seed,
    )
    terminal = o.terminal_of(quiet, as_json)
    checkpoint = o.read(ckpt, arch, num_classes, input_size)
    measuring = o.Measuring(data, split, normalize, resize, limit, device, batch_size)
    images = measuring.images(checkpoint.network.base.input_shape, terminal)
    images, held_out = images.held_out(hold_out, seed)
    with stopping(state), terminal.training() as watch:
        tuned = tune(
            checkpoint,
            images,
            recipe,
            teacher=load(teacher) if teacher is not None else None,
            validation=held_out,
            normalization=measuring.normalization(checkpoint, images, terminal),
            device=device,
            state=state,
            resume=resume,
            watch=recording(history, watch, anew=not resume),
        )
    save(tuned, target, force=force)
    write_epochs(tuned.notes["epochs"], history)
    state.unlink(missing_ok=True)
    last = tuned.notes["epochs"][-1]
    terminal.say(f"wrote {target} (training loss {last['loss']:.4f}) and {history}")
    o.finish({"input": str(ckpt), "output": str(target), "history": str(history), **last}, as_json)
