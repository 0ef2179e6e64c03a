"""Labelled images: read from torchvision's layouts, kept as uint8, normalised on the device."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatepruner.errors import DataError
from gatepruner.images.decoding import decode
from gatepruner.models import Shape

Track = Callable[[Iterable[Any]], Iterable[Any]]


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
        return [pool.submit(decode, file, self.shape, self.resize) for file in files]
