"""Labelled images: read from torchvision's layouts, kept as uint8, normalised on the device."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gatepruner.errors import DataError, listed
from gatepruner.models import Shape

IN_MEMORY = 4 * 2**30  # bytes of images that are decoded once; more are decoded as they are used
Track = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Normalization:
    """What is subtracted from the pixels, scaled to [0, 1], and what they are divided by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = "given"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images `(N, C, H, W)` as float32, normalised."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (images.float() / 255 - mean) / std


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet's")
NORMALIZATIONS = {  # of the training images of each set
    "mnist": Normalization((0.1307,), (0.3081,), "MNIST's"),
    "fashion-mnist": Normalization((0.2860,), (0.3530,), "Fashion-MNIST's"),
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "CIFAR-10's"),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "CIFAR-100's"),
    "imagenet": IMAGENET,
}


def normalization_of(
    notes: Mapping[str, Any], channels: int, chosen: Normalization | None = None
) -> Normalization:
    """The normalisation a checkpoint records; ImageNet's if it records none.

    Args:
        notes: of the checkpoint.
        channels: of its images.
        chosen: one that the caller chooses instead.

    Raises:
        DataError: it is for another number of channels.
    """
    found = chosen or IMAGENET
    if chosen is None and "normalize" in notes:
        recorded = notes["normalize"]
        found = Normalization(tuple(recorded["mean"]), tuple(recorded["std"]), "the checkpoint's")
    if {len(found.mean), len(found.std)} != {channels}:
        raise DataError(
            f"{found.source} normalisation has {len(found.mean)} channels, the images have "
            f"{channels}: choose another, as in --normalize mnist or --normalize 0.5/0.5"
        )
    return found


