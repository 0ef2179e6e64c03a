"""The embedded demo: a trained gated network and test images.

`network.safetensors` is the 100-layer gated residual network for MNIST, trained by the command
in `README.md` beside it. `images.png` contains every fifth image of MNIST's test set (LeCun,
Cortes, Burges, CC BY-SA 3.0), 2,000 images, 50 per row; `labels.txt` has their digits, one line
per row.
"""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch
from PIL import Image

from gatepruner.files.checkpoints import load
from gatepruner.images.images import Images
from gatepruner.networks.checkpoint import Checkpoint

SIDE = 28


def demo_checkpoint() -> Checkpoint:
    """The embedded network."""
    with as_file(files(__package__) / "network.safetensors") as path:
        return load(path)


def demo_images() -> Images:
    """The embedded test images, with all ten digits."""
    folder = files(__package__)
    with as_file(folder / "images.png") as path, Image.open(path) as opened:
        sheet = torch.from_numpy(np.array(opened.convert("L")))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    pixels = sheet.view(rows, SIDE, columns, SIDE).transpose(1, 2).reshape(-1, 1, SIDE, SIDE)
    digits = "".join((folder / "labels.txt").read_text().split())
    labels = torch.tensor([int(digit) for digit in digits])
    classes = tuple(str(digit) for digit in range(10))
    return Images(labels, classes, (1, SIDE, SIDE), "mnist (embedded) test", pixels.contiguous())
