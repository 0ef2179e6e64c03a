"""`train`: the command that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gatepruner.cli import options as o
from gatepruner.cli.keeping import kept_beside, recording, stopping, write_epochs


def train(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH", help="As in gated-resnet20, gated-wrn-16-4,dropout=0.3, resnet56-b."
        ),
    ],
    data: o.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    epochs: Annotated[int, typer.Option(help="Passes over the images.", min=1)] = 10,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    learning_rate: Annotated[
        o.MaybeFloat, typer.Option(help="Peak, of the weights; 0.1 for SGD, 0.001 for Adam.")
    ] = None,
    schedule: Annotated[str, typer.Option(help="onecycle, step or cosine.")] = "onecycle",
    weight_decay: Annotated[float, typer.Option(help="Of the weights, not of gates.")] = 5e-4,
    gate_learning_rate: Annotated[float, typer.Option(help="Peak, of the gates.")] = 0.05,
    gate_penalty: Annotated[float, typer.Option(help="Times the sum of all gates.")] = 0.0,
    initial_gate: Annotated[float, typer.Option(help="k of every gate at first.")] = 1.0,
    augment: Annotated[bool, typer.Option(help="Shift, and mirror if in colour.")] = True,
    hold_out: Annotated[int, typer.Option(help="Training images to validate on.", min=0)] = 0,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    limit: o.Limit = None,
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
    """Train a network, gates and weights together, from fresh weights.

    Interrupted or killed, it goes on with `--resume` and ends with the same weights. Every epoch
    is written to the history beside the output.

    Example: `gatepruner train gated-resnet20 --data cifar10:DIR --epochs 40 -o gated.pt`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.images.normalization import parse_normalization
    from gatepruner.learning import training
    from gatepruner.learning.recipes import Recipe
    from gatepruner.networks.network import Network

    state, history = kept_beside(output, resume=resume, force=force)
    recipe = Recipe(
        epochs,
        batch_size,
        optimizer,
        learning_rate,
        schedule,
        weight_decay,
        gate_learning_rate,
        gate_penalty,
        augment,
        initial_gate=initial_gate,
        seed=seed,
    )
    terminal = o.terminal_of(quiet, as_json)
    shape = o.shape_of(input_size)
    network = Network.named(arch, num_classes=num_classes, input_shape=shape)
    measuring = o.Measuring(data, split, normalize, resize, limit, device, batch_size)
    images = measuring.images(network.base.input_shape, terminal)
    if num_classes is None:
        network = Network.named(arch, num_classes=len(images.classes), input_shape=shape)
    images, held_out = images.held_out(hold_out, seed)
    terminal.say(f"{network}: {len(images):,} images of {images.source}")
    with stopping(state), terminal.training() as watch:
        checkpoint = training.train(
            network,
            images,
            recipe,
            validation=held_out,
            normalization=parse_normalization(normalize) if normalize else None,
            device=device,
            state=state,
            resume=resume,
            watch=recording(history, watch, anew=not resume),
        )
    save(checkpoint, output, force=force)
    write_epochs(checkpoint.notes["epochs"], history)
    state.unlink(missing_ok=True)
    last = checkpoint.notes["epochs"][-1]
    terminal.say(f"wrote {output} (training loss {last['loss']:.4f}) and {history}")
    named = {"output": str(output), "history": str(history), "name": str(network)}
    o.finish({**named, **last}, as_json)