def parse_normalization(text: str) -> Normalization:
    """A normalisation by name, or as `MEAN[,MEAN,...]/STD[,STD,...]`."""
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    mean, _, std = text.partition("/")
    try:
        values = [tuple(float(value) for value in part.split(",")) for part in (mean, std)]
        odd = not all(map(math.isfinite, (*values[0], *values[1])))
        if odd or len(values[0]) != len(values[1]) or min(values[1]) <= 0:
            raise ValueError
    except ValueError:
        raise DataError(
            f"unknown normalisation {text!r}: expected {', '.join(NORMALIZATIONS)} or "
            "MEAN,.../STD,... with a positive number for each channel"
        ) from None
    return Normalization(values[0], values[1])


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        labels: `(N,)` int64.
        classes: name of each class.
        shape: `(C, H, W)` of every image.
        source: where they come from, for messages and reports.
        pixels: `(N, C, H, W)` uint8; `None` where they are decoded as they are used.
        files: of the images, where they are decoded as they are used.
        resize: pixels that the shorter side is scaled to before the middle is cut out.
    """

    labels: Tensor
    classes: tuple[str, ...]
    shape: Shape
    source: str
    pixels: Tensor | None = None
    files: tuple[str, ...] = ()
    resize: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Some of the images."""
        return Images(
            self.labels[indices],
            self.classes,
            self.shape,
            self.source,
            None if self.pixels is None else self.pixels[indices],
            tuple(self.files[index] for index in indices.tolist()) if self.files else (),
            self.resize,
        )

    def spread(self, limit: int | None) -> Images:
        """At most `limit` images, evenly from all over the set, so from every class."""
        if limit is None or limit >= len(self):
            return self
        return self.take(torch.arange(limit) * len(self) // limit)

    def held_out(self, count: int, seed: int) -> tuple[Images, Images | None]:
        """The set without `count` images that are drawn at random, and those."""
        if not count:
            return self, None
        if count >= len(self):
            raise DataError(f"cannot hold out {count} images: {self.source} has {len(self)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[count:].sort().values), self.take(order[:count].sort().values)

    def joined(self, other: Images) -> Images:
        """These images and then those of another set, such as its validation split.

        Raises:
            DataError: they differ in size or classes, or only one of the two is in memory.
        """
        ours = (self.shape, self.classes, self.resize, self.pixels is None)
        if ours != (other.shape, other.classes, other.resize, other.pixels is None):
            raise DataError(
                f"cannot join {self.source} and {other.source}: the same size and classes were "
                "expected, and both in memory or both in files"
            )
        pixels = None
        if self.pixels is not None and other.pixels is not None:
            pixels = torch.cat([self.pixels, other.pixels])
        return Images(
            torch.cat([self.labels, other.labels]),
            self.classes,
            self.shape,
            f"{self.source} and {other.source}",
            pixels,
            self.files + other.files,
            self.resize,
        )

    def to(self, device: torch.device) -> Images:
        """The same with what is in memory on the device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        labels = self.labels.to(device)
        return Images(
            labels, self.classes, self.shape, self.source, pixels, self.files, self.resize
        )

    def batches(self, indices: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels `(B, C, H, W)` uint8 and labels `(B,)`, in the order of the indices."""
        parts = [indices[at : at + size] for at in range(0, len(indices), size)]
        if self.pixels is not None:
            for part in parts:
                at = part.to(self.pixels.device)
                yield self.pixels[at], self.labels[at]
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting = self._decoding(pool, parts[0]) if parts else []
            for part, following in itertools.zip_longest(parts, parts[1:]):
                decoded = waiting
                waiting = self._decoding(pool, following) if following is not None else []
                pixels = torch.stack([future.result() for future in decoded])
                at = part.to(self.labels.device)
                yield pixels.to(self.labels.device, non_blocking=True), self.labels[at]

    def _decoding(self, pool: ThreadPoolExecutor, part: Tensor) -> list[Any]:
        files = [self.files[index] for index in part.tolist()]
        return [pool.submit(_decode, file, self.shape, self.resize) for file in files]


def augmented(pixels: Tensor) -> Tensor:
    """Images shifted by up to an eighth of their width, and mirrored if they are in colour.

    Args:
        pixels: `(N, C, H, W)` of any type; what is shifted in is 0.
    """
    n, channels, height, width = pixels.shape
    reach = width // 8
    padded = F.pad(pixels, (reach,) * 4)
    down, right = torch.randint(2 * reach + 1, (2, n, 1), device=pixels.device)
    rows = down + torch.arange(height, device=pixels.device)
    columns = right + torch.arange(width, device=pixels.device)
    if channels == 3:
        mirror = torch.rand(n, 1, device=pixels.device) < 0.5
        columns = torch.where(mirror, columns.flip(1), columns)
    each = torch.arange(n, device=pixels.device)[:, None, None]
    return padded.movedim(1, 3)[each, rows[:, :, None], columns[:, None, :]].movedim(3, 1)


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
        raise DataError(
            f"unknown data {spec!r}: expected {', '.join(f'{name}:DIR' for name in READERS)}"
        )
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root} for {spec!r}: expected {LAYOUTS[kind]}")
    images = READERS[kind](root, split, shape, resize, limit, track)
    if not len(images):
        raise DataError(f"{spec} is empty: expected {LAYOUTS[kind]}")
    if images.shape != shape:
        hint = f"; pass --resize {shape[1]}" if images.shape[0] == shape[0] and images.files else ""
        raise DataError(
            f"{spec} has images of {_size(images.shape)}: the network takes {_size(shape)}{hint}"
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
            raise DataError(f"{kind} cannot be resized: --resize is for imagefolder")
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
        decoded = pool.map(lambda file: _decode(file, shape, resize), named.files, chunksize=64)
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


def _decode(file: str, shape: Shape, resize: int | None) -> Tensor:
    """One image `(C, H, W)` uint8."""
    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"cannot read the image {file}: {error}") from None
    if resize is not None:
        image = _middle(image, resize, height, width)
    if (image.height, image.width) != (height, width):
        raise DataError(
            f"{file} is {image.height}x{image.width}: the network takes {height}x{width}; "
            f"pass --resize {height} to scale the shorter side and cut out the middle"
        )
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def _middle(image: Image.Image, side: int, height: int, width: int) -> Image.Image:
    """The image with its shorter side scaled to `side`, and of that the middle."""
    factor = max(side, height, width) / min(image.size)
    scaled = (max(round(image.width * factor), width), max(round(image.height * factor), height))
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
