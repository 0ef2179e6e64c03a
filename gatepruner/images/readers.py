"""Labelled images read from torchvision's layouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gatepruner.errors import DataError, listed
from gatepruner.images.decoding import decode
from gatepruner.images.images import Images, Track
from gatepruner.models import Shape

IN_MEMORY = 4 * 2**30  # bytes of images that are decoded once; more are decoded as they are used


def load_images(
    spec: str,
    shape: Shape,
    *,
    split: str | None = None,
    resize: int | None = None,
    limit: int | None = None,
    track: Track = iter,
) -> Images:
    """Read labelled images.

    Args:
        spec: `mnist:DIR`, `fashion-mnist:DIR`, `cifar10:DIR` or `cifar100:DIR` (torchvision's
            layouts, nothing is downloaded), or `imagefolder:DIR` (`DIR/SPLIT/CLASS/*.png`).
        shape: `(C, H, W)` that the network takes.
        split: `train`, `val` or `test`; by default `test`, or `val` where there is no `test`.
        resize: for images of other sizes: pixels that the shorter side is scaled to, before
            the middle `(H, W)` is cut out.
        limit: at most so many images, evenly from all over the set.
        track: wraps the decoding of files, to show progress.

    Raises:
        DataError: the set is unknown, not there or empty, or its images are of another size.
    """
    kind, _, directory = spec.partition(":")
    if kind not in READERS or not directory:
        known = ", ".join(f"{name}:DIR" for name in READERS)
        folder = f"; for the folder {spec}: imagefolder:{spec}" if Path(spec).is_dir() else ""
        raise DataError(f"unknown data {spec!r}: expected {known}{folder}")
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root} for {spec!r}: expected {LAYOUTS[kind]}")
    images = READERS[kind](root, split, shape, resize, limit, track)
    if not len(images):
        raise DataError(f"{spec} is empty: expected {LAYOUTS[kind]}")
    if images.shape != shape:
        scaled = images.shape[0] == shape[0] and images.files
        raise DataError(
            f"{spec} has images of {_size(images.shape)}: the network takes {_size(shape)}",
            **({"resize": shape[1]} if scaled else {}),
        )
    return images


def has_split(spec: str, split: str) -> bool:
    """Whether a set has such a split: torchvision's have train and test, a folder what is in it."""
    kind, _, directory = spec.partition(":")
    if kind != "imagefolder":
        return split in ("train", "test")
    return (Path(directory).expanduser() / split).is_dir()


def _size(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}x{shape[2]} (channels, height, width)"


LAYOUTS = {
    "mnist": "DIR/MNIST/raw/*-ubyte, as torchvision lays it out",
    "fashion-mnist": "DIR/FashionMNIST/raw/*-ubyte, as torchvision lays it out",
    "cifar10": "DIR/cifar-10-batches-py, as torchvision lays it out",
    "cifar100": "DIR/cifar-100-python, as torchvision lays it out",
    "imagefolder": "DIR/train, DIR/val or DIR/test with a folder of images for each class",
}


SETS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def _set_reader(kind: str) -> Callable[..., Images]:
    def read(
        root: Path,
        split: str | None,
        shape: Shape,
        resize: int | None,
        limit: int | None,
        track: Track,
    ) -> Images:
        import torchvision.datasets

        split = split or "test"
        if split not in ("train", "test"):
            raise DataError(f"{kind} has no split {split!r}: expected train or test")
        if resize is not None:
            raise DataError(f"{kind} cannot be resized: only images of an imagefolder can")
        try:
            found = getattr(torchvision.datasets, SETS[kind])(root, train=split == "train")
        except Exception as error:  # torchvision tells of damage in many ways
            reason = (str(error).strip() or "damaged").splitlines()[0].rstrip(".")
            raise DataError(
                f"cannot read {kind}:{root} ({reason}): expected {LAYOUTS[kind]}"
            ) from None
        pixels = torch.as_tensor(found.data)
        pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        labels = torch.as_tensor(found.targets, dtype=torch.int64)
        if len(labels) != len(pixels):
            raise DataError(
                f"{kind}:{root} {split} has {len(pixels)} images and {len(labels)} labels: "
                "as many of each were expected; unpack it again"
            )
        size = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        whole = Images(
            labels, tuple(found.classes), size, f"{kind}:{root} {split}", pixels.contiguous()
        )
        return whole.spread(limit)

    return read


def _read_folder(
    root: Path, split: str | None, shape: Shape, resize: int | None, limit: int | None, track: Track
) -> Images:
    from torchvision.datasets import ImageFolder

    if shape[0] not in (1, 3):
        raise DataError(
            f"imagefolder:{root} has images of 1 or 3 channels: the network takes {_size(shape)}"
        )
    there = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    split = split or ("test" if "test" in there else "val")
    if split not in there:
        raise DataError(
            f"imagefolder:{root} has no split {split!r}: found {listed(there) or 'none'}, "
            f"expected {LAYOUTS['imagefolder']}"
        )
    try:
        found = ImageFolder(str(root / split))
    except (FileNotFoundError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"imagefolder:{root} {split}: {reason}") from None
    labels, files = torch.tensor(found.targets), tuple(file for file, _ in found.samples)
    source = f"imagefolder:{root} {split}"
    named = Images(labels, tuple(found.classes), shape, source, None, files, resize).spread(limit)
    if not len(named) or len(named) * int(np.prod(shape)) > IN_MEMORY:
        return named
    pixels = torch.empty(len(named), *shape, dtype=torch.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda file: decode(file, shape, resize), named.files, chunksize=64)
        for index, one in enumerate(track(_counted(decoded, len(named)))):
            pixels[index] = one
    return Images(named.labels, named.classes, shape, source, pixels)


READERS: dict[str, Callable[..., Images]] = {
    **{kind: _set_reader(kind) for kind in SETS},
    "imagefolder": _read_folder,
}


class _counted(Iterable[Any]):  # noqa: N801 - reads as a verb
    """An iterable that knows how long it is."""

    def __init__(self, items: Iterable[Any], length: int) -> None:
        self.items, self.length = items, length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return self.length
