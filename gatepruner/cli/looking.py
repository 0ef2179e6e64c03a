"""`inspect`, `rank` and `evaluate`: commands that only look."""

from __future__ import annotations

import json

from gatepruner.cli import options as o


def inspect(
    ckpt: o.File,
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    as_json: o.Json = False,
) -> None:
    """Show what a checkpoint holds: its network, blocks, gates, cost and history.

    Example: `gatepruner inspect resnet56.th`
    """
    from gatepruner.measuring.cost import count
    from gatepruner.report import terminal as show

    checkpoint = o.read(ckpt, arch, num_classes, input_size)
    network, cost = checkpoint.network, count(checkpoint.network)
    terminal, gates = o.terminal_of(False, as_json), checkpoint.known_gates
    shape, left = "x".join(map(str, network.base.input_shape)), o.blocks_left(checkpoint)
    terminal.say(f"{ckpt}: {network}, images of {shape}")
    terminal.say(f"{left} blocks, {cost.params:,} parameters, {cost.macs:,} MACs")
    terminal.say(show.block_table(network.blocks, gates))
    for done in checkpoint.notes.get("history", ()):
        terminal.say(f"history: {json.dumps(done)}")
    document = {
        "input": str(ckpt),
        "name": str(network),
        "network": network.to_json(),
        "blocks": [{**vars(block), "gate": gates.get(block.name)} for block in network.blocks],
        "params": cost.params,
        "macs": cost.macs,
        "notes": dict(checkpoint.notes),
    }
    o.finish(document, as_json)


def rank(
    ckpt: o.File,
    by: o.By = "gate",
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """List the blocks that can go, least important first.

    Example: `gatepruner rank gated.pt`
    """
    from gatepruner.pruning import ranking as r
    from gatepruner.report import terminal as show

    checkpoint = o.read(ckpt, arch, num_classes, input_size)
    ranking, gates = r.rank(checkpoint, by, seed=seed), checkpoint.known_gates
    o.terminal_of(False, as_json).say(show.ranking_table(ranking, gates))
    blocks = [
        {"name": name, "gate": gates.get(name), "score": score} for name, score in ranking.scores
    ]
    o.finish({"input": str(ckpt), "criterion": by, "seed": seed, "blocks": blocks}, as_json)


def evaluate(
    ckpt: o.File,
    data: o.Data,
    split: o.Split = None,
    normalize: o.Normalize = None,
    resize: o.Resize = None,
    limit: o.Limit = None,
    arch: o.Arch = None,
    num_classes: o.Classes = None,
    input_size: o.Size = None,
    device: o.Device = "auto",
    batch_size: o.BatchSize = 128,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Measure top-1 accuracy, with its 95 % interval, and mean loss.

    Example: `gatepruner evaluate resnet56.th --data imagefolder:cifar10`
    """
    from gatepruner.measuring.accuracy import accuracy
    from gatepruner.report.terminal import accuracy_text

    terminal = o.terminal_of(quiet, as_json)
    checkpoint = o.read(ckpt, arch, num_classes, input_size)
    measuring = o.Measuring(data, split, normalize, resize, limit, device, batch_size)
    images = measuring.images(checkpoint.network.base.input_shape, terminal)
    normalization = measuring.normalization(checkpoint, images, terminal)
    found = accuracy(
        checkpoint,
        images,
        device=device,
        batch_size=batch_size,
        normalization=normalization,
        track=terminal.track("evaluating"),
    )
    terminal.say(accuracy_text(found))
    normalized = {"mean": normalization.mean, "std": normalization.std}
    document = {
        "input": str(ckpt),
        "data": images.source,
        "normalize": {**normalized, "source": normalization.source},
        **found.to_json(),
    }
    o.finish(document, as_json)
