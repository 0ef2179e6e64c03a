"""Makes the golden files of checkpoint format 4; run once, and never again for this format.

PYTHONPATH=. python tests/golden/make_golden.py

`format4-path`: a gated network with a path of two blocks; `format4-narrowed`: a narrowed network
with a path of a slice and a block, removed together. Those of formats 1 to 3 were made here
when they were the current ones: `format2-path` and `format3-path`, the same network,
`format1-gated`, a gated network with one block removed, and `format1-folded`: plain gates, one
block and one shortcut removed, then folded, so that constants are left. Nothing is overwritten: a
new format gets new files beside these, which have to load for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import torch

from gatepruner.files.checkpoints import save
from gatepruner.networks.checkpoint import Checkpoint
from gatepruner.networks.network import Network
from gatepruner.networks.path import Path, Removal
from gatepruner.networks.slices import sorted_out
from gatepruner.pruning.surgery import follow, narrow

FOLDER = FilePath(__file__).parent


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


def logits_of(checkpoint: Checkpoint) -> list[list[float]]:
    with torch.no_grad():
        return checkpoint.build()(fixed_input(checkpoint.network.base.input_shape)).tolist()


def names_of(weights: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in weights.items()}


def with_path(whole: Checkpoint, gone: Sequence[str]) -> Checkpoint:
    """States in which gates, scales, shifts and statistics are drawn anew."""
    draw, removals = torch.Generator().manual_seed(2), []
    for number, name in enumerate(gone, start=1):
        left = whole.network.without(sorted_out(gone[:number])[0]).state()
        small = [key for key in left if "bn" in key or key.endswith(".k")]
        small = [key for key in small if not key.endswith("num_batches_tracked")]
        drawn = {key: torch.rand(left[key].shape, generator=draw) + 0.5 for key in small}
        removals.append(Removal(name, 0.25, 0.5, 1.5, 3, drawn))
    return replace(whole, path=Path(tuple(removals)))


def write(name: str, checkpoint: Checkpoint) -> None:
    for suffix in (".pt", ".safetensors"):
        save(checkpoint, FOLDER / f"{name}{suffix}")
    gone = checkpoint.path.blocks
    expected = {
        "input": "torch.linspace(-1, 1, 3 * C * H * W).reshape(3, C, H, W)",
        "logits": logits_of(checkpoint),
        "network": checkpoint.network.to_json(),
        "blocks": [block.name for block in checkpoint.network.blocks],
        "gates": checkpoint.gates,
        "names": names_of(checkpoint.weights),
        "notes": checkpoint.notes,
        "path": [
            {
                **removal.record(),
                "names": names_of(removal.weights),
                "logits": logits_of(follow(checkpoint, gone[:number])),
            }
            for number, removal in enumerate(checkpoint.path.removals, start=1)
        ],
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    network = Network.named("gated-residual-fc8,width=4", num_classes=2, input_shape=(1, 4, 4))
    write("format4-path", with_path(trained(network), ["blocks.2", "blocks.0"]))
    network = Network.named("gated-resnet8", num_classes=2, input_shape=(3, 4, 4))
    most = ["layer1.0.conv1[2-15]", "layer2.0.conv1[0-4,6-29]", "layer3.0.conv1[4-63]"]
    small = narrow(trained(network), most)  # so that the files are small
    together = with_path(small, ["layer2.0.conv1[1]", "layer3.0"]).path.removals
    shared = (replace(together[0], weights={}), together[1])
    write("format4-narrowed", replace(small, path=Path(shared)))


if __name__ == "__main__":
    main()
