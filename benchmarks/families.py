"""Gate, prune, fold, save, load: one network of each torchvision family, with random weights.

Images are drawn at random and written as a folder of PNG files, of 64 x 64 where the network takes
that, else of 224 x 224. Every network goes through the command line: `gate` lets four blocks go (a
step of four images each), `prune --drop 4` removes them and folds the gates. What is loaded from
the file has to give the logits that masking gives: the whole network in that state, with the gates
of the four at 0. ResNets are also exported and loaded strictly into the stock torchvision class.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import torchvision
from PIL import Image

import gatepruner

NETWORKS = {
    **dict.fromkeys(("resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_y_400mf"), 64),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "efficientnet_b0"), 64),
    **dict.fromkeys(("efficientnet_v2_s", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32"), 64),
    "maxvit_t": 224,
}
STOCK = ("resnet50", "resnext50_32x4d")
CLASSES = 4


def write_images(folder: Path, side: int) -> None:
    """Two training and one test image of each class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for label in range(CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(256, size=(side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f"{index}.png")


def masked(gated: gatepruner.Checkpoint, gone: list[str]) -> gatepruner.Checkpoint:
    """The whole network in the state of the path, the gates of what has gone at 0."""
    weights = {**gated.weights, **gated.path[len(gone) - 1].weights}
    zeros = {gated.network.gate_key(name): torch.zeros(()) for name in gone}
    return gatepruner.Checkpoint(gated.network, {**weights, **zeros}, gated.notes)


def fresh(network: gatepruner.Network) -> dict[str, torch.Tensor]:
    """Random weights; what a constructor leaves at 0, such as a head, is drawn as well."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: 0.02 * torch.randn(it.shape, generator=generator)
        if it.ndim > 1 and not it.any()
        else it
        for key, it in network.initial_weights(0).items()
    }


def stock_logits(path: Path, name: str, layers: list[int], images: torch.Tensor) -> torch.Tensor:
    """What the stock torchvision class says with the exported weights."""
    wide: dict[str, Any] = {"groups": 32, "width_per_group": 4} if "resnext" in name else {}
    block = torchvision.models.resnet.Bottleneck
    stock = torchvision.models.ResNet(block, layers, num_classes=CLASSES, **wide)
    stock.load_state_dict(torch.load(path, weights_only=True), strict=True)
    result: torch.Tensor = stock.eval()(images)
    return result


@torch.no_grad()
def shown(name: str, side: int, folder: Path) -> dict[str, Any]:
    """One network on its way through the commands."""
    data, work = folder / str(side), folder / name
    if not data.exists():
        write_images(data, side)
    work.mkdir()
    network = gatepruner.Network.named(
        f"torchvision:{name}", num_classes=CLASSES, input_shape=(3, side, side)
    )
    whole = gatepruner.Checkpoint(network, fresh(network))
    gatepruner.save(whole, work / "whole.pt")
    given = ("--data", f"imagefolder:{data}", "--device", "cpu", "--quiet")
    few = ("--blocks", "4", "--warmup", "1", "--steps", "1", "--batch-size", "4", "--hold-out", "0")
    few += ("--identity-only",) if name in STOCK else ()
    record.run(
        [record.COMMAND, "gate", str(work / "whole.pt"), "-o", str(work / "g.pt"), *few, *given]
    )
    small_path = work / "small.pt"
    prune = ("prune", str(work / "g.pt"), "--drop", "4", "--recalibrate", "0")
    record.run([record.COMMAND, *prune, "-o", str(small_path), *given])
    gated, small = gatepruner.load(work / "g.pt"), gatepruner.load(small_path)
    gone = [state.gone for state in gated.path]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected, logits = masked(gated, gone).build()(images), small.build()(images)
    difference = float((logits - expected).abs().max() / expected.abs().max())
    if not (difference < 1e-4 and not small.network.edits.gated):
        raise SystemExit(f"{name}: logits differ by {difference:.2g} of the largest")
    stock = ""
    if name in STOCK:
        exported = gatepruner.to_torchvision(small)
        path = work / "stock.pth"
        record.run(
            [record.COMMAND, "export", str(small_path), "--to", "torchvision", "-o", str(path)]
        )
        same = torch.allclose(
            stock_logits(path, name, list(exported.layers), images), logits, rtol=1e-4, atol=1e-5
        )
        if not same:
            raise SystemExit(f"{name}: the stock class gives other logits")
        stock = str(list(exported.layers))
    edits = small.network.edits
    print(f"{name}: {gone} gone, logits differ by {difference:.1e} of the largest")
    return {
        "network": name,
        "side": side,
        "blocks": len(gated.network.edits.gated),
        "gone": gone,
        "difference": difference,
        "constants": len(edits.scaled_branches),
        "stock_layers": stock,
    }


def main() -> None:
    options = record.parser(__doc__)
    chosen = options.parse_args()
    names = ("resnet50", "mobilenet_v2") if chosen.quick else NETWORKS
    with tempfile.TemporaryDirectory() as folder:
        rows = [shown(name, NETWORKS[name], Path(folder)) for name in names]
    record.write("families", {"device": "cpu", "weights": "random"}, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
