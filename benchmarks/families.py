"""Gate, prune, fold, save, load: one network of each torchvision family, with random weights.

Images are drawn at random, of 64 x 64 where the network takes that, else of 224 x 224. Gates are
learned while four blocks go (a step of four images each), the four are removed, gates folded and
the result saved. What is loaded from the file has to give the logits that masking gives: the whole
network in that state, with the gates of the four at 0. ResNets are also exported and loaded
strictly into the stock torchvision class.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import record
import torch

import gatepruner

NETWORKS = {
    **dict.fromkeys(("resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_y_400mf"), 64),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "efficientnet_b0"), 64),
    **dict.fromkeys(("efficientnet_v2_s", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32"), 64),
    "maxvit_t": 224,
}
STOCK = ("resnet50", "resnext50_32x4d")
CLASSES, BLOCKS = 4, 4


def random_network(name: str, side: int) -> gatepruner.Checkpoint:
    """Random weights; what a constructor leaves at 0, such as a head, is drawn as well."""
    network = gatepruner.Network.named(
        f"torchvision:{name}", num_classes=CLASSES, input_shape=(3, side, side)
    )
    generator, weights = torch.Generator().manual_seed(0), network.initial_weights(0)
    for key, tensor in weights.items():
        if tensor.ndim > 1 and not tensor.any():
            weights[key] = 0.02 * torch.randn(tensor.shape, generator=generator)
    return gatepruner.Checkpoint(network, weights)


def random_images(side: int) -> gatepruner.Images:
    """Two images of each class."""
    generator, shape = torch.Generator().manual_seed(0), (3, side, side)
    labels = torch.arange(CLASSES).repeat(2)
    pixels = torch.randint(256, (len(labels), *shape), generator=generator, dtype=torch.uint8)
    return gatepruner.Images(labels, tuple("0123"), shape, "random images", pixels)


def masked(gated: gatepruner.Checkpoint) -> gatepruner.Checkpoint:
    """The whole network in the last state of the path, the gates of what has gone at 0."""
    zeros = {gated.network.gate_key(name): torch.zeros(()) for name in gated.path.blocks}
    weights = {**gated.weights, **gated.path.removals[-1].weights, **zeros}
    return gatepruner.Checkpoint(gated.network, weights, gated.notes)


@torch.no_grad()
def shown(name: str, side: int, path: Path) -> dict[str, Any]:
    """One network on its way through the verbs."""
    recipe = gatepruner.GateRecipe(
        blocks=BLOCKS, warmup=1, steps=1, batch_size=4, identity_only=name in STOCK
    )
    whole, train = random_network(name, side), random_images(side)
    with torch.enable_grad():
        gated = gatepruner.learn_gates(whole, train, recipe, device="cpu")
    pruned = gatepruner.fold_gates(gatepruner.follow(gated, gated.path.blocks))
    gatepruner.save(pruned, path)
    small = gatepruner.load(path)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected, logits = masked(gated).build()(images), small.build()(images)
    difference = float((logits - expected).abs().max() / expected.abs().max())
    if not (difference < 1e-4 and not small.network.edits.gated):
        raise SystemExit(f"{name}: logits differ by {difference:.2g} of the largest")
    if name in STOCK:
        stock = gatepruner.to_torchvision(small).build()(images)
        torch.testing.assert_close(stock, logits, rtol=1e-4, atol=1e-5)
    print(f"{name}: logits differ by {difference:.1e} of the largest", flush=True)
    return {
        "network": name,
        "side": side,
        "blocks": len(gated.network.edits.gated),
        "gone": gated.path.blocks,
        "difference": difference,
        "constants": len(small.network.edits.scaled_branches),
        "stock": name in STOCK,
    }


def main() -> None:
    chosen = record.parser(__doc__).parse_args()
    names = ("resnet50", "mobilenet_v2") if chosen.quick else NETWORKS
    with tempfile.TemporaryDirectory() as folder:
        rows = [shown(name, NETWORKS[name], Path(folder) / f"{name}.pt") for name in names]
    record.write("families", {"device": "cpu", "weights": "random"}, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
