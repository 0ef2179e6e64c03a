"""Write the images and labels of the embedded demo: every fifth test image of MNIST.

usage: python make_images.py DIR      (a folder with MNIST/raw/..., as torchvision lays it out)
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from torchvision.datasets import MNIST

ROWS, COLUMNS, SIDE = 40, 50, 28

if __name__ == "__main__":
    here, images = Path(__file__).parent, MNIST(sys.argv[1], train=False)
    step = len(images.data) // (ROWS * COLUMNS)
    pixels = images.data[::step].view(ROWS, COLUMNS, SIDE, SIDE)
    sheet = pixels.transpose(1, 2).reshape(ROWS * SIDE, COLUMNS * SIDE)
    Image.fromarray(sheet.numpy()).save(here / "images.png", optimize=True)
    digits = images.targets[::step].view(ROWS, COLUMNS).tolist()
    lines = ["".join(map(str, row)) for row in digits]
    (here / "labels.txt").write_text("\n".join(lines) + "\n")
