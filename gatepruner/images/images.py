"""Images, in memory as uint8 or decoded from files batch by batch."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatepruner import processes
from gatepruner.errors import DataError
from gatepruner.images.caching import Cache, Cached, cached
from gatepruner.images.decoding import Decoded, decode
from gatepruner.images.examples import Examples, Track
from gatepruner.images.memory import decode_all, fits
from gatepruner.images.scaling import Scaling
from gatepruner.images.tables import Picture, encoded, read
from gatepruner.models import Shape


@dataclass(frozen=True)
class Images(Examples):
    """Images, with or without labels.

    Attributes:
        labels: `(N,)` int64; -1 for images without labels.
        classes: name of each class; none if the images have no labels.
        shape: `(C, H, W)` of every image.
        source: where the images come from, for messages and reports.
        pixels: `(N, C, H, W)` uint8; `None` if images are decoded when they are used.
        files: paths of the images, or pictures in tables, if they are decoded when they are used.
        resize: how they are scaled, or were when they were decoded; `None` if they are not.
        cache: folder in which decoded images are kept, so that they are decoded once.

    Raises:
        DataError: the pixels are not uint8 `(N, C, H, W)`, the labels do not fit the classes, or
            there are not as many labels as images.
    """

    labels: Tensor
    classes: tuple[str, ...]
    shape: Shape
    source: str
    pixels: Tensor | None = None
    files: tuple[Picture, ...] = ()
    resize: Scaling | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        problem = _problem(self.labels, len(self.classes)) or (
            _problem_of_files(self) if self.pixels is None else _problem_of_pixels(self)
        )
        if problem:
            raise DataError(f"{self.source}: {problem}")

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.classes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of pixels and labels, or of labels and file names; equal for equal sets."""
        resize = self.resize if self.pixels is None else None  # else the pixels tell
        digest = hashlib.sha256(repr((self.shape, self.classes, resize)).encode())
        digest.update(self.labels.cpu().numpy().tobytes())
        if self.pixels is None:
            names = "\n".join(map(str, self.files))
            digest.update(names.encode(errors="surrogateescape"))  # names may be any bytes
        else:
            digest.update(self.pixels.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        return self.pixels is not None

    def take(self, indices: Tensor) -> Images:
        """The images at `indices` `(M,)`."""
        return replace(
            self,
            labels=self.labels[indices],
            pixels=None if self.pixels is None else self.pixels[indices],
            files=tuple(self.files[index] for index in indices.tolist()) if self.files else (),
        )

    def joined(self, other: Images) -> Images:
        """These images followed by those of another set, such as its validation split.

        Raises:
            DataError: they differ in size or classes, or only one of the two is in memory.
        """
        ours = (self.shape, self.classes, self.resize, self.pixels is None)
        if ours != (other.shape, other.classes, other.resize, other.pixels is None):
            raise DataError(
                f"cannot join {self.source} and {other.source}: expected equal sizes and classes, "
                "and both in memory or both in files"
            )
        pixels = None
        if self.pixels is not None and other.pixels is not None:
            pixels = torch.cat([self.pixels, other.pixels])
        return replace(
            self,
            labels=torch.cat([self.labels, other.labels]),
            source=f"{self.source} and {other.source}",
            pixels=pixels,
            files=self.files + other.files,
        )

    def kept(self, track: Track = iter) -> Images:
        """The images decoded once: in memory if they fit, else in their cache if they have one.

        Args:
            track: wraps the decoding, to show progress.

        Raises:
            DataError: an image cannot be decoded.
        """
        if self.in_memory or not len(self):
            return self
        cache = self._cached(track)
        if fits(len(self), self.shape):
            pixels = (
                decode_all(self.files, self.shape, self.resize, track)
                if cache is None
                else cache.read(0, len(self))
            )
            return replace(self, pixels=pixels.to(self.labels.device), files=())
        if cache is None:
            return replace(self, files=encoded(self.files, self.source))
        files = (Cached(str(file), cache, index) for index, file in enumerate(self.files))
        return replace(self, files=tuple(files))

    def _cached(self, track: Track) -> Cache | None:
        """The images in their cache, if they have one; parts of what is there have no other."""
        if self.cache is None or any(isinstance(file, Decoded) for file in self.files):
            return None
        return cached(self.files, self.shape, self.resize, self.cache, track)

    def to(self, device: torch.device) -> Images:
        """The images with labels and pixels on the device."""
        pixels = None if self.pixels is None else self.pixels.to(device)
        return replace(self, labels=self.labels.to(device), pixels=pixels)

    def batches(self, indices: Tensor, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels `(B, C, H, W)` uint8 and labels `(B,)`, in the order of the indices."""
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        if self.pixels is not None:
            for part in parts:
                part = part.to(self.pixels.device)
                yield self.pixels[part], self.labels[part]
            return
        device = self.labels.device
        with ThreadPoolExecutor(processes.cores()) as pool:  # decodes the next batch meanwhile
            following = self._decoding(pool, parts[0]) if parts else []
            for part, next_part in itertools.zip_longest(parts, parts[1:]):
                decoding = following
                following = self._decoding(pool, next_part) if next_part is not None else []
                pixels = torch.stack([future.result() for future in decoding])
                yield pixels.to(device, non_blocking=True), self.labels[part.to(device)]

    def _decoding(self, pool: ThreadPoolExecutor, part: Tensor) -> list[Any]:
        files = read(self.files[index] for index in part.tolist())
        return [pool.submit(decode, file, self.shape, self.resize) for file in files]

    def unlabelled(self) -> Images:
        """The images without their labels."""
        return replace(self, labels=torch.full_like(self.labels, -1), classes=())


def _problem(labels: Tensor, classes: int) -> str | None:
    """What is wrong with labels, if anything; those of images without classes are not used."""
    if labels.dtype != torch.int64 or labels.ndim != 1:
        return (
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected int64 of shape "
            "(N,): convert them"
        )
    if not classes or not len(labels):
        return None
    least, most = (int(label) for label in labels.aminmax())
    if least < 0 or most >= classes:
        return (
            f"labels reach from {least} to {most}, expected 0 to {classes - 1} for {classes} "
            "classes"
        )
    return None


def _problem_of_files(images: Images) -> str | None:
    if len(images.files) == len(images.labels):
        return None
    return f"{len(images.files)} files and {len(images.labels)} labels, expected one for each"


def _problem_of_pixels(images: Images) -> str | None:
    pixels, shape = images.pixels, tuple(images.shape)
    assert pixels is not None  # asked only then
    if pixels.dtype != torch.uint8:
        return (
            f"pixels are {pixels.dtype}, expected uint8 from 0 to 255, which are normalised when "
            "they are used: convert them, or pass prepared tensors as Examples of a data set"
        )
    found = tuple(pixels.shape[1:])
    if found != shape:
        last = "; move the channels to the front, pixels.permute(0, 3, 1, 2)"
        turned = pixels.ndim == 4 and (found[2], *found[:2]) == shape
        return (
            f"pixels are {tuple(pixels.shape)}, expected (N, {', '.join(map(str, shape))})"
            + last * turned
        )
    if len(pixels) != len(images.labels):
        return f"{len(pixels)} images and {len(images.labels)} labels, expected one for each"
    return None
