"""Makes the golden files of checkpoint format 1; run once, and never again for this format.

PYTHONPATH=. python tests/golden/make_golden.py

`format1-gated`: a gated network with one block removed. `format1-folded`: plain gates, one block
and one shortcut removed, then folded, so that constants are left. Nothing is overwritten: a new
format gets new files beside these, which have to load for ever.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from gatepruner.checkpoint import Checkpoint, save
from gatepruner.network import Network
from gatepruner.surgery import fold_gates, remove, remove_shortcuts

FOLDER = Path(__file__).parent


def fixed_input(shape: Sequence[int]) -> torch.Tensor:
    """Three images, numbers that rise evenly from -1 to 1."""
    return torch.linspace(-1, 1, 3 * torch.Size(shape).numel()).reshape(3, *shape)


def trained(network: Network) -> Checkpoint:
    """Weights in which nothing is 0 or 1 by chance: statistics and gates are drawn, too."""
    draw = torch.Generator().manual_seed(1)
    weights = {}
    for key, tensor in sorted(network.state().items()):
        value = torch.rand(tensor.shape, generator=draw)
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(7)
        elif key.endswith((".k", "running_var")) or ("bn" in key and not key.endswith("mean")):
            weights[key] = value + 0.5
        else:
            weights[key] = (value - 0.5) * (3 if value.ndim > 1 else 1)
    notes = {"normalize": {"mean": [0.1307], "std": [0.3081]}, "classes": ["rot", "grün"]}
    return Checkpoint(network, weights, notes)


def write(name: str, checkpoint: Checkpoint) -> None:
    for suffix in (".pt", ".safetensors"):
        save(checkpoint, FOLDER / f"{name}{suffix}")
    network = checkpoint.network
    with torch.no_grad():
        logits = checkpoint.build()(fixed_input(network.base.input_shape))
    expected = {
        "input": "torch.linspace(-1, 1, 3 * C * H * W).reshape(3, C, H, W)",
        "logits": logits.tolist(),
        "network": network.to_json(),
        "blocks": [block.name for block in network.blocks],
        "gates": checkpoint.gates,
        "names": {key: list(value.shape) for key, value in checkpoint.weights.items()},
        "notes": checkpoint.notes,
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    gated = trained(Network.named("gated-residual-fc6,width=4", num_classes=2))
    write("format1-gated", remove(gated, ["blocks.1"]))
    network = Network.named("gated-plain-fc8,width=4", num_classes=2, input_shape=(1, 4, 4))
    plain = remove_shortcuts(remove(trained(network), ["blocks.1"]), ["blocks.3"])
    write("format1-folded", fold_gates(plain))


if __name__ == "__main__":
    main()
