"""How fast photographs are read: processor time of 500 x 375 JPEGs scaled and cropped to 224 x 224.

Four ways, in turns, each on one thread, files in the page cache: this reader; Pillow and
torchvision's Resize and CenterCrop of its images; torchvision's decoder before the same scaling;
torchvision's decoder and its Resize of tensors. The pictures are smoothed noise, written by this
script. Reported are the processor time per picture, and the greatest difference of pixels from
those of the second way, which the reader has to equal.

Aim: at most 1.1 times the fastest way whose pixels are equal.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from gatepruner.images.decoding import decode
from gatepruner.images.scaling import Scaling

SIZE, SCALING, SIDE = (500, 375), Scaling(256), 224
Reader = Callable[[str], Tensor]


def write_pictures(folder: Path, count: int) -> list[str]:
    """Smoothed noise, about as large as photographs of its size."""
    draw = np.random.default_rng(0)
    files = [str(folder / f"{index}.jpg") for index in range(count)]
    for file in files:
        noise = Image.fromarray(draw.integers(0, 256, (94, 125, 3), np.uint8))
        noise.resize(SIZE, Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def decoded(file: str) -> Tensor:
    """Pixels `(3, H, W)` by torchvision's decoder."""
    return decode_jpeg(read_file(file), mode=ImageReadMode.RGB)


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def with_pillow(file: str) -> Tensor:
    scaled = F.resize(Image.open(file).convert("RGB"), [SCALING.side])
    return pixels_of(F.center_crop(scaled, [SIDE, SIDE]))


def with_its_decoder(file: str) -> Tensor:
    image = Image.fromarray(decoded(file).permute(1, 2, 0).numpy())
    return pixels_of(SCALING(image, SIDE, SIDE))


def with_tensors(file: str) -> Tensor:
    return F.center_crop(F.resize(decoded(file), [SCALING.side]), [SIDE, SIDE])


PILLOW = "Pillow, torchvision's Resize of its images"
WAYS: Mapping[str, Reader] = {
    "this reader": lambda file: decode(file, (3, SIDE, SIDE), SCALING),
    PILLOW: with_pillow,
    "torchvision's decoder, Pillow's scaling": with_its_decoder,
    "torchvision's decoder, its Resize of tensors": with_tensors,
}


def processor_seconds(read: Reader, files: list[str]) -> float:
    """Processor time of one picture, the mean over the files."""
    start = time.process_time()
    for file in files:
        read(file)
    return (time.process_time() - start) / len(files)


def difference(read: Reader, files: list[str]) -> int:
    """The greatest difference from the pixels by which the others are judged."""
    pairs = ((read(file).int(), with_pillow(file).int()) for file in files)
    return max(int((one - other).abs().max()) for one, other in pairs)


def main() -> None:
    options = record.parser(__doc__)
    options.add_argument("--runs", type=int, default=9, help="rounds that are counted")
    chosen = options.parse_args()
    count, runs = (5, 2) if chosen.quick else (100, chosen.runs)
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder), count)
        differences = {way: difference(read, files) for way, read in WAYS.items()}
        for _ in range(runs):
            for way, read in WAYS.items():
                taken[way].append(processor_seconds(read, files))
        size = sum(Path(file).stat().st_size for file in files) / count
    rows: list[dict[str, Any]] = [
        {"way": way, "seconds": record.spread(of), "difference": differences[way]}
        for way, of in taken.items()
    ]
    settings = {
        "pictures": f"{count} JPEGs of {SIZE[0]} x {SIZE[1]}, {size / 1000:.0f} kB each",
        "scaling": str(SCALING),
        "runs": runs,
    }
    record.write("reading", settings, rows, quick=chosen.quick)


if __name__ == "__main__":
    main()
