"""`gate`: the command that learns gates for a network that was trained without them."""

from __future__ import annotations

from typing import Annotated

import typer

from gatepruner.cli import options as o
from gatepruner.cli.keeping import state_beside, stopping


def gate(
    ckpt: o.File,
    data: o.Data,
    output: o.Output = None,
    blocks: Annotated[
        o.MaybeInt, typer.Option(help="Blocks to go on the path; all by default.", min=1)
    ] = None,
    identity_only: Annotated[
        bool,
        typer.Option("--identity-only", help="Let only blocks go that leave no shortcut behind."),
    ] = False,
    warmup: Annotated[int, typer.Option(help="Steps before the first one goes.", min=0)] = 60,
    steps: Annotated[int, typer.Option(help="Steps after each, to adapt in.", min=1)] = 50,
    learning_rate: Annotated[float, typer.Option(help="Of the gates.")] = 0.02,
    norm_learning_rate: Annotated[
        float, typer.Option(help="Of normalisation's scales and shifts; 0 leaves them.")
    ] = 0.02,
    penalty: Annotated[float, typer.Option(help="Of every open gate.")] = 0.01,
    cost: Annotated[
        str,
        typer.Option(help="What blocks are weighed by: none, macs, params or latency."),
    ] = "none",
    latency_batch: o.LatencyBatch = 1,
    labels: Annotated[
        bool, typer.Option(help="Learn from labels, not from the network's own logits.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="That logits are divided by.")] = 4.0,
    mirror: Annotated[bool, typer.Option(help="Mirror images in colour at random.")] = True,
    hold_out: o.HoldOut = 1000,
    split: Annotated[str, typer.Option(help="Split to learn from.")] = "train",
    limit: Annotated[int, typer.Option(help="Images to learn from, at most.", min=2)] = 10_000,
    normalize: o.Normalize = None,
    resize: o.Resize = None,
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
    """Add gates to a trained network and learn the order in which its blocks can go.

    Its own weights stay as they are. After every block that goes, what the others have learned is
    kept in the output: prune, sweep and every target then need no further learning.

    Example: `gatepruner gate resnet56.th --data imagefolder:cifar10`
    """
    from gatepruner.files.checkpoints import save
    from gatepruner.learning.gates import learn_gates
    from gatepruner.learning.recipes import GateRecipe
    from gatepruner.report.terminal import path_table

    target = output or o.beside(ckpt, "gated")
    state = state_beside(target, resume=resume, force=force)
    recipe = GateRecipe(
        blocks=blocks,
        identity_only=identity_only,
        warmup=warmup,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        norm_learning_rate=norm_learning_rate,
        penalty=penalty,
        cost=cost,
        latency_batch=latency_batch,
        labels=labels,
        temperature=temperature,
        mirror=mirror,
        seed=seed,
    )
    terminal = o.terminal_of(quiet, as_json)
    whole = o.read(ckpt, arch, num_classes, input_size)
    measuring = o.Measuring(data, split, normalize, resize, None, device, batch_size)
    images = measuring.images(whole.network.base.input_shape, terminal)
    images = images.held_out(hold_out, seed)[0].spread(limit)
    with stopping(state), terminal.gating() as watch:
        gated = learn_gates(
            whole,
            images,
            recipe,
            normalization=measuring.normalization(whole, images, terminal),
            device=device,
            state=state,
            resume=resume,
            watch=watch,
        )
    save(gated, target, force=force)
    state.unlink(missing_ok=True)
    records = gated.path.records
    terminal.say(path_table(records))
    terminal.say(f"wrote {target}: {len(records)} blocks can go without further learning")
    o.finish({"input": str(ckpt), "output": str(target), "path": records}, as_json)
