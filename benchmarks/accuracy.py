"""Top-1 accuracy of the embedded network on all of MNIST's test set, and of published ResNets.

The embedded network is measured whole and with its lowest gates removed, on 10,000 images that
nothing was chosen on; the published ResNets (Idelbayev) on the CIFAR-10 images given.

usage: python benchmarks/accuracy.py --mnist DIR [--cifar10 DIR --checkpoints FILE ...]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import record

import gatepruner
from gatepruner.demo import demo_checkpoint

COUNTS = (0, 10, 20, 30, 35, 40)


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--mnist", required=True, help="folder as torchvision lays it out")
    options.add_argument("--cifar10", help="folder with test/CLASS/*.png")
    options.add_argument("--checkpoints", nargs="*", type=Path, default=[], help="ResNets")
    chosen = options.parse_args()
    limit = 500 if chosen.quick else None
    whole = demo_checkpoint()
    digits = gatepruner.load_images(f"mnist:{chosen.mnist}", (1, 28, 28), limit=limit)
    curve = gatepruner.sweep(whole, digits, gatepruner.rank(whole), counts=COUNTS, device="cpu")
    rows: list[dict[str, Any]] = [
        {"network": "embedded demo, MNIST test", **point.to_json()} for point in curve
    ]
    for path in chosen.checkpoints:
        resnet, spec = gatepruner.load(path), f"imagefolder:{chosen.cifar10}"
        images = gatepruner.load_images(spec, resnet.network.base.input_shape, limit=limit)
        accuracy = gatepruner.accuracy(resnet, images, device="cpu").to_json()
        rows.append({"network": f"{path.name}, CIFAR-10 test", "removed": 0, **accuracy})
    settings = {"device": "cpu", "order": "lowest gate first"}
    record.write("accuracy", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
